"""Which dataset and model version each user's real-data runs read, role by role."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.access import require_visible
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from services.storage.database import Caller, Database
from services.storage.documents import Document
from services.storage.etags import require_etag
from services.storage.tables import upload_roles

MAX_ROLES = 64
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class UploadRoles:
    """One user's document; without time and with an empty etag while it was never written."""

    user: str
    dataset_versions: Mapping[str, str]
    model_versions: Mapping[str, str]
    settings: Mapping[str, Any]
    update_time: datetime | None
    etag: str


class UploadRolesUseCases:
    """The use cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, principal: Principal, name: str) -> UploadRoles:
        """A user's document.

        Raises:
            NotFound: another user's.
        """
        user = names.UPLOAD_ROLES.parse(name)["user"]
        require_visible(principal, user, name)
        async with self._database.transaction() as connection:
            return await _read(connection, user)

    async def replace(
        self,
        caller: Caller,
        name: str,
        dataset_versions: Mapping[str, str],
        model_versions: Mapping[str, str],
        settings: Document,
        etag: str,
    ) -> UploadRoles:
        """Replaces a user's document.

        Raises:
            NotFound: another user's.
            InvalidArgument: a field is not as it may be.
            Aborted: it has changed since.
        """
        user = names.UPLOAD_ROLES.parse(name, "upload_roles.name")["user"]
        require_visible(caller.principal, user, name)
        _check("upload_roles.dataset_versions", dataset_versions, names.DATASET_VERSION)
        _check("upload_roles.model_versions", model_versions, names.MODEL_VERSION)
        values = {
            "dataset_versions": dict(dataset_versions),
            "model_versions": dict(model_versions),
            "settings": settings.value,
        }
        empty = {"user_id": user, "dataset_versions": {}, "model_versions": {}, "settings": {}, "revision": 0}
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            # So that there is a row to lock.
            await connection.execute(insert(upload_roles).values(empty).on_conflict_do_nothing())
            before = await _read(connection, user, lock=True)
            require_etag(etag, before.etag)
            changed = upload_roles.update().where(upload_roles.c.user_id == user)
            times = {"revision": upload_roles.c.revision + 1, "update_time": func.now()}
            await connection.execute(changed.values(**values, **times))
            after = await _read(connection, user)
            mutation.record(name, before.etag, after.etag)
        return after


def _check(field: str, roles: Mapping[str, str], pattern: names.Pattern) -> None:
    if len(roles) > MAX_ROLES:
        raise InvalidArgument.field(field, f"{len(roles)} roles", f"at most {MAX_ROLES}")
    for role, version in roles.items():
        if not _ROLE.fullmatch(role):
            raise InvalidArgument.field(field, role, "roles such as nr_train: a-z, 0-9 and _, at most 63")
        ids = pattern.parse(version, f"{field}.{role}")
        named = names.model_version_of if pattern is names.MODEL_VERSION else names.version_of
        named(ids, f"{field}.{role}")


async def _read(connection: AsyncConnection, user: str, lock: bool = False) -> UploadRoles:
    query = select(upload_roles).where(upload_roles.c.user_id == user)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    if row is None:
        return UploadRoles(user, {}, {}, {}, None, "")
    etag = str(row.revision) if row.revision else ""
    return UploadRoles(user, row.dataset_versions, row.model_versions, row.settings, row.update_time, etag)
