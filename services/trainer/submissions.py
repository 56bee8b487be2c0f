"""Taking a job in: everything is checked here, so that a worker is not given what cannot run."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import Counter
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.access import owner_for
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, Violation
from guidehall.science import registry
from guidehall.science.pipeline import Pipeline, UserError, field_errors
from services.trainer.audit import audit
from services.trainer.database import Database, Unit
from services.trainer.datasets import Datasets
from services.trainer.documents import EXACT_INTEGERS, Document, canonical, digest, plain
from services.trainer.jobs import Seen
from services.trainer.journal import Journal
from services.trainer.records import Job
from services.trainer.scheduler import HIGHEST_PRIORITY, NORMAL_PRIORITY, queue_position, queue_rank
from services.trainer.settings import JobSettings
from services.trainer.tables import jobs, request_ids
from services.trainer.workers import enrolled_pools

LONGEST_DISPLAY_NAME = 80
MOST_LABELS = 32
LABEL_KEY = r"[a-z0-9][a-z0-9._/-]{0,62}"
LONGEST_LABEL = 255
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


class Submissions:
    """Checks and stores new jobs."""

    def __init__(
        self, database: Database, journal: Journal, datasets: Datasets, settings: JobSettings
    ) -> None:
        self._database = database
        self._journal = journal
        self._datasets = datasets
        self._settings = settings
        # Those that are known to have workers; asked for again only when another is named.
        self._pools = {settings.default_pool}

    async def submit(self, principal: Principal, submission: Submission, request_id: str) -> Seen:
        """Stores a job, its first event and its doorbell; the first job again when `request_id` is known.

        Raises:
            InvalidArgument: a field is wrong, or the request id came before with other content.
            PermissionDenied: the caller may not own a job.
            Unavailable: the database, or storage that has the inputs, cannot be reached.
        """
        content = digest({name: plain(value, name) for name, value in asdict(submission).items()})
        key = _RequestKey(f"{principal.kind}:{principal.subject}", request_id, content)
        if request_id and submission.inputs:
            # Before they are looked up: "latest" may mean another version by now.
            async with self._database.statements() as connection:
                earlier = await key.job(connection)
                if earlier is not None:
                    return Seen(earlier, await queue_position(connection, earlier))
        values = await self._values(principal, submission)
        async with self._database.unit() as unit:
            if request_id and not await key.claim(unit.connection, values["id"]):
                # The same request came twice at a time, and the other one was first.
                earlier = await key.job(unit.connection)
                if earlier is not None:
                    return Seen(earlier, await queue_position(unit.connection, earlier))
            job = await self._journal.submit(unit, values, self._max_attempts(submission))
            audit(unit, principal, "SubmitJob", job.name, etag_after=job.etag)
            seen = Seen(job, await queue_position(unit.connection, job))
        _SUBMITTED.labels(job.pipeline).inc()
        return seen

    async def check(self, principal: Principal, submission: Submission) -> Seen:
        """The job as it would be; nothing is stored.

        Raises:
            As `submit`.
        """
        values = await self._values(principal, submission)
        async with self._database.rehearsal() as connection:
            job = await self._journal.submit(Unit(connection), values, self._max_attempts(submission))
            return Seen(job, await queue_position(connection, job))

    async def _values(self, principal: Principal, submission: Submission) -> dict[str, Any]:
        owner = owner_for(principal)
        pipeline = _pipeline(submission.pipeline)
        self._check_fields(submission)
        await self._check_pool(submission.pool)
        params = self._params(pipeline, submission.params)
        for role in submission.inputs:
            if role not in pipeline.datasets:
                raise InvalidArgument.field(
                    "inputs", role, f"roles: {', '.join(pipeline.datasets) or 'none'}"
                )
        return {
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
            "inputs": await self._datasets.pin(principal, submission.inputs),
            "pool": submission.pool or self._settings.default_pool,
            "priority": submission.priority or NORMAL_PRIORITY,
            "memory_hint_bytes": submission.memory_hint_bytes,
            "timeout_seconds": submission.timeout_seconds or self._settings.default_timeout_seconds,
            "queue_rank": queue_rank(submission.priority or NORMAL_PRIORITY, self._settings.ageing_seconds),
        }

    async def _check_pool(self, pool: str) -> None:
        """A job for a pool that has no workers would wait for ever."""
        if not pool or pool in self._pools:
            return
        async with self._database.statements() as connection:
            self._pools |= await enrolled_pools(connection)
        if pool not in self._pools:
            raise InvalidArgument.field("pool", pool, f"one of {', '.join(sorted(self._pools))}")

    def _max_attempts(self, submission: Submission) -> int:
        return submission.max_attempts or self._settings.default_max_attempts

    def _check_fields(self, submission: Submission) -> None:
        settings = self._settings
        _check_text("display_name", submission.display_name, LONGEST_DISPLAY_NAME)
        _check_labels(submission.labels)
        _check_range("seed", submission.seed, EXACT_INTEGERS - 1)
        _check_range("priority", submission.priority, HIGHEST_PRIORITY)
        _check_range("timeout_seconds", submission.timeout_seconds, settings.highest_timeout_seconds)
        _check_range("max_attempts", submission.max_attempts, settings.highest_max_attempts)
        _check_range("memory_hint_bytes", submission.memory_hint_bytes, EXACT_INTEGERS - 1)

    def _params(self, pipeline: Pipeline, params: Document) -> Document:
        """The parameters with every default filled in."""
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
        return filled


@dataclass(frozen=True)
class _RequestKey:
    """What makes a repeated request the same one."""

    subject: str
    request_id: str
    content_digest: str

    async def claim(self, connection: AsyncConnection, job_id: str) -> bool:
        """Whether nobody had it before."""
        row = asdict(self) | {"job_id": job_id}
        claimed = await connection.execute(insert(request_ids).values(row).on_conflict_do_nothing())
        return bool(claimed.rowcount)

    async def job(self, connection: AsyncConnection) -> Job | None:
        """The job that this request made.

        Raises:
            InvalidArgument: it came with other content then.
        """
        found = select(jobs, request_ids.c.content_digest).join(
            request_ids, request_ids.c.job_id == jobs.c.id
        )
        mine = (request_ids.c.subject == self.subject) & (request_ids.c.request_id == self.request_id)
        row = (await connection.execute(found.where(mine))).mappings().first()
        if row is None:
            return None
        if row["content_digest"] != self.content_digest:
            raise InvalidArgument.field("request_id", self.request_id, "a new one for another request")
        return Job.of(row)


def _pipeline(name: str) -> Pipeline:
    try:
        return registry.pipeline(name)
    except UserError as error:
        raise InvalidArgument.field(error.field, name, error.allowed) from None


def _check_text(field: str, text: str, longest: int) -> None:
    if len(text) > longest or not text.isprintable():
        raise InvalidArgument.field(field, text, f"at most {longest} printable characters")


def _check_range(field: str, number: int, highest: int) -> None:
    if not 0 <= number <= highest:
        raise InvalidArgument.field(field, number, f"0 to {highest}")


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MOST_LABELS:
        raise InvalidArgument.field("labels", f"{len(labels)} labels", f"at most {MOST_LABELS}")
    for key, value in labels.items():
        if not re.fullmatch(LABEL_KEY, key):
            raise InvalidArgument.field("labels", key, f"keys that match {LABEL_KEY}")
        _check_text(f"labels.{key}", value, LONGEST_LABEL)
