"""Models: series of immutable versions, each a manifest and a safetensors file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, cast, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import group_of, owner_for, require_project, sees_everything
from guidehall.core.auth import Principal
from guidehall.core.errors import FailedPrecondition, InvalidArgument, NotFound
from guidehall.core.filters import Term
from services.storage import fields, outbox
from services.storage.database import Caller, Database, Mutation
from services.storage.downloads import Content
from services.storage.intake import Claim, End, Intake, Piece, Stored, keep
from services.storage.lists import Field, LabelField, Paging, TextField, conditions, page
from services.storage.manifests import Manifest
from services.storage.requests import Request
from services.storage.series import Series, SeriesTable, visible
from services.storage.tables import model_versions, models, objects
from services.storage.usage import Quota
from services.storage.weights import WeightsInspector

WEIGHTS_FILENAME = "model.safetensors"
# What lists the versions of all models.
ANY = "-"
MAX_TAGS = 50


@dataclass(frozen=True)
class ModelVersion:
    """What was published."""

    name: str
    version: int
    architecture: str
    manifest: Mapping[str, Any]
    manifest_sha256: str
    content: Content
    job: str
    labels: Mapping[str, str]
    owner: str
    readers: Sequence[str]
    tags: Sequence[str]
    pinned: bool
    create_time: datetime


@dataclass(frozen=True)
class Publication:
    """What a caller says about a version before it sends the weights."""

    project: str
    model: str
    manifest: Manifest
    labels: Mapping[str, str]
    claim: Claim
    request_id: str


@dataclass(frozen=True)
class _AnyVersionsArchitecture:
    """Asks a series for the architecture of its versions."""

    operators: tuple[str, ...] = ("=",)

    def condition(self, term: Term) -> ColumnElement[bool]:
        """Some version has it."""
        versions = model_versions.c
        return exists().where(
            versions.project == models.c.project,
            versions.model == models.c.id,
            versions.architecture == term.value,
        )


_VERSION_FILTERS: dict[str, Field] = {
    "architecture": TextField(model_versions.c.architecture),
    "owner": TextField(models.c.owner),
    "job": TextField(model_versions.c.job),
    "labels.*": LabelField(model_versions.c.labels),
}

series_of_models = SeriesTable(models, names.MODEL, "model", {"architecture": _AnyVersionsArchitecture()})


async def add_version(
    mutation: Mutation,
    series: Series,
    manifest: Mapping[str, Any],
    manifest_sha256: str,
    object_key: str,
    *,
    job: str = "",
    labels: Mapping[str, str] | None = None,
) -> str:
    """Makes a kept object the next version of a locked series.

    Returns:
        The version's name.
    """
    version = await series_of_models.advance(mutation.connection, series)
    row = {
        "project": series.project,
        "model": series.id,
        "version": version,
        "architecture": manifest["architecture"],
        "manifest": manifest,
        "manifest_sha256": manifest_sha256,
        "object_key": object_key,
        "job": job,
        "labels": dict(labels or {}),
    }
    await mutation.connection.execute(insert(model_versions).values(row))
    name = names.MODEL_VERSION.format(project=series.project, model=series.id, version=version)
    mutation.announce(
        outbox.MODEL_PUBLISHED,
        model_version=name,
        architecture=manifest["architecture"],
        weights_sha256=manifest["weights_sha256"],
    )
    return name


async def hand_over(mutation: Mutation, job: str, versions: Sequence[str], owner: str) -> None:
    """Gives a guest's models to an owner, those in which nothing is but what `job` has published."""
    for ids in sorted((names.MODEL_VERSION.parse(name) for name in versions), key=lambda ids: ids["model"]):
        columns = model_versions.c
        here = and_(columns.project == models.c.project, columns.model == models.c.id)
        others = exists().where(here, columns.job != job)
        statement = (
            update(models)
            .filter_by(project=ids["project"], id=ids["model"], owner="")
            .where(~others)
            .values(owner=owner, revision=models.c.revision + 1, update_time=func.now())
            .returning(models.c.revision)
        )
        revision = await mutation.connection.scalar(statement)
        if revision is not None:
            name = names.MODEL.format(project=ids["project"], model=ids["model"])
            mutation.record(name, str(revision - 1), str(revision))


class Models:
    """The use cases."""

    def __init__(self, database: Database, intake: Intake, quota: Quota) -> None:
        self._database = database
        self._intake = intake
        self._quota = quota

    async def get(self, principal: Principal, name: str) -> Series:
        """One series, deleted or not.

        Raises:
            NotFound: there is none for the caller.
        """
        ids = names.MODEL.parse(name)
        async with self._database.transaction() as connection:
            return await series_of_models.find(connection, principal, ids["project"], ids["model"])

    async def page(
        self, principal: Principal, project: str, filter_text: str, show_deleted: bool, paging: Paging
    ) -> tuple[list[Series], str]:
        """One page, newest first, and the token of the next."""
        async with self._database.transaction() as connection:
            return await series_of_models.page(
                connection, principal, project, filter_text, show_deleted, paging
            )

    async def update(self, caller: Caller, name: str, values: Mapping[str, Any], etag: str) -> Series:
        """Changes what is said about a model.

        Raises:
            NotFound: there is none for the caller, or it is deleted.
            Aborted: it has changed since.
        """
        ids = names.MODEL.parse(name, "model.name")
        async with self._database.mutation(caller) as mutation:
            return await series_of_models.update(mutation, ids["project"], ids["model"], values, etag)

    async def set_deleted(self, caller: Caller, name: str, deleted: bool, etag: str = "") -> Series:
        """Hides a model from lists and serving, or brings it back.

        Raises:
            NotFound: there is none for the caller.
            Aborted: it has changed since.
            FailedPrecondition: a version of it is pinned.
        """
        ids = names.MODEL.parse(name)
        async with self._database.mutation(caller) as mutation:
            if deleted:
                # Locked from here on: nobody pins a version meanwhile.
                await series_of_models.lock(mutation, ids["project"], ids["model"])
                await _require_unpinned(mutation.connection, name)
            series, changed = await series_of_models.set_deleted(
                mutation, ids["project"], ids["model"], deleted, etag
            )
            if changed:
                subject = outbox.MODEL_DELETED if deleted else outbox.MODEL_UNDELETED
                mutation.announce(subject, model=name, deleted=deleted)
        return series

    async def share(self, caller: Caller, name: str, add: Sequence[str], remove: Sequence[str]) -> Series:
        """Changes who else may read a model and ask it for predictions; once more changes nothing.

        Raises:
            NotFound: there is none for the caller.
            PermissionDenied: the caller may only read it.
            InvalidArgument: not how readers are named, or too many.
        """
        ids = names.MODEL.parse(name)
        async with self._database.mutation(caller) as mutation:
            series, changed = await series_of_models.share(
                mutation, ids["project"], ids["model"], add, remove
            )
            if changed and series.delete_time is None:
                # Who serves it reads again who may ask it.
                mutation.announce(outbox.MODEL_UNDELETED, model=name, deleted=False)
        return series

    async def set_tag(self, caller: Caller, name: str, tag: str, version: int, etag: str) -> Series:
        """Makes a tag point to a version; once more changes nothing.

        Raises:
            NotFound: there is no such model or version for the caller, or the model is deleted.
            PermissionDenied: the caller may only read it.
            Aborted: the model has changed since.
            InvalidArgument: nothing that a tag may be called, or one too many.
        """
        ids = names.MODEL.parse(name)
        names.tag(tag)
        if version < 1:
            raise InvalidArgument.field("version", version, "the number of a version, from 1")
        async with self._database.mutation(caller) as mutation:
            series = await series_of_models.lock_living(mutation, ids["project"], ids["model"], etag)
            if version > series.latest_version:
                missing = names.MODEL_VERSION.format(**ids, version=version)
                raise NotFound.named(missing)
            if series.tags.get(tag) == version:
                return series
            tags = {**series.tags, tag: version}
            if len(tags) > MAX_TAGS:
                raise InvalidArgument.field("tag", tag, f"at most {MAX_TAGS} tags of a model")
            mutation.announce(outbox.MODEL_CHANGED, model=name)
            return await series_of_models.change(mutation, series, tags=tags)

    async def delete_tag(self, caller: Caller, name: str, tag: str, etag: str) -> Series:
        """Takes a tag away; one that is not there is no error.

        Raises:
            NotFound: there is no such model for the caller, or it is deleted.
            PermissionDenied: the caller may only read it.
            Aborted: the model has changed since.
            InvalidArgument: nothing that a tag may be called.
        """
        ids = names.MODEL.parse(name)
        names.tag(tag)
        async with self._database.mutation(caller) as mutation:
            series = await series_of_models.lock_living(mutation, ids["project"], ids["model"], etag)
            if tag not in series.tags:
                return series
            tags = {other: version for other, version in series.tags.items() if other != tag}
            mutation.announce(outbox.MODEL_CHANGED, model=name)
            return await series_of_models.change(mutation, series, tags=tags)

    async def set_pinned(self, caller: Caller, name: str, pinned: bool) -> ModelVersion:
        """Has a version kept in memory where models are served, or no longer; once more changes nothing.

        Raises:
            NotFound: there is no such version for the caller, or the model is deleted.
            PermissionDenied: the caller may only read it.
        """
        ids = names.MODEL_VERSION.parse(name, "model_version.name")
        names.model_version_of(ids, "model_version.name")
        async with self._database.mutation(caller) as mutation:
            series = await series_of_models.lock_living(mutation, ids["project"], ids["model"])
            found = await self._read(mutation.connection, caller.principal, name)
            if found.pinned == pinned:
                return found
            await mutation.connection.execute(
                update(model_versions)
                .filter_by(project=series.project, model=series.id, version=found.version)
                .values(pinned=pinned)
            )
            mutation.record(found.name)
            mutation.announce(outbox.MODEL_CHANGED, model=series_of_models.name(series))
        return replace(found, pinned=pinned)

    def check(self, publication: Publication) -> None:
        """Refuses what can be refused before the weights come.

        Raises:
            InvalidArgument: a field is not as it may be.
        """
        fields.identifier("header.parent", publication.model)
        fields.labels("header.labels", publication.labels)
        require_digest(publication.manifest, publication.claim.sha256)
        self._intake.check(publication.claim)

    async def publish(
        self, caller: Caller, publication: Publication, pieces: AsyncIterator[Piece | End]
    ) -> ModelVersion:
        """Adds a version outside a job, in a series that is made when it is not there. All of it, or nothing.

        Raises:
            InvalidArgument: a field or the weights are not as they may be or as was said.
            AlreadyExists: the series is somebody else's.
            FailedPrecondition: the series is deleted.
            ResourceExhausted: it would be more than the caller may have stored.
        """
        self.check(publication)
        require_project(caller.principal, publication.project)
        await self._quota.require_room_soon(caller.principal, publication.claim.size_bytes)
        async with self._intake.receive(
            publication.claim, pieces, WeightsInspector(), expects_end=False
        ) as stored:
            return await self._add(caller, publication, stored)

    async def _add(self, caller: Caller, publication: Publication, stored: Stored) -> ModelVersion:
        project, model = publication.project, publication.model
        document = publication.manifest.document
        content = (project, model, document.sha256, dict(publication.labels), stored.sha256)
        request = Request(caller, publication.request_id, *content)
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            if first := await request.first_made(connection):
                return await self._read(connection, caller.principal, first)
            owner = owner_for(caller.principal)
            of_others = sees_everything(caller.principal) or group_of(project) != ""
            series = await series_of_models.open(connection, project, model, owner, of_others=of_others)
            await self._quota.require_room(connection, series.owner, stored.size_bytes)
            await keep(connection, stored)
            name = await add_version(
                mutation, series, document.value, document.sha256, stored.key, labels=publication.labels
            )
            await request.made(connection, name)
            mutation.record(name)
            return await self._read(connection, caller.principal, name)

    async def get_version(self, principal: Principal, name: str) -> ModelVersion:
        """A version by its number or a tag, or the newest by "…/versions/latest".

        Raises:
            NotFound: there is none for the caller, or the model is deleted.
        """
        async with self._database.transaction() as connection:
            return await self._read(connection, principal, name)

    async def page_of_versions(
        self, principal: Principal, parent: str, filter_text: str, paging: Paging
    ) -> tuple[list[ModelVersion], str]:
        """One page of versions, newest first, and the token of the next; ".../models/-" means any model.

        Raises:
            NotFound: there is no such model for the caller.
        """
        ids = names.MODEL.parse(parent, "parent")
        query = _versions().where(
            model_versions.c.project == ids["project"],
            models.c.delete_time.is_(None),
            *visible(principal, ids["project"], models),
            *conditions(filter_text, _VERSION_FILTERS),
        )
        async with self._database.transaction() as connection:
            if ids["model"] != ANY:
                series = await series_of_models.find_living(
                    connection, principal, ids["project"], ids["model"]
                )
                query = query.where(model_versions.c.model == series.id)
            bound = ("versions", parent, filter_text, principal.subject)
            weight = func.octet_length(cast(model_versions.c.manifest, Text))
            rows, token = await page(connection, query, model_versions.c.seq, paging, *bound, weight=weight)
        return [_version(row._mapping) for row in rows], token

    async def _read(self, connection: AsyncConnection, principal: Principal, name: str) -> ModelVersion:
        ids = names.MODEL_VERSION.parse(name)
        wanted = names.model_version_of(ids)
        series = await series_of_models.find_living(connection, principal, ids["project"], ids["model"])
        number = series.tags.get(wanted, 0) if isinstance(wanted, str) else wanted or series.latest_version
        query = _versions().where(
            model_versions.c.project == series.project,
            model_versions.c.model == series.id,
            model_versions.c.version == number,
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound.named(name)
        return _version(row._mapping)


async def _require_unpinned(connection: AsyncConnection, name: str) -> None:
    """Raises FailedPrecondition if a version of a model is pinned."""
    columns = model_versions.c
    query = select(columns.version).filter_by(**names.MODEL.parse(name), pinned=True)
    version = await connection.scalar(query.order_by(columns.version).limit(1))
    if version is not None:
        pinned = f"{name}/versions/{version}"
        raise FailedPrecondition(
            f"{pinned} is pinned: unpin it first", reason="PINNED", metadata={"resource": pinned}
        )


def require_digest(manifest: Manifest, sha256: str | None) -> None:
    """Raises InvalidArgument unless the manifest speaks of the weights that come with it."""
    if manifest.weights_sha256 != sha256:
        allowed = f"{sha256!r}, the digest of the weights that come with it"
        raise InvalidArgument.field("manifest.weights_sha256", manifest.weights_sha256, allowed)


def _versions() -> Select[Any]:
    return (
        select(
            model_versions,
            objects.c.size_bytes,
            objects.c.sha256,
            objects.c.media_type,
            models.c.owner,
            models.c.readers,
            models.c.tags,
        )
        .join(objects, objects.c.key == model_versions.c.object_key)
        .join(models)
    )


def _version(row: Any) -> ModelVersion:
    content = Content(
        row["object_key"], row["size_bytes"], row["sha256"], row["media_type"], WEIGHTS_FILENAME
    )
    return ModelVersion(
        name=names.MODEL_VERSION.format(project=row["project"], model=row["model"], version=row["version"]),
        version=row["version"],
        architecture=row["architecture"],
        manifest=row["manifest"],
        manifest_sha256=row["manifest_sha256"],
        content=content,
        job=row["job"],
        labels=row["labels"],
        owner=row["owner"],
        readers=row["readers"],
        tags=sorted(tag for tag, version in row["tags"].items() if version == row["version"]),
        pinned=row["pinned"],
        create_time=row["create_time"],
    )
