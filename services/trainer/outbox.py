"""The outbox: what a committed transaction still has to tell others, told at least once.

Rows are claimed for a while (`FOR UPDATE SKIP LOCKED`), so several replicas share the work, and what a dead
one had claimed is told by another. A row that was told goes; one that was not comes again later, and later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Counter
from sqlalchemy import ARRAY, BigInteger, Text, bindparam, text

from guidehall.core.errors import AppError
from guidehall.core.faults import fault_point
from guidehall.core.telemetry import handling
from services.trainer.database import Database
from services.trainer.documents import Document
from services.trainer.settings import RelaySettings
from services.trainer.wakes import outbox_topic

logger = logging.getLogger(__name__)

_TOLD = Counter("guidehall_outbox_told", "Messages told to others", ["kind"])
_FAILED = Counter("guidehall_outbox_failed", "Attempts to tell that failed", ["kind"])

# Always gives a row: where nothing is due it holds only when something will be.
_CLAIM = text(
    """
    WITH due AS (
        SELECT id FROM trainer.outbox WHERE next_time <= now() AND kind = ANY(:kinds)
        ORDER BY next_time, id LIMIT :batch FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE trainer.outbox SET next_time = now() + make_interval(secs => :claim_seconds), tries = tries + 1
        WHERE id IN (SELECT id FROM due)
        RETURNING id, kind, subject, payload, message_id::text, tries, origin
    )
    SELECT claimed.*, (
        SELECT extract(epoch FROM min(next_time) - now())::float8
        FROM trainer.outbox WHERE next_time > now() AND kind = ANY(:kinds)
    ) AS wait_seconds
    FROM (SELECT) AS always LEFT JOIN claimed ON true ORDER BY id
    """
).bindparams(bindparam("kinds", type_=ARRAY(Text)))
_DROP = text("DELETE FROM trainer.outbox WHERE id = ANY(:ids)").bindparams(
    bindparam("ids", type_=ARRAY(BigInteger))
)
_PUT_OFF = text(
    """
    UPDATE trainer.outbox SET last_error = :problem, next_time = now() + make_interval(
        secs => least(:first_seconds * power(2, least(tries, 20) - 1), :longest_seconds))
    WHERE id = ANY(:ids)
    """
).bindparams(bindparam("ids", type_=ARRAY(BigInteger)))

KINDS = ("doorbell", "events", "promote", "claim", "discard", "audit", "notify")


@dataclass(frozen=True)
class Message:
    """A row of the outbox."""

    id: int
    kind: str
    subject: str
    payload: Document
    message_id: str
    tries: int
    # Headers of the request that it comes from.
    origin: Document | None


@dataclass(frozen=True)
class Teller:
    """Tells messages of one kind.

    Attributes:
        tell: raises AppError when they have to be told again.
        together: whether it is given all that are due at a time; else those about one subject.
    """

    tell: Callable[[Sequence[Message]], Awaitable[None]]
    together: bool = False


@dataclass(frozen=True)
class _Told:
    """How telling some messages went."""

    messages: Sequence[Message]
    problem: str | None


class Relay:
    """Tells what is in the outbox, of some kinds.

    The first message after a silence is told at once. What follows it within `pace_seconds` waits for their
    end, to be told together: a round costs as much for one message as for many.
    """

    def __init__(
        self,
        database: Database,
        tellers: Mapping[str, Teller],
        settings: RelaySettings,
        pace_seconds: float,
    ) -> None:
        self._database = database
        self._tellers = tellers
        self._settings = settings
        self._pace_seconds = pace_seconds
        self._at_once = asyncio.Semaphore(settings.parallel)
        # Being told for longer than a round, each with the number of its messages.
        self._slow: dict[asyncio.Task[None], int] = {}
        # Kinds that failed last, so that an outage is logged once.
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Tells until the process is about to end, and what is being told then to its end."""
        wakes, loop = self._database.wakes, asyncio.get_running_loop()
        with wakes.listening(*map(outbox_topic, self._tellers)) as ear:
            async with asyncio.TaskGroup() as tasks:
                while not wakes.closed:
                    ear.clear()
                    began = loop.time()
                    try:
                        pause = await self._round(tasks)
                    except AppError:
                        pause = self._settings.idle_seconds
                    if pause > 0:
                        await ear.listen(pause)
                        await asyncio.sleep(began + self._pace_seconds - loop.time())

    async def _round(self, tasks: asyncio.TaskGroup) -> float:
        """Tells what is due.

        Returns:
            Seconds until something will be, as far as is known now.
        """
        room = self._settings.batch - sum(self._slow.values())
        if room <= 0:
            await asyncio.wait(self._slow, return_when=asyncio.FIRST_COMPLETED)
            return 0.0
        messages, pause = await self._claim(room)
        if messages:
            fault_point("trainer.outbox.claimed")
        telling = {tasks.create_task(self._tell(group)): len(group) for group in self._groups(messages)}
        if telling:
            told, slow = await asyncio.wait(telling, timeout=self._settings.patience_seconds)
            # One that takes long does not hold up what comes after it.
            for task in slow:
                later = tasks.create_task(self._settle_later(task))
                self._slow[later] = telling[task]
                later.add_done_callback(self._slow.pop)
            await self._settle([task.result() for task in told])
        return pause

    async def _claim(self, most: int) -> tuple[list[Message], float]:
        """What is due, taken for a while, and how long it is until more will be."""
        settings = self._settings
        values = {
            "claim_seconds": settings.claim_seconds,
            "kinds": list(self._tellers),
            "batch": most,
        }
        async with self._database.statements() as connection:
            rows = (await connection.execute(_CLAIM, values)).all()
        messages = [Message(*row[:-1]) for row in rows if row.id is not None]
        if len(messages) == most:
            return messages, 0.0
        wait = rows[0].wait_seconds
        return messages, settings.idle_seconds if wait is None else min(wait, settings.idle_seconds)

    def _groups(self, messages: Sequence[Message]) -> list[list[Message]]:
        groups: dict[tuple[str, str], list[Message]] = {}
        for message in messages:
            subject = "" if self._tellers[message.kind].together else message.subject
            groups.setdefault((message.kind, subject), []).append(message)
        return list(groups.values())

    async def _tell(self, messages: Sequence[Message]) -> _Told:
        kind = messages[0].kind
        try:
            # The wait for its turn counts: a claim does not last for ever.
            async with asyncio.timeout(self._settings.call_seconds), self._at_once:
                with handling(messages[-1].origin, f"tell {kind}"):
                    await self._tellers[kind].tell(messages)
        except AppError as error:
            return _Told(messages, f"{error.code.name}: {error.message}")
        except TimeoutError:
            return _Told(messages, "took too long")
        except Exception as error:
            # Whatever is wrong with these, the others have to be told.
            logger.exception("cannot tell messages of kind %s", kind)
            return _Told(messages, type(error).__name__)
        return _Told(messages, None)

    async def _settle_later(self, task: asyncio.Task[_Told]) -> None:
        try:
            await self._settle([await task])
        except AppError:
            logger.debug("the database is away: told again when the claim runs out")

    async def _settle(self, told: Sequence[_Told]) -> None:
        """Drops what was told and puts off what was not."""
        done = [message.id for item in told if item.problem is None for message in item.messages]
        settings = self._settings
        # Each statement commits by itself: what ends here has told, and tells again.
        fault_point("trainer.outbox.settled")
        async with self._database.statements() as connection:
            if done:
                await connection.execute(_DROP, {"ids": done})
            for item in told:
                if item.problem is not None:
                    values = {
                        "ids": [message.id for message in item.messages],
                        "problem": item.problem,
                        "first_seconds": settings.retry_first_seconds,
                        "longest_seconds": settings.retry_longest_seconds,
                    }
                    await connection.execute(_PUT_OFF, values)
        fault_point("trainer.outbox.committed")
        for item in told:
            self._count(item)
            if item.problem is not None:
                # It is due again sooner than was known when it was claimed.
                self._database.wakes.ring(outbox_topic(item.messages[0].kind))

    def _count(self, told: _Told) -> None:
        kind = told.messages[0].kind
        (_TOLD if told.problem is None else _FAILED).labels(kind).inc(len(told.messages))
        if told.problem is not None and kind not in self._failing:
            self._failing.add(kind)
            logger.warning("messages of kind %s cannot be told: %s", kind, told.problem)
        elif told.problem is None and kind in self._failing:
            self._failing.remove(kind)
            logger.info("messages of kind %s are told again", kind)
