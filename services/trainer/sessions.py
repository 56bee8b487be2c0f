"""The conversation with the worker of a running job: its reports up, the owner's wishes down, at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, Unavailable
from services.trainer.leases import Leases, job_id_of
from services.trainer.lifecycle import Desired, StaleEpoch
from services.trainer.records import Note
from services.trainer.reports import Reports
from services.trainer.settings import LeaseSettings
from services.trainer.wakes import Ear, Wakes, job_topic

Answered = TypeVar("Answered")


@dataclass(frozen=True)
class Hello:
    """Which attempt speaks."""

    job: str
    epoch: int


@dataclass(frozen=True)
class Heartbeat:
    """It lives."""


@dataclass(frozen=True)
class Begun:
    """Its pipeline is about to run."""


@dataclass(frozen=True)
class Batch:
    """Events, numbered by the worker from `first` on."""

    first: int
    notes: tuple[Note, ...]


Report = Hello | Heartbeat | Begun | Batch


@dataclass(frozen=True)
class Ack:
    """What is stored, and how long the lease lasts."""

    stored_number: int
    lease_seconds: float


@dataclass(frozen=True)
class Wish:
    """What the owner wants now."""

    desired: Desired


@dataclass(frozen=True)
class Lost:
    """The attempt does not hold the job any more."""

    reason: str


Answer = Ack | Wish | Lost


class Sessions:
    """Holds the conversations."""

    def __init__(self, leases: Leases, reports: Reports, wakes: Wakes, settings: LeaseSettings) -> None:
        self._leases = leases
        self._reports = reports
        self._wakes = wakes
        self._settings = settings

    async def converse(
        self, principal: Principal, incoming: AsyncIterator[Report]
    ) -> AsyncGenerator[Answer, None]:
        """Answers a worker until it hangs up or has lost the job.

        Raises:
            InvalidArgument: the first message is no hello, a later one is, or a batch leaves a gap.
            NotFound: no such job in the worker's pool.
            Unavailable: the database is away, this server is about to stop, or no hello came: connect again.
        """
        hello = await self._hello(incoming)
        with self._wakes.listening(job_topic(job_id_of(hello.job))) as ear:
            try:
                async with aclosing(self._answers(principal, hello, incoming, ear)) as answers:
                    async for answer in answers:
                        yield answer
            except StaleEpoch as error:
                yield Lost(error.message)

    async def _hello(self, incoming: AsyncIterator[Report]) -> Hello:
        try:
            async with asyncio.timeout(self._settings.hello_seconds):
                first = await anext(incoming, None)
        except TimeoutError:
            # A worker that was held up for so long may still hold its job.
            raise Unavailable("no hello came in time", reason="NO_HELLO", retry_after_seconds=0.0) from None
        if not isinstance(first, Hello):
            raise InvalidArgument.field("message", type(first).__name__, "a hello, first and once")
        return first

    async def _answers(
        self, principal: Principal, hello: Hello, incoming: AsyncIterator[Report], ear: Ear
    ) -> AsyncGenerator[Answer, None]:
        loop = asyncio.get_running_loop()
        job, epoch = hello.job, hello.epoch
        # Taken before asking: the worker must not believe in the lease for longer than the database does.
        asked = loop.time()
        standing = await _whole(self._leases.heartbeat(principal, job, epoch))
        lease_end = asked + standing.lease_seconds
        stored, wish = standing.stored_number, standing.desired
        yield Ack(stored, lease_end - loop.time())
        yield Wish(wish)
        async with aclosing(_merged(incoming, ear)) as reports:
            async for report in reports:
                match report:
                    case None:
                        self._wakes.require_open()
                        desired = await _whole(self._leases.desired(job, epoch))
                        if desired is None:
                            yield Lost("another attempt holds the job, or it has ended")
                            return
                        if desired is not wish:
                            wish = desired
                            yield Wish(wish)
                        continue
                    case Heartbeat():
                        asked = loop.time()
                        standing = await _whole(self._leases.heartbeat(principal, job, epoch))
                        lease_end = asked + standing.lease_seconds
                        # Whoever wished it may have gone before anybody was rung.
                        if standing.desired is not wish:
                            wish = standing.desired
                            yield Wish(wish)
                    case Begun():
                        await _whole(self._leases.started(principal, job, epoch, ear))
                    case Batch(first, notes):
                        storing = self._reports.events(principal, job, epoch, first, notes, ear)
                        stored = await _whole(storing)
                    case Hello():
                        raise InvalidArgument.field("message", "Hello", "a hello, first and once")
                yield Ack(stored, lease_end - loop.time())


async def _whole(work: Coroutine[Any, Any, Answered]) -> Answered:
    """Does `work` to its end even when the worker hangs up, as it does whenever a job has ended.

    A transaction that is torn costs a connection to the database, and opening one costs more than a job.
    """
    return await asyncio.shield(asyncio.ensure_future(work))


async def _merged(incoming: AsyncIterator[Report], ear: Ear) -> AsyncGenerator[Report | None, None]:
    """What comes in, and None whenever the ear was rung, until nothing more comes in."""
    report = asyncio.ensure_future(anext(incoming, None))
    rung = asyncio.ensure_future(ear.wait())
    try:
        while True:
            await asyncio.wait({report, rung}, return_when=asyncio.FIRST_COMPLETED)
            if rung.done():
                ear.clear()
                rung = asyncio.ensure_future(ear.wait())
                yield None
            if report.done():
                message = report.result()
                if message is None:
                    return
                report = asyncio.ensure_future(anext(incoming, None))
                yield message
    finally:
        report.cancel()
        rung.cancel()
        await asyncio.gather(report, rung, return_exceptions=True)
