"""The commit of a job's outputs: once, all of them, exactly what the trainer committed; and later owners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import group_of
from guidehall.core.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from guidehall.core.faults import fault_point
from services.storage import documents, fields, garbage, staging
from services.storage.database import Caller, Database, Mutation
from services.storage.jobs import Job
from services.storage.models import add_version, hand_over, series_of_models
from services.storage.series import Series
from services.storage.tables import artifacts, models, objects, results, staged_objects, staged_results


@dataclass(frozen=True)
class Reference:
    """What the trainer committed under one name."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Commit:
    """What the trainer decided: this attempt won, with these outputs, for this owner."""

    job: Job
    epoch: int
    owner: str
    outputs: Mapping[str, Reference]


@dataclass(frozen=True)
class Promoted:
    """Names of what became visible."""

    result: str
    model_versions: Sequence[str]


class Promotion:
    """The use cases."""

    def __init__(self, database: Database, collector: garbage.Collector) -> None:
        self._database = database
        self._collector = collector

    async def promote(self, caller: Caller, commit: Commit) -> Promoted:
        """Makes the outputs visible; a repeat changes nothing and gives the same answer.

        Raises:
            FailedPrecondition: what is staged is not what was committed, or another attempt was promoted.
        """
        if staging.RESULT not in commit.outputs:
            raise InvalidArgument.field("outputs", sorted(commit.outputs), f"must name {staging.RESULT!r}")
        fields.text("owner", commit.owner, 256)
        async with self._database.mutation(caller) as mutation:
            await staging.lock(mutation.connection, commit.job)
            done = await _promoted_before(mutation.connection, commit)
            if done is not None:
                return done
            # Everything that the job staged leaves staging: what was committed to be seen, the rest for good.
            document = await _take_document(mutation.connection, commit)
            outputs, others = await _take_outputs(mutation.connection, commit)
            await garbage.drop(mutation.connection, others)
            promoted = await self._publish(mutation, commit, document, outputs)
            mutation.record(promoted.result)
            fault_point("storage.promote.stored")
        fault_point("storage.promote.committed")
        if others:
            self._collector.wake()
        return promoted

    async def claim(self, caller: Caller, job: Job, owner: str) -> None:
        """Makes the result of a guest's job, and the models that only it published to, somebody's.

        A repeat changes nothing, and neither does a claim of what has an owner or is not published.

        Raises:
            InvalidArgument: nobody is named.
        """
        if not fields.text("owner", owner, 256):
            raise InvalidArgument.field("owner", owner, "who has claimed the job")
        statement = (
            update(results)
            .filter_by(project=job.project, id=job.id, owner="")
            .values(owner=owner)
            .returning(results.c.model_versions)
        )
        async with self._database.mutation(caller) as mutation:
            await staging.lock(mutation.connection, job)
            versions = await mutation.connection.scalar(statement)
            if versions is not None:
                await hand_over(mutation, job.name, versions, owner)
                mutation.record(names.RESULT.format(project=job.project, result=job.id))
            fault_point("storage.claim.stored")
        fault_point("storage.claim.committed")

    async def _publish(
        self, mutation: Mutation, commit: Commit, document: Any, outputs: Sequence[Any]
    ) -> Promoted:
        connection = mutation.connection
        # In one order everywhere: two jobs that publish the same models must not wait for each other.
        trained = sorted((row for row in outputs if row.kind == "model"), key=lambda row: str(row.object_id))
        versions = [await _publish_model(mutation, commit, row) for row in trained]
        values = {
            "project": commit.job.project,
            "id": commit.job.id,
            "lease_epoch": commit.epoch,
            "pipeline": document.pipeline,
            "document": document.document,
            "document_sha256": document.sha256,
            "model_versions": versions,
            "owner": commit.owner,
        }
        await connection.execute(insert(results).values(values))
        files = [
            {
                "project": commit.job.project,
                "result": commit.job.id,
                "id": row.object_id,
                "object_key": row.object_key,
            }
            for row in outputs
            if row.kind == "artifact"
        ]
        if files:
            await connection.execute(insert(artifacts), files)
        return Promoted(names.RESULT.format(project=commit.job.project, result=commit.job.id), versions)


async def _promoted_before(connection: AsyncConnection, commit: Commit) -> Promoted | None:
    job = commit.job
    query = select(results.c.lease_epoch, results.c.model_versions)
    row = (
        await connection.execute(query.where(results.c.project == job.project, results.c.id == job.id))
    ).one_or_none()
    if row is None:
        return None
    if row.lease_epoch != commit.epoch:
        raise FailedPrecondition(
            f"{job.name}: epoch {row.lease_epoch} was promoted, so epoch {commit.epoch} cannot be",
            reason="PROMOTED_BEFORE",
        )
    return Promoted(names.RESULT.format(project=job.project, result=job.id), row.model_versions)


async def _take_document(connection: AsyncConnection, commit: Commit) -> Any:
    """The document that the trainer committed, checked against its reference."""
    taken = delete(staged_results).where(staging.of_job(staged_results, commit.job))
    rows = (await connection.execute(taken.returning(*staged_results.c))).all()
    row = next((row for row in rows if row.epoch == commit.epoch), None)
    _require_same(commit, staging.RESULT, row)
    return row


async def _take_outputs(connection: AsyncConnection, commit: Commit) -> tuple[list[Any], list[str]]:
    """What the trainer committed, checked against its references, and the keys of the other objects."""
    taken = delete(staged_objects).where(
        staging.of_job(staged_objects, commit.job), staged_objects.c.object_key == objects.c.key
    )
    columns = (*staged_objects.c, objects.c.sha256, objects.c.size_bytes)
    rows = (await connection.execute(taken.returning(*columns))).all()
    outputs_of_epoch = (row for row in rows if row.epoch == commit.epoch)
    staged = {row.object_id: row for row in outputs_of_epoch if row.kind in ("artifact", "model")}
    chosen = [name for name in commit.outputs if name != staging.RESULT]
    for name in chosen:
        _require_same(commit, name, staged.get(name))
    outputs = [staged[name] for name in chosen]
    published = {row.object_key for row in outputs}
    return outputs, [row.object_key for row in rows if row.object_key not in published]


def _require_same(commit: Commit, name: str, row: Any) -> None:
    committed = commit.outputs[name]
    if row is None or Reference(row.sha256, row.size_bytes) != committed:
        found = "nothing" if row is None else f"{row.size_bytes} bytes with SHA-256 {row.sha256}"
        raise FailedPrecondition(
            f"outputs[{name!r}]: {committed.size_bytes} bytes with SHA-256 {committed.sha256} were "
            f"committed, but {found} is staged at epoch {commit.epoch}",
            reason="OUTPUT_MISMATCH",
            metadata={"output": name},
        )


async def _publish_model(mutation: Mutation, commit: Commit, row: Any) -> str:
    """Makes a staged model the next version of the series that its id names."""
    series = await _series(mutation.connection, commit, row.object_id)
    digest = documents.digest(row.manifest)
    return await add_version(mutation, series, row.manifest, digest, row.object_key, job=commit.job.name)


async def _is_taken(connection: AsyncConnection, project: str, model: str) -> bool:
    known = select(exists().where(models.c.project == project, models.c.id == model))
    return bool(await connection.scalar(known))


async def _series(connection: AsyncConnection, commit: Commit, model: str) -> Series:
    job = commit.job
    # In a group's project the models are the group's, as the job was.
    shared = group_of(job.project) != ""
    # Guests share no name, which nobody of them could be given with his job.
    if commit.owner or not await _is_taken(connection, job.project, model):
        try:
            return await series_of_models.open(connection, job.project, model, commit.owner, of_others=shared)
        except (AlreadyExists, FailedPrecondition):
            # Somebody else's name, or a deleted one. The job has succeeded and its model must go somewhere.
            pass
    own = f"{model[:30]}-{job.id.replace('-', '')}"
    return await series_of_models.open(connection, job.project, own, commit.owner, of_others=shared)
