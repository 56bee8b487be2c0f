"""A server that speaks the contract and answers the command line with what a test wants to see shown."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, struct_pb2
from grpc_status import rpc_status

from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.reflectometry.v1 import reflectometry_pb2, reflectometry_pb2_grpc
from guidehall.contracts.results.v1 import results_pb2, results_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core.errors import AppError, NotFound, OutOfRange, to_status
from guidehall.science import registry

JOB = "projects/default/jobs/0a1b2c3d-0000-4000-8000-000000000000"
BATCH = "projects/default/batches/b0000000-0000-4000-8000-000000000000"
WORKER = "pools/cpu/workers/1d2e3f4a-0000-4000-8000-000000000000"
CREDENTIAL = "pools/cpu/credentials/5c0d91aa-0000-4000-8000-000000000000"


@dataclass
class Peer(
    jobs_pb2_grpc.JobsServiceServicer,
    reflectometry_pb2_grpc.ReflectometryServiceServicer,
    results_pb2_grpc.ResultsServiceServicer,
    workers_pb2_grpc.PoolsServiceServicer,
):
    """Knows the real pipelines; keeps what it was asked; refuses with `error` when a test sets it."""

    requests: list[Any] = field(default_factory=list)
    error: AppError | None = None
    job: jobs_pb2.Job = field(default_factory=lambda: jobs_pb2.Job(name=JOB, state=jobs_pb2.JOB_STATE_QUEUED))
    events: list[jobs_pb2.JobEvent] = field(default_factory=list)
    result: results_pb2.Result | None = None
    analysis: reflectometry_pb2.AnalyzeCurveResponse = field(
        default_factory=reflectometry_pb2.AnalyzeCurveResponse
    )
    simulation: reflectometry_pb2.SimulateResponse = field(default_factory=reflectometry_pb2.SimulateResponse)
    attempts: list[jobs_pb2.Attempt] = field(default_factory=list)
    purge: jobs_pb2.PurgeJobsResponse = field(default_factory=jobs_pb2.PurgeJobsResponse)
    pool: workers_pb2.Pool = field(default_factory=lambda: workers_pb2.Pool(name="pools/cpu"))
    worker: workers_pb2.Worker = field(
        default_factory=lambda: workers_pb2.Worker(
            name=WORKER, pool="pools/cpu", state=workers_pb2.WORKER_STATE_IDLE
        )
    )
    credential: workers_pb2.WorkerCredential = field(
        default_factory=lambda: workers_pb2.WorkerCredential(name=CREDENTIAL, note="beamline 7")
    )
    # Older events are no longer kept.
    first_seq: int = 1
    # Events are held back until it is set.
    may_tell: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.may_tell.set()

    def GetPipeline(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Pipeline:  # noqa: N802
        if request.name not in registry.pipelines():
            self._refuse(NotFound(f"{request.name} does not exist"), context)
        return _pipeline(request.name)

    def ListPipelines(self, *_: Any) -> Any:  # noqa: N802
        return jobs_pb2.ListPipelinesResponse(pipelines=map(_pipeline, registry.pipelines()))

    def SubmitJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def CancelJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def ListJobs(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.ListJobsResponse:  # noqa: N802
        return self._answer(request, context, jobs_pb2.ListJobsResponse(jobs=[self.job]))

    def WatchJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[jobs_pb2.JobEvent]:  # noqa: N802
        if request.after_seq < self.first_seq - 1:
            metadata = {"first_seq": str(self.first_seq)}
            self._refuse(OutOfRange("too late", reason="EVENTS_DROPPED", metadata=metadata), context)
        self.may_tell.wait(30)
        yield from (event for event in self.events if event.seq > request.after_seq)

    def PauseJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def ResumeJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def StopJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def ClaimJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def RetryJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def UpdateJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        return self._answer(request, context, self.job)

    def DeleteJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.DeleteJobResponse:  # noqa: N802
        return self._answer(request, context, jobs_pb2.DeleteJobResponse())

    def PurgeJobs(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.PurgeJobsResponse:  # noqa: N802
        return self._answer(request, context, self.purge)

    def ListAttempts(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._answer(request, context, jobs_pb2.ListAttemptsResponse(attempts=self.attempts))

    def BatchSubmitJobs(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """As many jobs as there are values on the first axis, each with its value."""
        jobs = []
        for value in request.sweep.axes[0].values.values:
            job = jobs_pb2.Job(name=JOB)
            job.params.fields[request.sweep.axes[0].path].CopyFrom(value)
            jobs.append(job)
        batch = "" if request.validate_only else BATCH
        return self._answer(request, context, jobs_pb2.BatchSubmitJobsResponse(jobs=jobs, batch=batch))

    def ListPools(self, request: Any, context: grpc.ServicerContext) -> workers_pb2.ListPoolsResponse:  # noqa: N802
        return self._answer(request, context, workers_pb2.ListPoolsResponse(pools=[self.pool]))

    def ListWorkers(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._answer(request, context, workers_pb2.ListWorkersResponse(workers=[self.worker]))

    def DrainWorker(self, request: Any, context: grpc.ServicerContext) -> workers_pb2.Worker:  # noqa: N802
        return self._answer(request, context, self.worker)

    def ReinstateWorker(self, request: Any, context: grpc.ServicerContext) -> workers_pb2.Worker:  # noqa: N802
        return self._answer(request, context, self.worker)

    def CreateWorkerCredential(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        answer = workers_pb2.CreateWorkerCredentialResponse(credential=self.credential, token="secret")
        return self._answer(request, context, answer)

    def ListWorkerCredentials(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        answer = workers_pb2.ListWorkerCredentialsResponse(credentials=[self.credential])
        return self._answer(request, context, answer)

    def RevokeWorkerCredential(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._answer(request, context, self.credential)

    def GetResult(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        if self.result is None:
            self._refuse(NotFound(f"{request.name} does not exist"), context)
        return self.result

    def AnalyzeCurve(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._answer(request, context, self.analysis)

    def Simulate(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._answer(request, context, self.simulation)

    def params(self) -> dict[str, Any]:
        """The parameters in the last request."""
        return dict(json_format.MessageToDict(self.requests[-1].params))

    def _answer(self, request: Any, context: grpc.ServicerContext, answer: Any) -> Any:
        self.requests.append(request)
        if self.error is not None:
            self._refuse(self.error, context)
        return answer

    def _refuse(self, error: AppError, context: grpc.ServicerContext) -> None:
        context.abort_with_status(rpc_status.to_status(to_status(error)))


def _pipeline(name: str) -> jobs_pb2.Pipeline:
    known = registry.pipeline(name)
    params, result = struct_pb2.Struct(), struct_pb2.Struct()
    params.update(registry.json_schema(name))
    result.update(registry.result_schema(name))
    return jobs_pb2.Pipeline(
        name=name, version=known.version, title=known.title, params_schema=params, result_schema=result
    )


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    """The server, already named in the environment."""
    servicer = Peer()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    jobs_pb2_grpc.add_JobsServiceServicer_to_server(servicer, server)
    reflectometry_pb2_grpc.add_ReflectometryServiceServicer_to_server(servicer, server)
    results_pb2_grpc.add_ResultsServiceServicer_to_server(servicer, server)
    workers_pb2_grpc.add_PoolsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    target = f"127.0.0.1:{port}"
    monkeypatch.setenv("GUIDEHALL_ENDPOINTS", f"trainer={target},storage={target},inference={target}")
    yield servicer
    server.stop(None).wait()
