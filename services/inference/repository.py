"""The models that can be asked: kept in step with storage, loaded when needed, within a memory budget."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Iterable

from prometheus_client import Gauge

from guidehall.core import names
from guidehall.core.access import may_read, require_changeable, require_readable
from guidehall.core.auth import Principal
from guidehall.core.deadlines import set_deadline
from guidehall.core.errors import AppError, ResourceExhausted, Unavailable
from services.inference.cache import DiskCache
from services.inference.execution import Engine, Served
from services.inference.loading import Loader
from services.inference.settings import RepositorySettings
from services.inference.source import StorageSource
from services.inference.versions import Catalogue, Entry, ModelKey, Published, Reference

_MEMORY = Gauge("guidehall_inference_models_bytes", "Weights of the models in memory")
_log = logging.getLogger(__name__)


class Repository:
    """Finds, loads and unloads models.

    Args:
        tasks: owns what goes on in the background; cancel it to stop.

    Attributes:
        ready: set when it is known which models there are and every one that the settings pin has answered
            its example. Versions that storage has pinned are loaded then; none of them is waited for.
        missing: models of the settings that are waited for, each with the reason.
    """

    def __init__(
        self,
        source: StorageSource,
        cache: DiskCache,
        engine: Engine,
        settings: RepositorySettings,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._source, self._cache, self._settings, self._tasks = source, cache, settings, tasks
        self._loader = Loader(source, cache, engine, settings, self._make_room)
        self._catalogue = Catalogue()
        self._loads: dict[Entry, asyncio.Task[Served | None]] = {}
        self._projects = {names.DEFAULT_PROJECT}
        self._pins = {Reference.of_protocol(pin, "").key for pin in settings.pins}
        self._reconcile_now = asyncio.Event()
        self.ready = asyncio.Event()
        self.missing: tuple[str, ...] = ()

    # What callers ask

    async def acquire(self, principal: Principal, reference: Reference) -> tuple[Published, Served]:
        """The version that answers, in memory.

        Raises:
            NotFound: there is none that `principal` may see.
            Unavailable: it is known and cannot be loaded, or storage cannot be asked.
        """
        entries = await self._visible(principal, reference)
        now = time.monotonic()
        usable = [entry for entry in entries if entry.usable(now)]
        proved_version = max((entry.published.version for entry in usable if entry.proved), default=0)
        for entry in usable:
            if not entry.proved and entry.published.version > proved_version > 0:
                # It takes over when it has proved itself; until then the older one answers.
                self._start_load(entry)
                continue
            served = await self._loaded(entry)
            if served is not None:
                return entry.published, served
        raise _not_ready(reference, entries[0], now)

    async def is_ready(self, principal: Principal, reference: Reference) -> bool:
        """Whether a call would be answered. A version that was never loaded is loaded to find out."""
        entries = await self._visible(principal, reference)
        now = time.monotonic()
        usable = [entry for entry in entries if entry.usable(now)]
        for entry in sorted(usable, key=lambda entry: not entry.proved):
            if entry.proved or await self._loaded(entry) is not None:
                return True
        return False

    async def describe(self, principal: Principal, reference: Reference) -> tuple[Published, list[int]]:
        """The version that would answer, and all versions of its model, newest first.

        Raises:
            NotFound: there is none that `principal` may see.
        """
        entries = await self._visible(principal, reference)
        best = next((entry for entry in entries if entry.proved and not entry.held_back), entries[0])
        versions = [entry.published.version for entry in self._catalogue.versions(reference.key)]
        return best.published, versions

    def visible(self, principal: Principal) -> list[Entry]:
        """All versions that `principal` may see, by model, newest first."""
        return [entry for entry in self._catalogue if may_read(principal, entry.published)]

    def candidates(self, principal: Principal) -> list[Published]:
        """Every version that `principal` may see and that is not known to be unusable, newest first."""
        now = time.monotonic()
        usable = (entry.published for entry in self.visible(principal) if entry.usable(now))
        return sorted(usable, key=lambda published: published.published_at, reverse=True)

    async def load(self, principal: Principal, reference: Reference) -> None:
        """Loads the newest version (or the one named) even if it failed before; held-back ones work again.

        Raises:
            NotFound: there is none that `principal` may see.
            PermissionDenied: `principal` may only read it.
            Unavailable: it cannot be loaded.
        """
        entries = await self._changeable(principal, reference)
        for entry in entries:
            entry.held_back, entry.failure = False, None
        if await self._loaded(entries[0]) is None:
            raise _not_ready(reference, entries[0], time.monotonic())

    async def unload(self, principal: Principal, reference: Reference) -> None:
        """Takes no new work for any version of the model; running calls end by themselves.

        Raises:
            NotFound: there is none that `principal` may see.
            PermissionDenied: `principal` may only read it.
        """
        for entry in await self._changeable(principal, reference):
            entry.held_back = True
            entry.unload()
        _MEMORY.set(self._memory_used())

    # What goes on in the background

    async def run(self) -> None:
        """Keeps in step with storage until it is cancelled."""
        for published in await asyncio.to_thread(lambda: list(self._cache.remembered())):
            self._catalogue.add(published)
        while True:
            self._reconcile_now.clear()
            try:
                await self.reconcile()
            except AppError as error:
                _log.warning("storage cannot be asked for its models", extra={"reason": str(error)})
                delay = self._settings.retry_seconds
                usable = any(True for _ in self._catalogue)
            else:
                delay, usable = self._settings.reconcile_seconds, True
            if usable and not self.ready.is_set():
                await self._warm_up()
            if not self.ready.is_set():
                delay = self._settings.retry_seconds
            try:
                async with asyncio.timeout(delay):
                    await self._reconcile_now.wait()
            except TimeoutError:
                continue

    async def reconcile(self) -> None:
        """Takes over what storage lists now.

        Raises:
            AppError: storage does not answer.
        """
        before = list(self._catalogue)
        listed: set[Entry] = set()
        for project in sorted(self._projects):
            for published in await self._source.list(names.MODEL.format(project=project, model="-")):
                listed.add(self._take_over(published))
        await self._drop(entry for entry in before if entry not in listed)

    def reconcile_soon(self) -> None:
        """Events may have been missed: asks storage at once instead of at the next round."""
        self._reconcile_now.set()

    async def model_published(self, reference: Reference) -> None:
        """Takes over one version, which is loaded where it replaces one in use or its model is pinned."""
        published = await self._source.get(reference)
        if published is not None:
            self._projects.add(published.key.project)
            self._take_over(published)

    async def model_deleted(self, key: ModelKey) -> None:
        """Forgets a model."""
        await self._drop(self._catalogue.versions(key))

    def close(self) -> None:
        """Gives up loads that are under way."""
        for task in self._loads.values():
            task.cancel()

    # Within

    async def _visible(self, principal: Principal, reference: Reference) -> list[Entry]:
        entries = self._catalogue.find(reference)
        if not entries:
            # Published a moment ago, or in a project nobody asked for before.
            published = await self._source.get(reference)
            if published is not None:
                entries = [self._catalogue.add(published)]
                # Its older versions are not known yet.
                self._projects.add(published.key.project)
                self.reconcile_soon()
        require_readable(principal, entries[0].published if entries else None, str(reference))
        return entries

    async def _changeable(self, principal: Principal, reference: Reference) -> list[Entry]:
        entries = await self._visible(principal, reference)
        require_changeable(principal, entries[0].published, str(reference))
        return entries

    def _take_over(self, published: Published) -> Entry:
        known = {
            entry.published.version: entry.published for entry in self._catalogue.versions(published.key)
        }
        in_use = any(entry.served is not None for entry in self._catalogue.versions(published.key))
        before = known.get(published.version)
        entry = self._catalogue.add(published)
        if self.ready.is_set() and entry.served is None and entry.usable(time.monotonic()):
            newest = published.version > max(known, default=0)
            tagged = not set(published.tags) <= set(before.tags if before else ())
            if (
                published.pinned
                or (newest and published.key in self._pins)
                # What is asked for by a name that means another version from now on.
                or (in_use and (newest or tagged))
            ):
                self._start_load(entry)
        return entry

    async def _warm_up(self) -> None:
        """Loads the models that the settings pin; when all are there, the versions that storage has pinned,
        and the newest of the others as far as memory goes."""
        reasons = {key: await self._load_pinned(key) for key in sorted(self._pins)}
        missing = tuple(f"{key}: {reason}" for key, reason in reasons.items() if reason)
        if missing and missing != self.missing:
            _log.warning("not ready: pinned models are missing", extra={"models": missing})
        self.missing = missing
        if missing:
            return
        self.ready.set()
        newest = {entry.published.key: entry for entry in reversed(list(self._catalogue))}
        others = [entry for key, entry in newest.items() if key not in self._pins]
        others.sort(key=lambda entry: entry.published.published_at, reverse=True)
        left = self._settings.memory_bytes - self._memory_used()
        for entry in self._catalogue:
            if entry.published.pinned and entry.served is None and not entry.held_back:
                left -= entry.published.weights_bytes
                self._start_load(entry)
        others = [entry for entry in others if not entry.published.pinned]
        for entry in others[: self._settings.warm_models]:
            left -= entry.published.weights_bytes
            if left < 0:
                break
            self._start_load(entry)

    async def _load_pinned(self, key: ModelKey) -> str:
        """Loads the newest version that can be loaded.

        Returns:
            Why none can; empty when one answers, or none is wanted: it was unloaded on request.
        """
        entries = self._catalogue.versions(key)
        if not entries:
            return "not in storage"
        if all(entry.held_back for entry in entries):
            return ""
        for entry in entries:
            # What failed for good is not tried again until it is published anew.
            if entry.usable(time.monotonic()) and await self._loaded(entry) is not None:
                return ""
        return entries[0].reason

    async def _loaded(self, entry: Entry) -> Served | None:
        """The model in memory, after loading it if need be; None when it cannot be loaded."""
        if entry.served is None:
            # Shielded: a caller that goes away must not end a load that others wait for.
            return await asyncio.shield(self._start_load(entry))
        return entry.served

    def _start_load(self, entry: Entry) -> asyncio.Task[Served | None]:
        task = self._loads.get(entry)
        if task is None:
            # It outlives the deadline of the request that asked for it, and keeps its trace.
            context = contextvars.copy_context()
            context.run(set_deadline, None)
            task = self._tasks.create_task(self._load(entry), context=context)
            self._loads[entry] = task
        return task

    async def _load(self, entry: Entry) -> Served | None:
        try:
            if entry.served is None:
                await self._loader.load(entry)
            if entry.held_back:
                entry.unload()
            _MEMORY.set(self._memory_used())
            return entry.served
        finally:
            del self._loads[entry]

    def _memory_used(self) -> int:
        return sum(entry.served.size_bytes for entry in self._catalogue if entry.served is not None)

    def _make_room(self, wanted: int) -> None:
        """Unloads the least recently used models until `wanted` bytes fit.

        Raises:
            ResourceExhausted: pinned models take what they need.
        """
        excess = self._memory_used() + wanted - self._settings.memory_bytes
        for served, entry in self._least_used_first():
            if excess <= 0:
                return
            excess -= served.size_bytes
            entry.unload()
            _log.info("model is unloaded to make room", extra={"model": entry.published.name})
        if excess > 0:
            raise ResourceExhausted(f"weights: {wanted} bytes find no room beside pinned models")

    def _least_used_first(self) -> list[tuple[Served, Entry]]:
        """Models in memory that may be unloaded."""
        kept = [
            next((entry for entry in self._catalogue.versions(key) if entry.proved), None)
            for key in self._pins
        ]
        kept += [entry for entry in self._catalogue if entry.published.pinned]
        found = [(e.served, e) for e in self._catalogue if e.served is not None and e not in kept]
        return sorted(found, key=lambda pair: pair[0].last_used)

    async def _drop(self, entries: Iterable[Entry]) -> None:
        gone = list(entries)
        self._catalogue.drop(gone)
        _MEMORY.set(self._memory_used())
        for entry in gone:
            entry.held_back = True
            await asyncio.to_thread(self._cache.forget, entry.published)
            _log.info("model is no longer published", extra={"model": entry.published.name})


def _not_ready(reference: Reference, entry: Entry, now: float) -> Unavailable:
    retry_at = None if entry.failure is None else entry.failure.retry_at
    return Unavailable(
        f"{reference} is not ready: {entry.reason or 'it is being loaded'}",
        reason="MODEL_NOT_READY",
        metadata={"model": str(reference), "state": entry.state.value},
        retry_after_seconds=None if retry_at is None else max(0.1, retry_at - now),
    )
