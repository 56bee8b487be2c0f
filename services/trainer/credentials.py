"""Credentials of workers: each is bound to one pool, is shown once, and can be revoked."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal, TokenIssuer
from guidehall.core.errors import InvalidArgument, NotFound, Unauthenticated
from services.trainer.audit import POOLS_SERVICE, audit
from services.trainer.database import Database, Unit
from services.trainer.journal import seconds
from services.trainer.tables import worker_credentials

LONGEST_NOTE = 200
# Part of what the call promises; who wants another time says so with it.
USUAL_TTL_SECONDS = 365 * 86_400
LONGEST_TTL_SECONDS = 10 * USUAL_TTL_SECONDS


@dataclass(frozen=True)
class Credential:
    """A new one: its token is not kept."""

    id: str
    token: str


@dataclass(frozen=True)
class StoredCredential:
    """What is known of one."""

    id: str
    pool: str
    note: str
    create_time: datetime
    expire_time: datetime
    revoke_time: datetime | None

    @classmethod
    def of(cls, row: Mapping[Any, Any]) -> StoredCredential:
        """The credential in a row of the table."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.WORKER_CREDENTIAL.format(pool=self.pool, credential=self.id)


async def enrol(
    database: Database, issuer: TokenIssuer, pool: str, ttl_seconds: float, note: str
) -> Credential:
    """Makes a credential for workers of a pool, for whoever has the database and the key."""
    async with database.unit() as unit:
        stored = await _store(unit, pool, ttl_seconds, note)
    return Credential(stored.id, _token(issuer, stored, ttl_seconds))


async def revoke(database: Database, credential_id: str) -> None:
    """Ends a credential; harmless to repeat.

    Raises:
        NotFound: there is none of this id.
    """
    try:
        known = str(uuid.UUID(credential_id))
    except ValueError:
        raise InvalidArgument.field("credential", credential_id, "the id of a credential") from None
    async with database.unit() as unit:
        if await _end(unit, worker_credentials.c.id == known) is None:
            raise NotFound(f"there is no credential {credential_id}")


class Credentials:
    """The table of credentials, for operators."""

    def __init__(self, database: Database, issuer: TokenIssuer) -> None:
        self._database = database
        self._issuer = issuer

    async def create(
        self, principal: Principal, pool: str, ttl_seconds: int, note: str
    ) -> tuple[StoredCredential, str]:
        """A new credential and its token, which nobody can be told again.

        Raises:
            InvalidArgument: the time or the note is too long.
        """
        if not 0 <= ttl_seconds <= LONGEST_TTL_SECONDS:
            raise InvalidArgument.field("ttl_seconds", ttl_seconds, f"0 to {LONGEST_TTL_SECONDS}")
        if len(note) > LONGEST_NOTE or not note.isprintable():
            raise InvalidArgument.field("note", note, f"at most {LONGEST_NOTE} printable characters")
        ttl_seconds = ttl_seconds or USUAL_TTL_SECONDS
        async with self._database.unit() as unit:
            stored = await _store(unit, pool, ttl_seconds, note)
            audit(unit, principal, "CreateWorkerCredential", stored.name, service=POOLS_SERVICE)
        return stored, _token(self._issuer, stored, ttl_seconds)

    async def page(self, pool: str, after: Sequence[str] | None, size: int) -> list[StoredCredential]:
        """Credentials of one pool, or of all, by pool and id, beginning after (pool, id)."""
        table = worker_credentials.c
        statement = select(worker_credentials).order_by(table.pool, table.id).limit(size)
        if pool:
            statement = statement.where(table.pool == pool)
        if after is not None:
            place = tuple_(*after, types=(table.pool.type, table.id.type))
            statement = statement.where(tuple_(table.pool, table.id) > place)
        async with self._database.statements() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [StoredCredential.of(row) for row in rows]

    async def revoke(self, principal: Principal, name: str) -> StoredCredential:
        """Ends a credential; harmless to repeat.

        Raises:
            NotFound: there is none of this name.
        """
        ids = names.WORKER_CREDENTIAL.parse(name)
        missing = NotFound.named(name)
        try:
            known = str(uuid.UUID(ids["credential"]))
        except ValueError:
            raise missing from None
        table = worker_credentials.c
        async with self._database.unit() as unit:
            stored = await _end(unit, (table.id == known) & (table.pool == ids["pool"]))
            if stored is None:
                raise missing
            audit(unit, principal, "RevokeWorkerCredential", name, service=POOLS_SERVICE)
        return stored


async def _store(unit: Unit, pool: str, ttl_seconds: float, note: str) -> StoredCredential:
    row = {
        "id": str(uuid.uuid4()),
        "pool": pool,
        "note": note,
        "expire_time": func.now() + seconds(ttl_seconds),
    }
    made = insert(worker_credentials).values(row).returning(*worker_credentials.c)
    return StoredCredential.of((await unit.connection.execute(made)).mappings().one())


def _token(issuer: TokenIssuer, stored: StoredCredential, ttl_seconds: float) -> str:
    pool = stored.pool
    return issuer.mint(
        names.POOL.format(pool=pool), "worker", ttl_seconds=ttl_seconds, pool=pool, jti=stored.id
    )


async def _end(unit: Unit, which: ColumnElement[bool]) -> StoredCredential | None:
    """Ends a credential, if it has not ended; None when there is none."""
    ended = func.coalesce(worker_credentials.c.revoke_time, func.now())
    statement = update(worker_credentials).where(which).values(revoke_time=ended)
    row = (await unit.connection.execute(statement.returning(*worker_credentials.c))).mappings().first()
    return None if row is None else StoredCredential.of(row)


async def enrolled_pools(connection: AsyncConnection) -> set[str]:
    """Pools for whose workers there is a credential."""
    table = worker_credentials.c
    holds = table.revoke_time.is_(None) & (table.expire_time > func.now())
    statement = select(table.pool).distinct().where(holds)
    return set((await connection.execute(statement)).scalars())


async def require_credential(connection: AsyncConnection, principal: Principal) -> None:
    """Refuses a worker whose credential was revoked, or is none of ours.

    Raises:
        Unauthenticated: it was.
    """
    statement = select(worker_credentials.c.id).where(
        worker_credentials.c.id == principal.credential_id,
        worker_credentials.c.pool == principal.pool,
        worker_credentials.c.revoke_time.is_(None),
    )
    if (await connection.execute(statement)).first() is None:
        raise Unauthenticated("the worker's credential does not hold any more", reason="CREDENTIAL_REVOKED")
