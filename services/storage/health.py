"""What the service says of itself: ready as long as what it stands on answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from guidehall.core.errors import AppError, Unavailable
from guidehall.core.grpc_server import GrpcServer
from services.storage.database import Database
from services.storage.objects import ObjectStore

logger = logging.getLogger(__name__)


class Health:
    """Watches database and object store.

    The gRPC health of the process ("") never follows them: ending the process would not bring them back.
    Identity and audit need the database alone.

    Attributes:
        ready: whether everything answers.
        missing: what does not.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        seconds: float,
        without_objects: Sequence[str],
        with_objects: Sequence[str],
    ) -> None:
        self.ready = False
        self.missing: tuple[str, ...] = ()
        self._database = database
        self._store = store
        self._seconds = seconds
        self._without_objects = without_objects
        self._with_objects = with_objects
        self._last: tuple[bool, bool] | None = None
        self._prepared = False

    async def run(self, server: GrpcServer) -> None:
        """Goes on until cancelled."""
        while True:
            found = (await self._has_database(), await self._has_store())
            if found != self._last:
                self._last = found
                await self._tell(server, *found)
            await asyncio.sleep(self._seconds)

    async def begin(self, server: GrpcServer) -> None:
        """Before the server starts: a caller who waits for health finds everything prepared."""
        for name in (*self._without_objects, *self._with_objects):
            await server.set_serving(name, False)

    async def _has_store(self) -> bool:
        if self._prepared:
            return await self._store.probe()
        # Once: a bucket that goes away later is missed, not replaced by an empty one.
        try:
            await self._store.prepare()
        except Unavailable:
            return False
        self._prepared = True
        return True

    async def _tell(self, server: GrpcServer, database: bool, store: bool) -> None:
        self.ready = database and store
        parts = (("database", database), ("object store", store))
        self.missing = tuple(name for name, there in parts if not there)
        logger.info("database %s, object store %s", _word(database), _word(store))
        for name in self._without_objects:
            await server.set_serving(name, database)
        for name in self._with_objects:
            await server.set_serving(name, self.ready)

    async def _has_database(self) -> bool:
        try:
            async with asyncio.timeout(self._seconds), self._database.transaction() as connection:
                await connection.exec_driver_sql("SELECT 1")
        except (AppError, TimeoutError):
            return False
        return True


def _word(there: bool) -> str:
    return "answers" if there else "does not answer"
