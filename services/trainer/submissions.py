"""Taking a job in: everything is checked here, so that a worker is not given what cannot run."""

from __future__ import annotations

import re
import secrets
import uuid
from collections import Counter as Counted
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from prometheus_client import Counter
from pydantic import BaseModel, ValidationError

from guidehall.core.access import owner_for, require_project, sees_everything
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, Violation
from guidehall.core.faults import fault_point
from guidehall.core.names import LONGEST_DISPLAY_NAME
from guidehall.science import registry
from guidehall.science.pipeline import Pipeline, UserError, field_errors
from services.trainer.audit import audit
from services.trainer.database import Database, Unit
from services.trainer.datasets import Datasets
from services.trainer.documents import EXACT_INTEGERS, Document, canonical, digest, plain
from services.trainer.journal import Journal, unring
from services.trainer.leases import Leases, Offer
from services.trainer.notifications import Target, check_targets
from services.trainer.pools import Pools
from services.trainer.queues import Queues, Seen
from services.trainer.records import Job
from services.trainer.request_keys import RequestKey
from services.trainer.scheduler import HIGHEST_PRIORITY, NORMAL_PRIORITY, head_start
from services.trainer.settings import TrainerSettings

MOST_LABELS = 32
LABEL_KEY = r"[a-z0-9][a-z0-9._/-]{0,62}"
LONGEST_LABEL = 255
MOST_ANNOTATION_BYTES = 64 << 10
# What numpy and torch both take as a seed.
_SEEDS = 2**31 - 1
_SHOWN_VIOLATIONS = 3
_SUBMITTED = Counter("guidehall_jobs_submitted", "Jobs taken in", ["pipeline"])


@dataclass(frozen=True)
class Submission:
    """A job as it was asked for; zero and empty mean the usual."""

    project: str
    pipeline: str
    params: Document
    display_name: str
    seed: int
    inputs: Mapping[str, str]
    pool: str
    priority: int
    labels: Mapping[str, str]
    timeout_seconds: int
    max_attempts: int
    memory_hint_bytes: int
    group: str
    device_class: str
    notifications: Sequence[Target]
    annotations: Document = field(default_factory=dict)


@dataclass(frozen=True)
class NewJob:
    """A submission that was checked: the columns of its row, and how often it may be tried."""

    values: dict[str, Any]
    max_attempts: int


class Submissions:
    """Checks and stores new jobs."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        datasets: Datasets,
        pools: Pools,
        queues: Queues,
        leases: Leases,
        settings: TrainerSettings,
    ) -> None:
        self._database = database
        self._journal = journal
        self._leases = leases
        self._datasets = datasets
        self._pools = pools
        self._queues = queues
        self._all_settings = settings
        self._settings = settings.jobs
        self._notify = settings.notify

    async def submit(self, principal: Principal, submission: Submission, request_id: str) -> Seen:
        """Stores a job, its first event and its doorbell; the first job again when `request_id` is known.

        Raises:
            InvalidArgument: a field is wrong, or the request id came before with other content.
            PermissionDenied: the caller may not own a job, or not in this project.
            FailedPrecondition: no pool can stand in for the device class.
            ResourceExhausted: too many of the owner's jobs wait already.
            Unavailable: the database, or storage that has the inputs, cannot be reached.
        """
        key = RequestKey.of(principal, request_id, asdict(submission))
        # Before inputs are looked up: "latest" may mean another version by now.
        earlier = await self.earlier(key) if submission.inputs else []
        made = earlier or await self.store(
            principal, "SubmitJob", key, [await self.prepare(principal, submission)]
        )
        return made[0]

    async def check(self, principal: Principal, submission: Submission) -> Seen:
        """The job as it would be; nothing is stored.

        Raises:
            As `submit`.
        """
        return (await self.rehearse(principal, [await self.prepare(principal, submission)]))[0]

    async def earlier(self, key: RequestKey) -> list[Seen]:
        """What the same request made before.

        Raises:
            InvalidArgument: it came with other content then.
        """
        if not key.request_id:
            return []
        async with self._database.statements() as connection:
            return await self._queues.see_all(connection, await key.made(connection))

    async def store(
        self, principal: Principal, method: str, key: RequestKey, new: Sequence[NewJob]
    ) -> list[Seen]:
        """Stores jobs, all or none; those that were made first when the request came before.

        Raises:
            InvalidArgument: the request id came before with other content.
            ResourceExhausted: too many of the owner's jobs would wait.
        """
        # Of jobs that go to several pools, one is given at once.
        with self._leases.offer(new[0].values["pool"]) as offer:
            return await self._store(principal, method, key, new, offer)

    async def _store(
        self, principal: Principal, method: str, key: RequestKey, new: Sequence[NewJob], offer: Offer
    ) -> list[Seen]:
        async with self._database.unit() as unit:
            if key.request_id and not await key.claim(unit.connection, new[0].values["id"]):
                # The same request came before, or twice at a time and the other one was first.
                earlier = await key.made(unit.connection)
                if earlier:
                    return await self._queues.see_all(unit.connection, earlier)
            made = await self._take_in(unit, principal, new)
            for job in made:
                audit(unit, principal, method, job.name, etag_after=job.etag)
            given = await offer.give(unit)
            if given is not None and [given.id] == [job.id for job in made]:
                unring(unit, given.pool)
            fault_point("trainer.submit.stored")
        fault_point("trainer.submit.committed")
        offer.committed()
        for job in made:
            _SUBMITTED.labels(job.pipeline).inc()
        # Afterwards: workers need not wait for what is only told.
        return await self._queues.see_stored(self._database, made)

    async def rehearse(self, principal: Principal, new: Sequence[NewJob]) -> list[Seen]:
        """The jobs as they would be; nothing is stored.

        Raises:
            ResourceExhausted: as `store`.
        """
        async with self._database.rehearsal() as connection:
            made = await self._take_in(Unit(connection, ""), principal, new)
            # Nobody else may see a queue with what is never stored.
            return await Queues(self._all_settings).see_all(connection, made)

    async def prepare(
        self, principal: Principal, submission: Submission, pinned: dict[str, str] | None = None
    ) -> NewJob:
        """Checks everything and fills in what was left to us.

        Args:
            principal: who submits.
            submission: what is asked for.
            pinned: what names of dataset versions mean to all that is submitted together.

        Raises:
            InvalidArgument: a field is wrong.
            PermissionDenied: the caller may not own a job.
            Unavailable: storage, which has the inputs, cannot be reached.
        """
        owner = owner_for(principal)
        require_project(principal, submission.project)
        pipeline = pipeline_named(submission.pipeline)
        self._check_fields(submission)
        check_targets(submission.notifications, self._notify)
        _check_group(principal, submission.group)
        pool, device_class = await self._pools.choose(
            submission.pool, submission.device_class, gpu_only=pipeline.device == "gpu"
        )
        valid, params = self._valid(pipeline, submission.params)
        for role in submission.inputs:
            if role not in pipeline.datasets:
                raise InvalidArgument.field(
                    "inputs", role, f"roles: {', '.join(pipeline.datasets) or 'none'}"
                )
        for role in pipeline.needs(valid):
            if role not in submission.inputs:
                allowed = f"a dataset version ({pipeline.datasets[role]})"
                raise InvalidArgument.field(f"inputs.{role}", "none", allowed)
        priority = submission.priority or NORMAL_PRIORITY
        values = {
            "id": str(uuid.uuid4()),
            "project": submission.project,
            "owner": owner,
            "display_name": submission.display_name,
            "labels": dict(submission.labels),
            "pipeline": pipeline.name,
            "pipeline_version": pipeline.version,
            "params": params,
            "params_digest": digest(params),
            "seed": submission.seed or secrets.randbelow(_SEEDS) + 1,
            "inputs": await self._datasets.pin(
                principal, submission.inputs, {} if pinned is None else pinned
            ),
            "pool": pool,
            "device_class": device_class,
            "group_name": submission.group,
            "priority": priority,
            "memory_hint_bytes": submission.memory_hint_bytes,
            "timeout_seconds": submission.timeout_seconds or self._all_settings.default_timeout_seconds(pool),
            "head_start": head_start(priority, self._settings.ageing_seconds),
            "notifications": [dict(target) for target in submission.notifications],
            "annotations": checked_annotations(submission.annotations),
        }
        return NewJob(values, submission.max_attempts or self._settings.default_max_attempts)

    async def _take_in(self, unit: Unit, principal: Principal, new: Sequence[NewJob]) -> list[Job]:
        """Stores jobs if their owners may have so many more waiting."""
        places = Counted((item.values["owner"], item.values["pool"]) for item in new)
        # In one order, so that two of many do not wait for each other.
        for (owner, pool), count in sorted(places.items()):
            await self._pools.require_room(unit.connection, principal, owner, pool, count)
        return await self._journal.submit(unit, [(item.values, item.max_attempts) for item in new])

    def _check_fields(self, submission: Submission) -> None:
        settings = self._settings
        check_display_name(submission.display_name)
        check_labels(submission.labels)
        _check_range("seed", submission.seed, EXACT_INTEGERS - 1)
        check_priority(submission.priority)
        _check_range("timeout_seconds", submission.timeout_seconds, settings.highest_timeout_seconds)
        _check_range("max_attempts", submission.max_attempts, settings.highest_max_attempts)
        _check_range("memory_hint_bytes", submission.memory_hint_bytes, EXACT_INTEGERS - 1)

    def params(self, pipeline: str, params: Document) -> Document:
        """The parameters with every default filled in.

        Raises:
            InvalidArgument: some are wrong, by their paths, or there is no such pipeline.
        """
        return self._valid(pipeline_named(pipeline), params)[1]

    def _valid(self, pipeline: Pipeline, params: Document) -> tuple[BaseModel, Document]:
        """The parameters as the pipeline reads them, and as a document with every default filled in."""
        given = plain(params, "params")
        size = len(canonical(given).encode())
        if size > self._settings.max_params_bytes:
            allowed = f"at most {self._settings.max_params_bytes} bytes"
            raise InvalidArgument.field("params", f"{size} bytes", allowed)
        try:
            valid = pipeline.params.model_validate(given)
        except ValidationError as error:
            violations = [Violation(path, reason) for path, reason in field_errors(error, "params")]
            message = "; ".join(
                f"{item.field}: {item.description}" for item in violations[:_SHOWN_VIOLATIONS]
            )
            raise InvalidArgument(message, reason="INVALID_PARAMS", violations=violations) from None
        filled: Document = plain(valid.model_dump(mode="json"), "params")
        return valid, filled


def pipeline_named(name: str) -> Pipeline:
    """A pipeline that this installation has.

    Raises:
        InvalidArgument: there is none of this name.
    """
    try:
        return registry.pipeline(name)
    except UserError as error:
        raise InvalidArgument.field(error.field, name, error.allowed) from None


def _check_group(principal: Principal, group: str) -> None:
    """A job counts against a group of its owner's; operators may name any."""
    if group and group not in principal.groups and not sees_everything(principal):
        allowed = f"one of your groups ({', '.join(sorted(principal.groups)) or 'you are in none'}), or empty"
        raise InvalidArgument.field("group", group, allowed)


def _check_text(field: str, text: str, longest: int) -> None:
    if len(text) > longest or not text.isprintable():
        raise InvalidArgument.field(field, text, f"at most {longest} printable characters")


def _check_range(field: str, number: int, highest: int) -> None:
    if not 0 <= number <= highest:
        raise InvalidArgument.field(field, number, f"0 to {highest}")


def check_display_name(text: str) -> None:
    """Raises InvalidArgument unless a job may be called so."""
    _check_text("display_name", text, LONGEST_DISPLAY_NAME)


def check_priority(priority: int) -> None:
    """Raises InvalidArgument unless it is one."""
    _check_range("priority", priority, HIGHEST_PRIORITY)


def checked_annotations(annotations: Document) -> Document:
    """The document as it is stored.

    Raises:
        InvalidArgument: it is too large, or holds what cannot be stored.
    """
    stored: Document = plain(annotations, "annotations")
    size = len(canonical(stored).encode())
    if size > MOST_ANNOTATION_BYTES:
        raise InvalidArgument.field("annotations", f"{size} bytes", f"at most {MOST_ANNOTATION_BYTES} bytes")
    return stored


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises InvalidArgument unless a job may have these."""
    if len(labels) > MOST_LABELS:
        raise InvalidArgument.field("labels", f"{len(labels)} labels", f"at most {MOST_LABELS}")
    for key, value in labels.items():
        if not re.fullmatch(LABEL_KEY, key):
            raise InvalidArgument.field("labels", key, f"keys that match {LABEL_KEY}")
        _check_text(f"labels.{key}", value, LONGEST_LABEL)
