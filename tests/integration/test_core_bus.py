"""The event bus on a real NATS server that is killed, wiped and brought back."""

from __future__ import annotations

import asyncio
import shutil
import socket
import uuid
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import nats
import pytest

from guidehall.core.bus import EVENTS, JOBS, EventBus, Message
from guidehall.core.errors import Unavailable
from guidehall.core.settings import NatsSettings
from guidehall.core.telemetry import begin_request, current_trace_id
from guidehall.local.binaries import find_program

pytestmark = pytest.mark.timeout(60)


class Broker:
    """A NATS server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self._store = folder / "jetstream"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        self._process: Process | None = None

    @property
    def settings(self) -> NatsSettings:
        return NatsSettings(
            url=f"nats://127.0.0.1:{self._port}",
            connect_seconds=0.3,
            publish_seconds=2.0,
            reconnect_seconds=0.05,
            retry_seconds=0.05,
            max_stream_bytes=16 << 20,
        )

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(find_program("nats-server")), "--addr", "127.0.0.1", "--port", str(self._port),
            "--jetstream", "--store_dir", str(self._store),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    def wipe(self) -> None:
        shutil.rmtree(self._store)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    server = Broker(tmp_path)
    await server.start()
    yield server
    await server.kill()


@asynccontextmanager
async def bus_on(broker: Broker, **changes: object) -> AsyncIterator[EventBus]:
    settings = broker.settings.model_copy(update=changes)
    opened = await EventBus.connect(settings, "test", owns_streams=True)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def bus(broker: Broker) -> AsyncIterator[EventBus]:
    async with bus_on(broker) as opened:
        await opened.provision()
        yield opened


async def publish(bus: EventBus, subject: str, payload: bytes) -> None:
    """Publishes as an outbox does: again, under one id, until the broker has it."""
    message_id = uuid.uuid4().hex
    async with asyncio.timeout(20):
        while True:
            try:
                await bus.publish(subject, payload, message_id)
            except Unavailable:
                await asyncio.sleep(0.02)
            else:
                return


async def heard(messages: AsyncIterator[Message]) -> bytes:
    """The next message, acknowledged."""
    async with asyncio.timeout(20):
        message = await anext(messages)
    await message.ack()
    return message.data


async def _heard_until(messages: AsyncIterator[Message], last: bytes) -> set[bytes]:
    """All that is heard up to and with `last`."""
    seen: set[bytes] = set()
    while last not in seen:
        seen.add(await heard(messages))
    return seen


async def test_a_durable_consumer_hears_what_was_published_before_it(bus: EventBus) -> None:
    await bus.publish("jobs.cpu", b"1", "a")
    await bus.publish("jobs.gpu", b"other pool", "b")
    await bus.publish("jobs.cpu", b"2", "c")

    async with aclosing(bus.durable(JOBS, "jobs.cpu", "workers-cpu")) as rings:
        assert [await heard(rings), await heard(rings)] == [b"1", b"2"]


async def test_one_id_is_one_message(bus: EventBus) -> None:
    for _ in range(3):
        await bus.publish("events.job.7", b"once", "same")
    await bus.publish("events.job.7", b"last", "other")

    async with aclosing(bus.durable(EVENTS, "events.job.7", "reader")) as messages:
        assert [await heard(messages), await heard(messages)] == [b"once", b"last"]


async def test_consumers_of_one_name_share(bus: EventBus) -> None:
    first, second = (bus.durable(JOBS, "jobs.cpu", "workers-cpu") for _ in range(2))
    async with aclosing(first), aclosing(second):
        waiting = [asyncio.create_task(heard(first)), asyncio.create_task(heard(second))]
        for number in range(2):
            await bus.publish("jobs.cpu", str(number).encode(), str(number))

        assert sorted(await asyncio.gather(*waiting)) == [b"0", b"1"]


async def test_a_declined_message_comes_again(bus: EventBus) -> None:
    await bus.publish("jobs.cpu", b"1", "a")
    async with aclosing(bus.durable(JOBS, "jobs.cpu", "workers-cpu")) as rings:
        await (await anext(rings)).decline()

        assert await heard(rings) == b"1"


async def test_a_cancelled_consumer_ends_whatever_it_is_doing(bus: EventBus) -> None:
    for number in range(90):
        # More than one: who is cancelled may take one along.
        await bus.publish("jobs.busy", b"ring", str(number))

    async def decline_for_ever() -> None:
        # A declined message comes again at once: the task writes most of the time.
        async for message in bus.durable(JOBS, "jobs.busy", "busy"):
            await message.decline()
            heard.set()

    heard = asyncio.Event()
    for pauses in range(60):
        heard.clear()
        task = asyncio.create_task(decline_for_ever())
        await heard.wait()
        for _ in range(pauses % 15):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, f"still runs; cancelled after {pauses % 15} turns of the loop"


async def test_a_message_that_is_not_acknowledged_comes_again(bus: EventBus) -> None:
    await bus.publish("jobs.cpu", b"1", "a")
    async with aclosing(bus.durable(JOBS, "jobs.cpu", "workers-cpu", ack_seconds=0.2)) as rings:
        await anext(rings)

        assert await heard(rings) == b"1"


async def test_an_idle_consumer_goes_on_asking(broker: Broker) -> None:
    async with bus_on(broker, fetch_seconds=0.1) as bus:
        await bus.provision()
        async with aclosing(bus.durable(JOBS, "jobs.cpu", "workers-cpu")) as rings:
            hearing = asyncio.create_task(heard(rings))
            await asyncio.wait([hearing], timeout=0.5)
            assert not hearing.done()

            await bus.publish("jobs.cpu", b"late", "a")

            assert await hearing == b"late"


async def test_a_message_carries_its_trace(bus: EventBus) -> None:
    begin_request({})
    await bus.publish("events.job.7", b"x", "a")

    async with aclosing(bus.durable(EVENTS, "events.job.7", "reader")) as messages:
        message = await anext(messages)

    assert message.headers["traceparent"].split("-")[1] == current_trace_id()


async def test_a_tail_hears_what_passes(bus: EventBus) -> None:
    async with aclosing(bus.tail("model.>")) as tail:
        waiting = asyncio.create_task(anext(tail))
        # What passes before the subscription is known is not seen.
        number = 0
        async with asyncio.timeout(20):
            while not waiting.done():
                number += 1
                await bus.publish("model.published", b"m", str(number))

        message = await waiting

    assert (message.subject, message.data) == ("model.published", b"m")


@pytest.mark.parametrize("wiped", [False, True], ids=["restarted", "restarted with nothing in it"])
async def test_a_consumer_and_a_tail_survive_the_broker(broker: Broker, bus: EventBus, wiped: bool) -> None:
    durable = bus.durable(JOBS, "jobs.cpu", "workers-cpu")
    tail = bus.tail("events.>")
    async with aclosing(durable), aclosing(tail):
        waiting = asyncio.create_task(anext(tail))
        await bus.publish("jobs.cpu", b"before", "a")
        assert await heard(durable) == b"before"
        hearing = asyncio.create_task(_heard_until(durable, b"after"))

        await broker.kill()
        if wiped:
            broker.wipe()
        await broker.start()
        await publish(bus, "jobs.cpu", b"after")

        # Long before the request for messages that broke would have run out.
        # A killed broker may have forgotten the acknowledgement: what was heard may come again.
        assert await asyncio.wait_for(hearing, 5) <= {b"before", b"after"}
        async with asyncio.timeout(10):
            while not waiting.done():
                await publish(bus, "events.job.7", b"tail")
        assert (await waiting).data == b"tail"


async def test_a_consumer_that_was_deleted_is_made_anew(broker: Broker) -> None:
    async with bus_on(broker, fetch_seconds=0.3) as bus:
        await bus.provision()
        async with aclosing(bus.durable(JOBS, "jobs.cpu", "workers-cpu")) as rings:
            await bus.publish("jobs.cpu", b"1", "a")
            assert await heard(rings) == b"1"
            hearing = asyncio.create_task(heard(rings))
            admin = await nats.connect(broker.settings.url or "")
            await admin.jetstream().delete_consumer(JOBS, "workers-cpu")
            await admin.close()

            await bus.publish("jobs.cpu", b"2", "b")

            assert await hearing == b"2"


async def test_without_the_broker_a_publication_fails_at_once(broker: Broker, bus: EventBus) -> None:
    await broker.kill()
    async with asyncio.timeout(10):
        while bus.connected:  # noqa: ASYNC110 (there is nothing to wait for)
            await asyncio.sleep(0.01)

    async with asyncio.timeout(0.1):
        with pytest.raises(Unavailable) as caught:
            await bus.publish("jobs.cpu", b"x", "a")
        with pytest.raises(Unavailable):
            await bus.provision()

    assert caught.value.retry_after_seconds is not None


async def test_the_broker_may_come_after_its_clients(broker: Broker) -> None:
    await broker.kill()
    async with bus_on(broker) as bus, aclosing(bus.durable(JOBS, "jobs.cpu", "workers-cpu")) as rings:
        assert not bus.connected
        hearing = asyncio.create_task(heard(rings))

        await broker.start()
        await publish(bus, "jobs.cpu", b"at last")

        assert await hearing == b"at last"


async def test_a_bus_that_never_connected_closes(broker: Broker) -> None:
    await broker.kill()

    async with bus_on(broker) as bus:
        assert not bus.connected


async def test_without_a_url_there_is_no_bus() -> None:
    bus = await EventBus.connect(NatsSettings(), "test")
    try:
        assert not bus.connected
        with pytest.raises(Unavailable):
            await bus.publish("jobs.cpu", b"x", "a")
    finally:
        await bus.close()


async def test_only_the_owner_makes_streams(broker: Broker) -> None:
    guest = await EventBus.connect(broker.settings, "guest")
    try:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await guest.publish("jobs.cpu", b"x", "a")
    finally:
        await guest.close()
    async with bus_on(broker) as owner:
        await publish(owner, "jobs.cpu", b"x")


async def test_provisioning_twice_updates(broker: Broker, bus: EventBus) -> None:
    async with bus_on(broker, max_stream_bytes=32 << 20, event_keep_seconds=3600.0) as larger:
        await larger.provision()

    admin = await nats.connect(broker.settings.url or "")
    info = await admin.jetstream().stream_info(EVENTS)
    await admin.close()
    assert (info.config.max_bytes, info.config.max_age) == (32 << 20, 3600)
