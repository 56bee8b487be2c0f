"""Jobs behind the old paths: which ones these are, who may do something to them, what is remembered."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import grpc
from fastapi import Request
from starlette.exceptions import HTTPException

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.auth import current_principal
from guidehall.core.errors import AppError, NotFound
from guidehall.core.names import JOB
from services.gateway.api.common import resource
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.legacy.common import is_guest
from services.gateway.legacy.results import PIPELINES
from services.gateway.legacy.status import Told
from services.gateway.messages import Json, struct_json

logger = logging.getLogger(__name__)

T = TypeVar("T")
# The result as the old app has it, and the name of the model version it comes with.
Finished: TypeAlias = tuple[Json, str]

# The old paths show only jobs with this label; the other one says which of them made the job.
LABEL, LABEL_VALUE = "guidehall-legacy", "generate"
CALL_LABEL = "guidehall-legacy-call"
GPU_LABEL = "guidehall-legacy-gpu"
# Of a job whose run is in a history, or was before its owner deleted it there.
KEPT_LABEL = "guidehall-legacy-kept"
# Of a job whose checkpoint is not wanted any more.
NO_CHECKPOINT_LABEL = "guidehall-legacy-no-checkpoint"
# Under it the request is kept with its job.
REQUEST = "request"

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FINAL = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED)


@dataclass
class Memory:
    """What the gateway remembers of jobs, so that polls do not ask again; all of it can be found anew."""

    finished: OrderedDict[str, asyncio.Task[Finished]] = field(default_factory=OrderedDict)
    told: OrderedDict[str, Told] = field(default_factory=OrderedDict)
    # By what was asked: until when an answer counts, and the answer.
    answers: dict[str, tuple[float, asyncio.Task[Any]]] = field(default_factory=dict)
    # Who named themselves last, where every caller is on this machine.
    named: str | None = None
    # Jobs whose documents this version cannot read: no history gets them.
    not_kept: set[str] = field(default_factory=set)
    # Held until they are done.
    background: set[asyncio.Task[Any]] = field(default_factory=set)

    async def as_of_late(self, key: str, seconds: float, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `ask` gives in the platform's name, or gave at most so many seconds ago."""
        now = asyncio.get_running_loop().time()
        for old in [name for name, (until, _) in self.answers.items() if until <= now]:
            del self.answers[old]
        if key not in self.answers:
            with as_platform():
                self.answers[key] = now + seconds, asyncio.create_task(ask())
        # Others wait for the same answer.
        answer: T = await asyncio.shield(self.answers[key][1])
        return answer

    def changed(self) -> None:
        """Something was done to a job: what is asked next is asked anew."""
        self.answers.clear()

    def do_apart(self, work: Coroutine[Any, Any, object]) -> None:
        """Has something done in the platform's name, whatever becomes of the request at hand."""
        with as_platform():
            task = asyncio.create_task(_tried(work))
        self.background.add(task)
        task.add_done_callback(self.background.discard)


async def _tried(work: Coroutine[Any, Any, object]) -> None:
    try:
        await work
    except (grpc.RpcError, AppError) as error:
        # Nobody waits for it.
        logger.warning("what a request left to be done failed: %s", error)


def memory(request: Request) -> Memory:
    """That of the gateway."""
    found: Memory = request.app.state.old_jobs
    return found


async def find(backends: Backends, job_id: str) -> jobs_pb2.Job:
    """A job of the old paths, whoever's it is: its id is not to be guessed.

    Raises:
        NotFound: there is none.
    """
    missing = NotFound(f"job {job_id[:80]} does not exist")
    if not _UUID.fullmatch(job_id):
        raise missing
    request = jobs_pb2.GetJobRequest(name=resource(JOB, job=job_id))
    try:
        with as_platform():
            job = await backends.jobs.GetJob(request, timeout=backends.timeouts.call)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise missing from None
        raise
    if not is_run(job):
        raise missing
    found: jobs_pb2.Job = job
    return found


def is_run(job: jobs_pb2.Job) -> bool:
    """Whether a job is one of the old paths. The label alone can be anybody's, on a job of any pipeline."""
    return job.labels.get(LABEL) == LABEL_VALUE and job.pipeline in PIPELINES


def require_owner(job: jobs_pb2.Job) -> None:
    """Lets pass who may change a job: of a guest's, everybody who knows its id, else the owner.

    Raises:
        HTTPException: 403.
    """
    if job.owner and job.owner != current_principal().subject:
        raise HTTPException(403, "the job belongs to another user")


def require_not_another(job: jobs_pb2.Job) -> None:
    """The same, and who says nothing of who they are: the page calls some paths so, for its user's jobs too.

    Raises:
        HTTPException: 403.
    """
    if not is_guest(current_principal()):
        require_owner(job)


@contextmanager
def acting_on(job: jobs_pb2.Job) -> Iterator[None]:
    """Calls in the block about a job that the caller may change: the owner's own, else the platform's."""
    own = bool(job.owner) and job.owner == current_principal().subject
    with nullcontext() if own else as_platform():
        yield


async def cancel(backends: Backends, job: jobs_pb2.Job) -> None:
    """Ends a job, with nothing."""
    await backends.jobs.CancelJob(jobs_pb2.CancelJobRequest(name=job.name), timeout=backends.timeouts.call)


async def set_labels(backends: Backends, job: jobs_pb2.Job, labels: Mapping[str, str]) -> None:
    """Gives a job these labels in place of its own."""
    change = jobs_pb2.UpdateJobRequest(job=jobs_pb2.Job(name=job.name, labels=labels))
    change.update_mask.paths.append("labels")
    await backends.jobs.UpdateJob(change, timeout=backends.timeouts.call)


def request_of(job: jobs_pb2.Job) -> Json:
    """The request that a job was made for, as it is kept."""
    found = struct_json(job.annotations).get(REQUEST)
    return found if isinstance(found, dict) else {}


def owned(owner: str) -> str:
    """A filter of lists: the labelled jobs that somebody owns, or, with an empty name, nobody.

    Which of them are of the old paths `is_run` says.
    """
    escaped = owner.replace("\\", "\\\\").replace('"', '\\"')
    return f'labels.{LABEL} = "{LABEL_VALUE}" AND owner = "{escaped}"'


def is_final(job: jobs_pb2.Job) -> bool:
    """Whether it has ended."""
    return job.state in _FINAL
