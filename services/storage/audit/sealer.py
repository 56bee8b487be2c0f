"""Closes batches of the audit log, and removes old ones."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.audit_chain import RETENTION_METHOD
from guidehall.core.errors import AppError
from guidehall.core.faults import fault_point
from services.storage.audit import log
from services.storage.database import Database
from services.storage.settings import AuditSettings

logger = logging.getLogger(__name__)


class Sealer:
    """Runs in every replica, one of which at a time does the work."""

    def __init__(self, database: Database, settings: AuditSettings) -> None:
        self._database = database
        self._settings = settings

    async def run(self) -> None:
        """Goes on until cancelled, whatever is away meanwhile."""
        while True:
            await asyncio.sleep(self._settings.seal_seconds)
            try:
                await self.seal()
            except AppError as error:
                logger.debug("sealing waits: %s", error.message)
            except SQLAlchemyError:
                # The rest of the service goes on; the log is sealed later.
                logger.exception("the audit log cannot be sealed")

    async def seal(self) -> None:
        """Closes batches until no event is open.

        Raises:
            Unavailable: the database does not answer.
        """
        most = self._settings.seal_events
        closed = most
        while closed == most:
            async with self._database.transaction() as connection:
                seal = await log.seal_batch(connection, most)
                fault_point("storage.audit.sealed")
            if seal is None:
                return
            closed = seal.last - seal.first + 1
            # Whoever keeps the logs elsewhere can tell later that the newest batches were cut off.
            logger.info(
                "audit batch sealed",
                extra={"seal": f"{seal.number}:{seal.seal.hex()}", "last_event": seal.last},
            )

    async def retain(self, connection: AsyncConnection) -> None:
        """Removes batches that are too old, and writes down in the log that it did."""
        if not self._settings.keep_days:
            return
        before = datetime.now(UTC) - timedelta(days=self._settings.keep_days)
        await log.lock(connection)
        newest = await log.removable(connection, before)
        if newest is None:
            return
        removed = await log.remove_batches(connection, newest)
        entry = log.own_entry(RETENTION_METHOD, f"audit/seals/{newest}", removed)
        await log.append(connection, [entry])
        logger.info("audit batches removed", extra={"through_seal": newest, "events": removed})
