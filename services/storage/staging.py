"""Outputs of running jobs: stored, and invisible until the trainer's commit names the attempt that won."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    and_,
    case,
    cast,
    delete,
    func,
    not_,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from guidehall.core.faults import fault_point
from services.storage import fields, garbage, job_logs
from services.storage.database import Database
from services.storage.documents import Document
from services.storage.downloads import Content
from services.storage.intake import Anything, Claim, End, Inspector, Intake, Piece, Stored, keep
from services.storage.jobs import Job, require_holder, require_reader
from services.storage.manifests import Manifest
from services.storage.models import require_digest
from services.storage.settings import LimitSettings
from services.storage.tables import objects, requests, results, staged_objects, staged_results
from services.storage.weights import WeightsInspector

Kind = Literal["artifact", "model", "checkpoint", "log"]
# Of no success: not among the outputs that the trainer names.
_APART = ("checkpoint", "log")
# The name of the result document among the outputs of a job.
RESULT = "result"
# Any number, the same everywhere: together with the job's name, whoever changes its outputs waits in line.
_LOCK = 7_102

_ORDINAL = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Output:
    """What a worker says about an object before it sends it."""

    job: Job
    epoch: int
    kind: Kind
    object_id: str
    claim: Claim
    # Of a model.
    manifest: Manifest | None


@dataclass(frozen=True)
class Checkpoint:
    """Where to go on: an attempt's epoch and a number in it."""

    epoch: int
    ordinal: int


class Staging:
    """The use cases of workers, and of the trainer for what it does not want."""

    def __init__(
        self, database: Database, intake: Intake, collector: garbage.Collector, limits: LimitSettings
    ) -> None:
        self._database = database
        self._intake = intake
        self._collector = collector
        self._limits = limits

    def check(self, principal: Principal, output: Output) -> None:
        """Refuses what can be refused before the content comes.

        Raises:
            PermissionDenied: the token is for another job or another lease.
            InvalidArgument: a field is not as it may be.
        """
        require_holder(principal, output.job, output.epoch)
        _check_id(output.kind, output.object_id)
        if (output.kind == "model") != (output.manifest is not None):
            raise InvalidArgument("manifest: needed for a model, and for nothing else")
        if output.manifest is not None:
            require_digest(output.manifest, output.claim.sha256)
        self._intake.check(output.claim)

    async def stage(self, principal: Principal, output: Output, pieces: AsyncIterator[Piece | End]) -> Stored:
        """Stores one output. Once more under the same name replaces it.

        Raises:
            PermissionDenied: the token is for another job or another lease.
            InvalidArgument: a field or the content is not as it may be or as it was said.
            FailedPrecondition: the job is over.
            ResourceExhausted: the attempt has staged too many.
        """
        self.check(principal, output)
        inspector: Inspector = WeightsInspector() if output.kind == "model" else Anything()
        received = self._intake.receive(output.claim, pieces, inspector, expects_end=False)
        async with received as stored, self._database.transaction() as connection:
            await lock(connection, output.job)
            await drop(connection, _this(output))
            if output.kind == "log":
                # However often a job is tried, it has one.
                await drop(
                    connection, and_(job_logs.staged(output.job), staged_objects.c.epoch < output.epoch)
                )
            await self._require_room(connection, output)
            await keep(connection, stored)
            row = {
                "project": output.job.project,
                "job": output.job.id,
                "epoch": output.epoch,
                "kind": output.kind,
                "object_id": output.object_id,
                "object_key": stored.key,
                "manifest": output.manifest.document.value if output.manifest else None,
            }
            await connection.execute(insert(staged_objects).values(row))
            fault_point("storage.stage.stored")
        fault_point("storage.stage.committed")
        self._collector.wake()
        return stored

    async def stage_result(
        self, principal: Principal, job: Job, epoch: int, pipeline: str, document: Document
    ) -> None:
        """Stores the result document. Once more replaces it.

        Raises:
            PermissionDenied: the token is for another job or another lease.
            FailedPrecondition: the job is over.
        """
        require_holder(principal, job, epoch)
        values: dict[str, Any] = {
            "pipeline": fields.text("pipeline", pipeline, 200),
            "document": document.value,
            "sha256": document.sha256,
            "size_bytes": document.size_bytes,
        }
        row = {"project": job.project, "job": job.id, "epoch": epoch, **values}
        async with self._database.transaction() as connection:
            await lock(connection, job)
            await _require_open(connection, job)
            statement = insert(staged_results).values(row)
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["project", "job", "epoch"], set_={**values, "create_time": func.now()}
                )
            )
            fault_point("storage.stage_result.stored")
        fault_point("storage.stage_result.committed")

    async def checkpoint(self, principal: Principal, job: Job, checkpoint: Checkpoint) -> Content:
        """A checkpoint of an attempt, for a later one of the same job or for a retry of it.

        Raises:
            PermissionDenied: the token is for another job, and does not name this one either.
            NotFound: there is no such checkpoint.
        """
        require_reader(principal, job)
        query = select(objects).join(staged_objects)
        async with self._database.transaction() as connection:
            row = (await connection.execute(query.where(_is_checkpoint(job, checkpoint)))).one_or_none()
        if row is None:
            what = f"checkpoint {checkpoint.ordinal} of epoch {checkpoint.epoch} of {job.name}"
            raise NotFound(f"{what} does not exist", metadata={"resource": job.name})
        return Content(
            row.key, row.size_bytes, row.sha256, row.media_type, f"{checkpoint.ordinal}.checkpoint"
        )

    async def discard(
        self, job: Job, keep_checkpoint: Checkpoint | None, job_ended: bool, log_owner: str | None
    ) -> None:
        """Drops what a job staged: all of it, or what is older than the checkpoint from which it may go on.

        What is newer than that checkpoint stays while the job goes on: the attempt that made it may be
        finishing just now. So do logs, for no later attempt may leave one. A job that has ended, or keeps no
        checkpoint, can stage nothing any more; its log is kept for its owner, unless `log_owner` is None.
        """
        over = job_ended or keep_checkpoint is None
        objects_gone, results_gone = of_job(staged_objects, job), of_job(staged_results, job)
        if keep_checkpoint is not None and job_ended:
            # A retry may go on from it.
            objects_gone = and_(objects_gone, not_(_is_checkpoint(job, keep_checkpoint)))
        elif keep_checkpoint is not None:
            epoch = keep_checkpoint.epoch
            older = or_(staged_objects.c.epoch < epoch, _earlier(keep_checkpoint))
            objects_gone = and_(objects_gone, older, staged_objects.c.kind != "log")
            results_gone = and_(results_gone, staged_results.c.epoch < epoch)
        async with self._database.transaction() as connection:
            await lock(connection, job)
            if over and log_owner is not None:
                await job_logs.keep_newest(connection, job, fields.text("log_owner", log_owner, 256))
            elif over:
                await job_logs.drop_kept(connection, job)
            await drop(connection, objects_gone)
            await connection.execute(delete(staged_results).where(results_gone))
            if over:
                done = {**_discarding(job), "content_digest": "", "resource": job.name}
                await connection.execute(insert(requests).values(done).on_conflict_do_nothing())
            fault_point("storage.discard.stored")
        fault_point("storage.discard.committed")
        self._collector.wake()

    async def _require_room(self, connection: AsyncConnection, output: Output) -> None:
        """Raises unless the output can be added to what its attempt has staged."""
        await _require_open(connection, output.job)
        if output.kind == "log":
            return
        attempt = and_(of_job(staged_objects, output.job), staged_objects.c.epoch == output.epoch)
        most = self._limits.max_staged_objects
        if (await connection.scalar(select(func.count()).where(attempt)) or 0) >= most:
            message = f"the attempt has staged {most} objects, which is the limit"
            raise ResourceExhausted(message, reason="TOO_MANY_OUTPUTS")
        if output.kind == "checkpoint":
            return
        # The trainer names outputs by id alone.
        others = staged_objects.c.kind.not_in([output.kind, *_APART])
        same_id = staged_objects.c.object_id == output.object_id
        kind = await connection.scalar(select(staged_objects.c.kind).where(attempt, same_id, others))
        if kind is not None:
            raise AlreadyExists(f"object_id: {output.object_id!r} is staged as {kind} already")


async def lock(connection: AsyncConnection, job: Job) -> None:
    """Lets nobody else change what the job has staged or published until the transaction ends."""
    statement = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:job))")
    await connection.execute(statement, {"lock": _LOCK, "job": job.name})


def of_job(table: FromClause, job: Job) -> ColumnElement[bool]:
    """The rows of one job."""
    return and_(table.c.project == job.project, table.c.job == job.id)


async def drop(connection: AsyncConnection, condition: ColumnElement[bool]) -> None:
    """Drops staged objects, if the transaction commits."""
    dropped = delete(staged_objects).where(condition).returning(staged_objects.c.object_key)
    await garbage.drop(connection, (await connection.scalars(dropped)).all())


async def _require_open(connection: AsyncConnection, job: Job) -> None:
    published = select(results.c.id).where(results.c.project == job.project, results.c.id == job.id)
    discarded = select(requests.c.resource).filter_by(**_discarding(job))
    over = (await connection.execute(select(published.exists(), discarded.exists()))).one()
    if over[0]:
        raise FailedPrecondition(f"the result of {job.name} is published already", reason="JOB_OVER")
    if over[1]:
        raise FailedPrecondition(f"{job.name} has ended without a result", reason="JOB_OVER")


def _discarding(job: Job) -> dict[str, str]:
    """Among the requests, which are kept about as long as a token can live: that a job was discarded."""
    return {"caller": job.name, "method": "Discard", "request_id": job.id}


def _this(output: Output) -> ColumnElement[bool]:
    return and_(
        of_job(staged_objects, output.job),
        staged_objects.c.epoch == output.epoch,
        staged_objects.c.kind == output.kind,
        staged_objects.c.object_id == output.object_id,
    )


def _is_checkpoint(job: Job, checkpoint: Checkpoint) -> ColumnElement[bool]:
    return and_(
        of_job(staged_objects, job),
        staged_objects.c.epoch == checkpoint.epoch,
        staged_objects.c.kind == "checkpoint",
        staged_objects.c.object_id == str(checkpoint.ordinal),
    )


def _earlier(checkpoint: Checkpoint) -> ColumnElement[bool]:
    # Only of a checkpoint is the id a number.
    ordinal = case((staged_objects.c.kind == "checkpoint", cast(staged_objects.c.object_id, BigInteger)))
    return and_(staged_objects.c.epoch == checkpoint.epoch, ordinal < checkpoint.ordinal)


def _check_id(kind: Kind, object_id: str) -> None:
    match kind:
        case "checkpoint":
            if not _ORDINAL.fullmatch(object_id):
                raise InvalidArgument.field("header.object_id", object_id, "an ordinal in decimal, from 1")
        case "model":
            fields.identifier("header.object_id", object_id)
        case "log":
            if object_id != job_logs.NAME:
                raise InvalidArgument.field("header.object_id", object_id, job_logs.NAME)
        case "artifact":
            # It becomes the last part of a name.
            parts = {"project": names.DEFAULT_PROJECT, "result": "-", "artifact": object_id}
            names.ARTIFACT.parse(names.ARTIFACT.format(**parts), "header.object_id")
    if kind != "checkpoint" and object_id == RESULT:
        raise InvalidArgument.field(
            "header.object_id", object_id, "anything else: it names the result document"
        )
