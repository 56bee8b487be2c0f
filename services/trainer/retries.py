"""Jobs that are run again: as they were, from a checkpoint that was kept, or with changes, from the start."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from guidehall.core.access import require_changeable, sees_everything
from guidehall.core.auth import Principal
from guidehall.core.errors import FailedPrecondition
from services.trainer.checkpoints import starting_point
from services.trainer.database import Database
from services.trainer.documents import Document
from services.trainer.jobs import find
from services.trainer.lifecycle import FINAL
from services.trainer.param_paths import assign
from services.trainer.queues import Seen
from services.trainer.records import Job
from services.trainer.request_keys import RequestKey
from services.trainer.submissions import NewJob, Submission, Submissions

# Whoever changes one of these gets other numbers: what was computed before does not fit.
_DECIDE_NUMBERS = ("pipeline_version", "params_digest", "seed", "inputs")


@dataclass(frozen=True)
class Changes:
    """What is different in the new job; zero and empty keep what the first one had."""

    params: Mapping[str, Any]
    seed: int
    pool: str
    display_name: str
    timeout_seconds: int
    from_start: bool


class Retries:
    """Makes new jobs of ended ones."""

    def __init__(self, database: Database, submissions: Submissions) -> None:
        self._database = database
        self._submissions = submissions

    async def retry(
        self, principal: Principal, name: str, changes: Changes, request_id: str, validate_only: bool
    ) -> Seen:
        """Stores a job like an ended one; the same again when `request_id` is known.

        Who has it run owns it, except that an operator leaves it to its owner.

        Raises:
            InvalidArgument: a change is wrong, or the request id came before with other content.
            NotFound: the caller sees no job of this name.
            FailedPrecondition: the job has not ended.
            Unavailable: the database, or storage that has the inputs, cannot be reached.
        """
        key = RequestKey.of(principal, request_id, {"name": name, **asdict(changes)})
        if not validate_only and (earlier := await self._submissions.earlier(key)):
            return earlier[0]
        async with self._database.statements() as connection:
            job = await find(connection, principal, name)
            require_changeable(principal, job, name)
            kept, made_by = await starting_point(connection, job)
        if job.state not in FINAL:
            raise FailedPrecondition(
                f"a job that is {job.state.value} cannot be retried: it has not ended",
                reason="JOB_STATE",
                metadata={"state": job.state.value},
            )
        new = await self._prepare(principal, job, changes)
        if kept is not None and not changes.from_start and _same_numbers(job, new.values):
            new.values["checkpoint_from"] = made_by
        if validate_only:
            return (await self._submissions.rehearse(principal, [new]))[0]
        return (await self._submissions.store(principal, "RetryJob", key, [new]))[0]

    async def _prepare(self, principal: Principal, job: Job, changes: Changes) -> NewJob:
        submission = Submission(
            project=job.project,
            pipeline=job.pipeline,
            params=_changed(job.params, changes.params),
            display_name=changes.display_name or job.display_name,
            seed=changes.seed or job.seed,
            inputs=job.inputs,
            pool=changes.pool or job.pool,
            priority=job.priority,
            labels=job.labels,
            timeout_seconds=changes.timeout_seconds or job.timeout_seconds,
            max_attempts=job.max_attempts,
            memory_hint_bytes=job.memory_hint_bytes,
            group=job.group_name,
            device_class="",
            notifications=job.notifications,
            annotations=job.annotations,
        )
        new = await self._submissions.prepare(principal, submission)
        new.values["retried_from"] = job.id
        if sees_everything(principal):
            # An operator who has a job run again does not take it from its owner.
            new.values["owner"] = job.owner
        if not changes.pool:
            new.values["device_class"] = job.device_class
        return new


def _changed(params: Document, changes: Mapping[str, Any]) -> Document:
    """The parameters with some set by their paths.

    Raises:
        InvalidArgument: a path leads nowhere.
    """
    changed = copy.deepcopy(params)
    for path, value in changes.items():
        assign(changed, path, value, "param_changes")
    return changed


def _same_numbers(job: Job, values: Mapping[str, Any]) -> bool:
    return all(getattr(job, column) == values[column] for column in _DECIDE_NUMBERS)
