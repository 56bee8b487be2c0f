"""The whole audit log as lines, read in small transactions: nobody who reads slowly holds one open."""

from __future__ import annotations

from collections.abc import AsyncIterator

from guidehall.core import audit_chain
from guidehall.core.errors import Aborted
from services.storage.audit import log
from services.storage.database import Database

_LINES_TOGETHER = 500
# Below every sequence number, also of a row that somebody put in.
_BEFORE_ALL = -(2**63)


async def export(database: Database, after_seal: int = 0) -> AsyncIterator[list[str]]:
    """Lines of the log as it is now, some at a time, as `audit_chain.Verifier` reads them.

    Args:
        database: of the service.
        after_seal: begins after this batch; 0 is the whole log.

    Raises:
        InvalidArgument: there is no such seal.
        Aborted: retention removed something meanwhile.
    """
    async with database.transaction() as connection:
        anchor = await log.anchor(connection, after_seal)
        newest = await log.newest_seal(connection)
        last = await log.last_sequence(connection)
    position = _BEFORE_ALL
    if anchor is not None:
        yield [audit_chain.anchor_line(anchor)]
        if after_seal:
            position = anchor.last
    number = 0 if anchor is None else anchor.number
    while newest is not None and number < newest.number:
        async with database.transaction() as connection:
            seal = await log.next_seal(connection, number)
        if seal is None:
            break
        async for lines in _events(database, position, seal.last):
            yield lines
        yield [audit_chain.seal_line(seal)]
        number, position = seal.number, seal.last
    async for lines in _events(database, position, last):
        yield lines
    async with database.transaction() as connection:
        if not after_seal and await log.anchor(connection, 0) != anchor:
            raise Aborted("retention has removed a part of the log meanwhile; ask again")
    yield [audit_chain.end_line()]


async def _events(database: Database, after: int, last: int) -> AsyncIterator[list[str]]:
    reached: int | None = after
    while reached is not None:
        async with database.transaction() as connection:
            lines, reached = await log.event_lines(connection, reached, last, _LINES_TOGETHER)
        if lines:
            yield lines
