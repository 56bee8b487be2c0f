"""Jobs: look, watch, wait."""

from __future__ import annotations

import time

from guidehall.client import _decode, _lists, _names, types
from guidehall.client._config import Config
from guidehall.client._patience import Patience
from guidehall.client._steps import Call, Emit, Open, Operation, Pause, Read, Rpc, collect, for_each
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core.errors import Cancelled, DeadlineExceeded, OutOfRange, Unavailable

_GET = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "GetJob")
_LIST = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "ListJobs")
_WATCH = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "WatchJob")
_PIPELINE = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "GetPipeline")
_PIPELINES = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "ListPipelines")

# Why a watch is refused that would begin with events that are not kept any more.
EVENTS_DROPPED = "EVENTS_DROPPED"


def pipelines(config: Config) -> Operation[list[types.Pipeline]]:
    """Every pipeline."""
    request = jobs_pb2.ListPipelinesRequest()
    return collect(_lists.items(config, _PIPELINES, request, "pipelines", _decode.pipeline))


def pipeline(config: Config, name: str) -> Operation[types.Pipeline]:
    """One pipeline."""
    message = yield Call(_PIPELINE, jobs_pb2.GetPipelineRequest(name=name), config.timeouts.call_seconds)
    return _decode.pipeline(message)


def jobs(config: Config, filter: str, order_by: str, limit: int | None) -> Operation[None]:
    """Emits jobs."""
    request = jobs_pb2.ListJobsRequest(parent=f"projects/{config.project}", filter=filter, order_by=order_by)
    return _lists.items(config, _LIST, request, "jobs", _decode.job, limit)


def resolve(config: Config, text: str) -> Operation[str]:
    """Name of the job that `text` means."""
    return _names.job(config, text, lambda count: jobs(config, "", "", count))


def job(config: Config, text: str) -> Operation[types.Job]:
    """One job."""
    name = yield from resolve(config, text)
    return (yield from _get(config, name))


def _get(config: Config, name: str) -> Operation[types.Job]:
    message = yield Call(_GET, jobs_pb2.GetJobRequest(name=name), config.timeouts.call_seconds)
    return _decode.job(message)


def _get_patiently(config: Config, name: str) -> Operation[types.Job]:
    """One job, also when its service is away for a while: who waits for a job waits for that too."""
    patience = Patience(config.timeouts)
    while True:
        try:
            return (yield from _get(config, name))
        except Unavailable:
            if patience.exhausted:
                raise
        yield Pause(patience.next_pause())


def watch(config: Config, text: str, after_seq: int, deadline: float | None = None) -> Operation[None]:
    """Emits every event after `after_seq`, each once, whatever connection or service is lost meanwhile.

    Events that the platform does not keep any more are passed over.

    Args:
        deadline: `time.monotonic()` after which DeadlineExceeded is raised.
    """
    name = yield from resolve(config, text)
    patience = Patience(config.timeouts)
    seq = after_seq
    while True:
        seconds = _watch_seconds(config, name, deadline)
        try:
            stream = yield Open(_WATCH, jobs_pb2.WatchJobRequest(name=name, after_seq=seq), seconds)
            while (message := (yield Read(stream))) is not None:
                patience.reset()
                if message.seq <= seq:
                    continue
                seq = message.seq
                event = _decode.job_event(message)
                yield Emit(event)
                if event.last:
                    return
            if (yield from _is_over(config, name, seq)):
                return
        except DeadlineExceeded:
            # A stream that lived as long as it may: the service is well, the job merely takes longer.
            patience.reset()
        except OutOfRange as error:
            if error.reason != EVENTS_DROPPED:
                raise
            # Older ones are not kept; from here on there is no gap.
            seq = max(seq, int(error.metadata["first_seq"]) - 1)
            continue
        except (Unavailable, Cancelled):
            if patience.exhausted:
                raise
        yield Pause(patience.next_pause())


def _watch_seconds(config: Config, name: str, deadline: float | None) -> float:
    if deadline is None:
        return config.timeouts.watch_seconds
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded(f"{name} is not over yet", reason="JOB_NOT_OVER", metadata={"resource": name})
    return min(config.timeouts.watch_seconds, left)


def _is_over(config: Config, name: str, seq: int) -> Operation[bool]:
    """Whether nothing follows event `seq`: the stream ended, but the service may only have been stopped."""
    job = yield from _get(config, name)
    if job.state is types.JobState.SUCCEEDED and not job.result:
        return False
    return job.state.final and job.last_seq <= seq


def wait(config: Config, text: str, timeout: float | None) -> Operation[types.Job]:
    """Waits until a job is over and its result, if it has one, can be read."""
    deadline = None if timeout is None else time.monotonic() + timeout
    name = yield from resolve(config, text)
    job = yield from _get_patiently(config, name)
    # Of what was before only the last event matters: on a job that is over it ends the stream.
    events = watch(config, name, max(job.last_seq - 1, 0), deadline)
    yield from for_each(events, lambda _: None)
    return (yield from _get_patiently(config, name))
