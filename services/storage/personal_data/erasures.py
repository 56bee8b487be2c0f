"""Erasures: what is asked for and how far it is. The first step, the end of the account, is taken at once."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import FailedPrecondition, InvalidArgument, NotFound
from services.storage.audit import log, pseudonyms
from services.storage.audit.tables import people
from services.storage.database import Caller, Database
from services.storage.identity import users
from services.storage.identity.tables import (
    api_keys,
    device_log_ins,
    erasure_steps,
    erasures,
    identities,
    memberships,
    passwords,
    sessions,
)
from services.storage.identity.tables import users as users_table
from services.storage.lists import Paging, page

# In this order; the service whose part it is.
STEPS = {
    "account": "storage",
    "jobs": "trainer",
    "history": "storage",
    "datasets": "storage",
    "models": "storage",
    "results": "storage",
    "requests": "storage",
    "name": "storage",
}


# By which somebody gets in, and where; all that refers to an account has to be here.
_OF_ACCOUNT = (api_keys, device_log_ins, identities, memberships, passwords, sessions)

_open = erasures.c.done_time.is_(None)


@dataclass(frozen=True)
class Erasure:
    """One erasure; without a user when it is done."""

    id: str
    user_id: str | None
    pseudonym: str
    hand_over_to: str
    steps_done: Sequence[str]
    create_time: datetime
    due_time: datetime
    done_time: datetime | None

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.ERASURE.format(erasure=self.id)

    @property
    def steps_left(self) -> list[str]:
        """Those to come, in order."""
        return [step for step in STEPS if step not in self.steps_done]


class Erasures:
    """The use cases.

    Args:
        database: of the service.
        wait_seconds: before anything but the account goes: until then a token that was given out before may
            count, and counted reads may be on their way.
    """

    def __init__(self, database: Database, wait_seconds: float) -> None:
        self._database = database
        self._wait = timedelta(seconds=wait_seconds)

    async def begin(self, caller: Caller, name: str, hand_over_to: str) -> Erasure:
        """Closes an account and has the rest of what is kept about its user erased.

        Raises:
            NotFound: there is no such user.
            InvalidArgument: nobody can get what was theirs by that name.
            FailedPrecondition: it is the caller, or what was theirs goes to somebody else already.
        """
        user_id = names.USER.parse(name)["user"]
        heir = names.USER.parse(hand_over_to, "hand_over_to")["user"] if hand_over_to else ""
        if user_id == caller.principal.subject:
            raise FailedPrecondition("another administrator has to erase one", reason="ERASES_ONESELF")
        async with self._database.mutation(caller) as mutation:
            connection = mutation.connection
            user = await users.find(connection, user_id, lock=True)
            if user is None:
                known = await connection.scalar(select(exists().where(people.c.user_id == user_id)))
                if not known:
                    raise NotFound.named(name)
                await users.ensure(connection, Principal(user_id, "user"))
                await users.find(connection, user_id, lock=True)
            under_way = await _find(connection, erasures.c.user_id == user_id)
            if under_way is not None:
                if under_way.hand_over_to != heir:
                    raise FailedPrecondition(
                        f"{under_way.name} is under way and ends otherwise", reason="ERASURE_UNDER_WAY"
                    )
                return under_way
            if await connection.scalar(select(exists().where(_open, erasures.c.hand_over_to == user_id))):
                raise FailedPrecondition(f"{name} is yet to get what was another's", reason="IS_HEIR")
            if heir:
                await _require_heir(connection, user_id, heir)
            await self._close(connection, user_id)
            pseudonym = (await pseudonyms.of(connection, [user_id]))[user_id]
            id = str(uuid.uuid4())
            values = {
                "id": id,
                "user_id": user_id,
                "pseudonym": pseudonym,
                "hand_over_to": heir,
                "due_time": func.now() + self._wait,
            }
            await connection.execute(insert(erasures).values(values))
            await complete(connection, id, "account")
            mutation.record(name)
            erasure = await _find(connection, erasures.c.id == id)
        assert erasure is not None  # noqa: S101 (just made)
        return erasure

    async def _close(self, connection: AsyncConnection, user_id: str) -> None:
        """Nobody gets in any more by anything, and nothing says any more who it was but the name itself."""
        await _delete_credentials(connection, user_id)
        closed = update(users_table).where(users_table.c.id == user_id)
        values = {
            "display_name": "",
            "email": "",
            "roles": [],
            "groups": [],
            "disabled": True,
            "revision": users_table.c.revision + 1,
            "update_time": func.now(),
        }
        await connection.execute(closed.values(values))

    async def get(self, name: str) -> Erasure:
        """One erasure.

        Raises:
            NotFound: there is none.
        """
        async with self._database.transaction() as connection:
            return await _get(connection, name)

    async def page(self, waiting_for: str, paging: Paging) -> tuple[list[Erasure], str]:
        """One page, newest first, and the token of the next; maybe of those alone that wait for a service."""
        query = select(erasures)
        if waiting_for:
            query = query.where(_open, erasures.c.due_time <= func.now())
        async with self._database.transaction() as connection:
            rows, token = await page(connection, query, erasures.c.seq, paging, "erasures", waiting_for)
            found = [await _erasure(connection, row._mapping) for row in rows]
        if waiting_for:
            found = [one for one in found if STEPS[one.steps_left[0]] == waiting_for]
        return found, token

    async def complete_step(self, service: str, name: str) -> Erasure:
        """Notes that a service has done its part; once more changes nothing.

        Raises:
            NotFound: there is none.
            FailedPrecondition: no part of it is this service's, or its turn has not come.
        """
        async with self._database.transaction() as connection:
            erasure = await _get(connection, name, lock=True)
            own = [step for step, part in STEPS.items() if part == service]
            if not own:
                raise FailedPrecondition(f"no step of an erasure is {service}'s", reason="NO_STEP")
            left = erasure.steps_left
            if not left or STEPS[left[0]] != service:
                if all(step in erasure.steps_done for step in own):
                    return erasure
                raise FailedPrecondition(f"{name}: {left[0]} comes before", reason="STEP_TO_COME")
            await complete(connection, erasure.id, left[0])
            return await _get(connection, name)


async def complete(connection: AsyncConnection, id: str, step: str) -> None:
    """Notes that a step is done."""
    await connection.execute(insert(erasure_steps).values(erasure_id=id, step=step))


async def due(connection: AsyncConnection) -> Erasure | None:
    """An erasure whose next step is storage's, locked; None where there is none that nobody is at."""
    waiting = select(erasures.c.id).where(_open, erasures.c.due_time <= func.now()).order_by(erasures.c.seq)
    for id in (await connection.scalars(waiting)).all():
        # Only the one that is taken is locked: others wait for the trainer, who completes its step.
        if not await _is_next(connection, id, "storage"):
            continue
        one = select(erasures).where(erasures.c.id == id, _open).with_for_update(skip_locked=True)
        row = (await connection.execute(one)).one_or_none()
        if row is not None and await _is_next(connection, id, "storage"):
            return await _erasure(connection, row._mapping)
    return None


async def _is_next(connection: AsyncConnection, id: str, service: str) -> bool:
    done = await _steps_done(connection, id)
    return STEPS[next(step for step in STEPS if step not in done)] == service


async def finish(connection: AsyncConnection, erasure: Erasure) -> None:
    """The last step: the name goes, and with it who the audit log means."""
    assert erasure.user_id is not None  # noqa: S101 (it is not done)
    # Somebody may have opened the account again meanwhile.
    await users.find(connection, erasure.user_id, lock=True)
    await _delete_credentials(connection, erasure.user_id)
    await log.lock(connection)
    await pseudonyms.forget(connection, erasure.user_id)
    await connection.execute(delete(users_table).where(users_table.c.id == erasure.user_id))
    done = update(erasures).where(erasures.c.id == erasure.id)
    await connection.execute(done.values(user_id=None, hand_over_to="", done_time=func.now()))


async def _delete_credentials(connection: AsyncConnection, user_id: str) -> None:
    for table in _OF_ACCOUNT:
        await connection.execute(delete(table).where(table.c.user_id == user_id))


async def _require_heir(connection: AsyncConnection, user_id: str, heir: str) -> None:
    user = await users.find(connection, heir, lock=True)
    if heir == user_id or user is None or user.disabled:
        raise InvalidArgument.field("hand_over_to", f"users/{heir}", "another user, who is not disabled")


async def _get(connection: AsyncConnection, name: str, *, lock: bool = False) -> Erasure:
    missing = NotFound.named(name)
    try:
        id = str(uuid.UUID(names.ERASURE.parse(name)["erasure"]))
    except ValueError:
        raise missing from None
    erasure = await _find(connection, erasures.c.id == id, lock=lock)
    if erasure is None:
        raise missing
    return erasure


async def _find(connection: AsyncConnection, which: Any, *, lock: bool = False) -> Erasure | None:
    query = select(erasures).where(which)
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else await _erasure(connection, row._mapping)


async def _steps_done(connection: AsyncConnection, id: str) -> set[str]:
    steps = select(erasure_steps.c.step).where(erasure_steps.c.erasure_id == id)
    return set((await connection.scalars(steps)).all())


async def _erasure(connection: AsyncConnection, row: Any) -> Erasure:
    done = await _steps_done(connection, row["id"])
    values = {name: row[name] for name in Erasure.__dataclass_fields__ if name != "steps_done"}
    return Erasure(**values, steps_done=[step for step in STEPS if step in done])
