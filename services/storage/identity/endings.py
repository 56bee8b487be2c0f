"""The end of sessions: of one, and of all that a user has."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.storage.identity.tables import sessions


async def end_session(connection: AsyncConnection, session_id: str) -> None:
    """Ends a session, if it has not ended."""
    await _end(connection, sessions.c.id == session_id)


async def end_sessions(connection: AsyncConnection, user_id: str) -> int:
    """Ends every session of a user; how many there were."""
    return await _end(connection, sessions.c.user_id == user_id)


async def _end(connection: AsyncConnection, which: ColumnElement[bool]) -> int:
    live = update(sessions).where(
        which, sessions.c.revoke_time.is_(None), sessions.c.expire_time > func.now()
    )
    return (await connection.execute(live.values(revoke_time=func.now()))).rowcount
