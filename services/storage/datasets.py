"""Datasets: series of immutable files; a job pins one version."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import group_of, owner_for, require_project, sees_everything
from guidehall.core.auth import Principal
from guidehall.core.errors import NotFound
from services.storage import fields, outbox
from services.storage.database import Caller, Database
from services.storage.downloads import Content
from services.storage.intake import Claim, End, Intake, Piece, Stored, keep
from services.storage.lists import Paging, page
from services.storage.requests import Request
from services.storage.series import Series, SeriesTable
from services.storage.sniff import DataInspector
from services.storage.tables import dataset_versions, datasets, objects
from services.storage.usage import Quota


@dataclass(frozen=True)
class DatasetVersion:
    """One file, and what it turned out to be."""

    name: str
    version: int
    content: Content
    content_info: Mapping[str, Any]
    labels: Mapping[str, str]
    owner: str
    readers: Sequence[str]
    create_time: datetime


@dataclass(frozen=True)
class NewDataset:
    """What a caller says about a series that it makes."""

    project: str
    id: str
    display_name: str
    description: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Upload:
    """What a caller says about a version before it sends it."""

    project: str
    dataset: str
    filename: str
    labels: Mapping[str, str]
    claim: Claim
    request_id: str


class Datasets:
    """The use cases."""

    def __init__(self, database: Database, intake: Intake, quota: Quota) -> None:
        self._database = database
        self._intake = intake
        self._quota = quota
        self._series = SeriesTable(datasets, names.DATASET, "dataset", {})

    def name(self, series: Series) -> str:
        """A dataset's resource name."""
        return self._series.name(series)

    async def create(self, caller: Caller, new: NewDataset, request_id: str) -> Series:
        """Makes an empty series; an id is chosen when none is given.

        Raises:
            AlreadyExists: the name is taken.
            InvalidArgument: a field is not as it may be.
        """
        require_project(caller.principal, new.project)
        values = {
            "project": new.project,
            "id": fields.identifier("dataset_id", new.id) if new.id else f"dataset-{secrets.token_hex(6)}",
            "display_name": fields.text("dataset.display_name", new.display_name, 200),
            "description": fields.text("dataset.description", new.description, 10_000),
            "labels": fields.labels("dataset.labels", new.labels),
            "owner": owner_for(caller.principal),
        }
        said = ("project", "display_name", "description", "labels")
        request = Request(caller, request_id, new.id, *(values[key] for key in said))
        async with self._database.mutation(caller) as mutation:
            if first := await request.first_made(mutation.connection):
                ids = names.DATASET.parse(first)
                return await self._series.find(
                    mutation.connection, caller.principal, ids["project"], ids["dataset"]
                )
            series = await self._series.create(mutation.connection, values)
            name = self._series.name(series)
            await request.made(mutation.connection, name)
            mutation.record(name, etag_after=series.etag)
        return series

    async def get(self, principal: Principal, name: str) -> Series:
        """One series, deleted or not.

        Raises:
            NotFound: there is none for the caller.
        """
        ids = names.DATASET.parse(name)
        async with self._database.transaction() as connection:
            return await self._series.find(connection, principal, ids["project"], ids["dataset"])

    async def page(
        self, principal: Principal, project: str, filter_text: str, show_deleted: bool, paging: Paging
    ) -> tuple[list[Series], str]:
        """One page, newest first, and the token of the next."""
        async with self._database.transaction() as connection:
            return await self._series.page(connection, principal, project, filter_text, show_deleted, paging)

    async def update(self, caller: Caller, name: str, values: Mapping[str, Any], etag: str) -> Series:
        """Changes what is said about a series.

        Raises:
            NotFound: there is none for the caller, or it is deleted.
            Aborted: it has changed since.
        """
        ids = names.DATASET.parse(name, "dataset.name")
        async with self._database.mutation(caller) as mutation:
            return await self._series.update(mutation, ids["project"], ids["dataset"], values, etag)

    async def delete(self, caller: Caller, name: str, etag: str) -> Series:
        """Hides a series. Versions that jobs pinned stay readable to these jobs.

        Raises:
            NotFound: there is none for the caller.
            Aborted: it has changed since.
        """
        ids = names.DATASET.parse(name)
        async with self._database.mutation(caller) as mutation:
            series, _ = await self._series.set_deleted(mutation, ids["project"], ids["dataset"], True, etag)
        return series

    async def share(self, caller: Caller, name: str, add: Sequence[str], remove: Sequence[str]) -> Series:
        """Changes who else may read a series; once more changes nothing.

        Raises:
            NotFound: there is none for the caller.
            PermissionDenied: the caller may only read it.
            InvalidArgument: not how readers are named, or too many.
        """
        ids = names.DATASET.parse(name)
        async with self._database.mutation(caller) as mutation:
            series, _ = await self._series.share(mutation, ids["project"], ids["dataset"], add, remove)
        return series

    def check(self, upload: Upload) -> None:
        """Refuses what can be refused before the content comes.

        Raises:
            InvalidArgument: a field is not as it may be.
        """
        fields.identifier("header.parent", upload.dataset)
        fields.filename("header.filename", upload.filename)
        fields.labels("header.labels", upload.labels)
        self._intake.check(upload.claim)

    async def upload(
        self, caller: Caller, upload: Upload, pieces: AsyncIterator[Piece | End]
    ) -> DatasetVersion:
        """Adds a version, in a series that is made when it is not there. All of it, or nothing.

        Raises:
            InvalidArgument: a field or the content is not as it may be or as it was said.
            AlreadyExists: the series is somebody else's.
            FailedPrecondition: the series is deleted.
            ResourceExhausted: it would be more than the caller may have stored.
        """
        self.check(upload)
        require_project(caller.principal, upload.project)
        owner = owner_for(caller.principal)
        await self._quota.require_room_soon(caller.principal, upload.claim.size_bytes)
        inspector = DataInspector()
        async with self._intake.receive(upload.claim, pieces, inspector, expects_end=True) as stored:
            info = inspector.finish(stored.size_bytes)
            content = (upload.project, upload.dataset, upload.filename, dict(upload.labels), stored.sha256)
            request = Request(caller, upload.request_id, *content)
            async with self._database.mutation(caller) as mutation:
                connection = mutation.connection
                if first := await request.first_made(connection):
                    return await self._read(connection, caller.principal, first)
                series = await self._series.open(
                    connection,
                    upload.project,
                    upload.dataset,
                    owner,
                    of_others=sees_everything(caller.principal) or group_of(upload.project) != "",
                )
                await self._quota.require_room(connection, series.owner, stored.size_bytes)
                version = await self._series.advance(connection, series)
                await self._insert(connection, upload, version, stored, info)
                name = names.DATASET_VERSION.format(
                    project=upload.project, dataset=upload.dataset, version=version
                )
                await request.made(connection, name)
                mutation.record(name)
                mutation.announce(outbox.DATASET_VERSION_CREATED, dataset_version=name)
                return await self._read(connection, caller.principal, name)

    async def _insert(
        self,
        connection: AsyncConnection,
        upload: Upload,
        version: int,
        stored: Stored,
        info: Mapping[str, Any],
    ) -> None:
        await keep(connection, stored)
        row = {
            "project": upload.project,
            "dataset": upload.dataset,
            "version": version,
            "object_key": stored.key,
            "filename": upload.filename,
            "content_info": info,
            "labels": dict(upload.labels),
        }
        await connection.execute(insert(dataset_versions).values(row))

    async def get_version(self, principal: Principal, name: str) -> DatasetVersion:
        """A version, or the newest by "…/versions/latest".

        Raises:
            NotFound: there is none for the caller.
        """
        async with self._database.transaction() as connection:
            return await self._read(connection, principal, name)

    async def page_of_versions(
        self, principal: Principal, parent: str, paging: Paging
    ) -> tuple[list[DatasetVersion], str]:
        """One page of a series' versions, newest first, and the token of the next.

        Raises:
            NotFound: there is no such series for the caller.
        """
        ids = names.DATASET.parse(parent, "parent")
        async with self._database.transaction() as connection:
            series = await self._series.find_living(connection, principal, ids["project"], ids["dataset"])
            query = _versions().where(
                dataset_versions.c.project == series.project, dataset_versions.c.dataset == series.id
            )
            rows, token = await page(
                connection, query, dataset_versions.c.version, paging, "versions", parent
            )
        return [_version(row._mapping) for row in rows], token

    async def _read(self, connection: AsyncConnection, principal: Principal, name: str) -> DatasetVersion:
        ids = names.DATASET_VERSION.parse(name)
        number = names.version_of(ids)
        if principal.kind == "job":
            # What the job pinned, and nothing else; whether the series still shows does not matter.
            if name not in principal.inputs:
                raise NotFound.named(name)
        else:
            series = await self._series.find_living(connection, principal, ids["project"], ids["dataset"])
            number = number or series.latest_version
        query = _versions().where(
            dataset_versions.c.project == ids["project"],
            dataset_versions.c.dataset == ids["dataset"],
            dataset_versions.c.version == number,
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound.named(name)
        return _version(row._mapping)


def _versions() -> Select[Any]:
    return (
        select(
            dataset_versions,
            objects.c.size_bytes,
            objects.c.sha256,
            objects.c.media_type,
            datasets.c.owner,
            datasets.c.readers,
        )
        .join(objects, objects.c.key == dataset_versions.c.object_key)
        .join(datasets)
    )


def _version(row: Any) -> DatasetVersion:
    name = names.DATASET_VERSION.format(
        project=row["project"], dataset=row["dataset"], version=row["version"]
    )
    content = Content(row["object_key"], row["size_bytes"], row["sha256"], row["media_type"], row["filename"])
    return DatasetVersion(
        name,
        row["version"],
        content,
        row["content_info"],
        row["labels"],
        row["owner"],
        row["readers"],
        row["create_time"],
    )
