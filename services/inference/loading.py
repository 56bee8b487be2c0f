"""Brings one version from storage into memory, proved on its own example."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable

from prometheus_client import Counter

from guidehall.core.errors import AppError
from guidehall.science import registry
from guidehall.science.pipeline import InvalidModel, Predictor
from services.inference.cache import DiskCache
from services.inference.execution import Engine, Served, Turns
from services.inference.settings import RepositorySettings
from services.inference.source import StorageSource
from services.inference.versions import Entry, Failure, Published

_LOADS = Counter("guidehall_inference_model_loads", "Attempts to load a model", ["outcome"])
_log = logging.getLogger(__name__)


class Loader:
    """Loads one version at a time, so that the memory of loading is bounded too.

    Args:
        make_room: called with a number of bytes before that much is taken.
    """

    def __init__(
        self,
        source: StorageSource,
        cache: DiskCache,
        engine: Engine,
        settings: RepositorySettings,
        make_room: Callable[[int], None],
    ) -> None:
        self._source, self._cache, self._engine = source, cache, engine
        self._settings, self._make_room = settings, make_room
        self._one_at_a_time = asyncio.Lock()

    async def load(self, entry: Entry) -> None:
        """Fills `entry.served`, or `entry.failure` with the reason why not. Only cancellation is raised."""
        entry.loading = True
        name = entry.published.name
        started = time.monotonic()
        try:
            async with self._one_at_a_time:
                entry.served = await self._load(entry.published)
            entry.proved, entry.failure = True, None
            _LOADS.labels("ok").inc()
            _log.info(
                "model is loaded", extra={"model": name, "seconds": round(time.monotonic() - started, 3)}
            )
        except Exception as error:  # whatever a model does, its other versions go on
            entry.failure = self._failure(error, name)
            _LOADS.labels("failed").inc()
        finally:
            entry.loading = False

    async def _load(self, published: Published) -> Served:
        # Before a byte of it is fetched or read.
        budget = self._settings.memory_bytes
        if published.weights_bytes > budget:
            raise InvalidModel(
                f"weights: {published.weights_bytes} bytes; the server's memory budget is {budget}"
            )
        manifest = await self._engine.run(published.read_manifest)
        registry.architecture(manifest.architecture)
        weights = await self._weights(published)
        self._make_room(len(weights))
        predictor: Predictor = await self._engine.run(
            registry.load_predictor, manifest, weights, self._engine.device
        )
        return Served(manifest, predictor, len(weights), Turns(self._engine), time.monotonic())

    async def _weights(self, published: Published) -> bytes:
        weights = await asyncio.to_thread(self._cache.read, published)
        if weights is None:
            await self._download(published)
            weights = await asyncio.to_thread(self._cache.read, published)
        if weights is None:
            raise InvalidModel("weights: they changed on disk while they were read")
        await asyncio.to_thread(self._cache.remember, published)
        return weights

    async def _download(self, published: Published) -> None:
        incoming = await asyncio.to_thread(self._cache.create, published)
        try:
            async with contextlib.aclosing(self._source.download(published)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(incoming.write, piece)
            await asyncio.to_thread(incoming.finish)
        finally:
            await asyncio.to_thread(incoming.close)

    def _failure(self, error: Exception, name: str) -> Failure:
        """What callers are told: faults of the model and of storage in words, anything else by an id."""
        if isinstance(error, InvalidModel):
            _log.warning("model is refused", extra={"model": name, "reason": str(error)})
            return Failure(str(error), None)
        retry_at = time.monotonic() + self._settings.retry_seconds
        if isinstance(error, AppError):
            _log.warning("model cannot be loaded now", extra={"model": name, "reason": str(error)})
            return Failure(error.message, retry_at)
        error_id = uuid.uuid4().hex
        _log.error("loading a model failed", exc_info=error, extra={"model": name, "error_id": error_id})
        return Failure(f"loading failed; error id {error_id}", retry_at)
