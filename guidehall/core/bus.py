"""The event bus: NATS JetStream. It wakes and announces; the truth is in Postgres, so losing it loses nothing."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from guidehall.core.errors import Unavailable
from guidehall.core.settings import NatsSettings
from guidehall.core.telemetry import inject

logger = logging.getLogger(__name__)

JOBS = "JOBS"
EVENTS = "EVENTS"
_FETCH_SECONDS = 30.0
_RETRY_SECONDS = 1.0


def streams(max_bytes: int) -> list[StreamConfig]:
    """What the platform keeps on the broker, bounded."""
    return [
        # A doorbell is gone once heard; an unheard one is worth nothing after a while, for the sweeper rings again.
        StreamConfig(
            name=JOBS, subjects=["jobs.>"], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE,
            max_age=3600, max_bytes=max_bytes // 8, max_msgs_per_subject=1000, discard=DiscardPolicy.OLD,
        ),
        StreamConfig(
            name=EVENTS, subjects=["events.>", "model.>", "dataset.>"], retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE, max_age=7 * 86400, max_bytes=max_bytes, discard=DiscardPolicy.OLD,
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Message:
    """Something that was heard."""

    subject: str
    data: bytes
    headers: dict[str, str]
    _raw: Msg

    async def ack(self) -> None:
        """Says that it need not be delivered again."""
        try:
            await self._raw.ack()
        except NatsError:
            logger.debug("acknowledgement lost; it will come again")

    async def decline(self) -> None:
        """Gives it back, for somebody else to hear at once."""
        try:
            await self._raw.nak()
        except NatsError:
            logger.debug("refusal lost; it will be delivered again all the same")


class EventBus:
    """A connection that comes back by itself, however long the broker was away.

    One service owns the streams and makes them anew when they are gone; the others may only use them.
    """

    def __init__(self, settings: NatsSettings, name: str, owns_streams: bool) -> None:
        self._settings = settings
        self._name = name
        self._owns_streams = owns_streams
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, settings: NatsSettings, name: str, owns_streams: bool = False) -> EventBus:
        """Opens the bus. When the broker is away it goes on trying in the background."""
        bus = cls(settings, name, owns_streams)
        bus._connecting = asyncio.create_task(bus._connect(), name="bus-connect")
        await asyncio.wait([bus._connecting], timeout=settings.connect_seconds)
        return bus

    async def _connect(self) -> None:
        settings = self._settings
        while True:
            try:
                await self._client.connect(
                    settings.url,
                    name=self._name,
                    user=settings.user,
                    password=settings.password.get_secret_value() if settings.password else None,
                    tls=_tls_context(settings),
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,
                    connect_timeout=round(settings.connect_seconds) or 1,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnect,
                    reconnected_cb=self._on_reconnect,
                    closed_cb=self._on_close,
                )
                return
            except (NatsError, OSError, TimeoutError):
                await asyncio.sleep(_RETRY_SECONDS)

    async def _on_error(self, error: Exception) -> None:
        logger.debug("bus: %s", error)

    async def _on_disconnect(self) -> None:
        logger.warning("bus disconnected")

    async def _on_reconnect(self) -> None:
        logger.info("bus reconnected")

    async def _on_close(self) -> None:
        logger.debug("bus closed")

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return bool(self._client.is_connected)

    def _jetstream(self) -> JetStreamContext:
        if not self.connected:
            raise Unavailable("the event bus cannot be reached", reason="BUS_UNAVAILABLE", retry_after_seconds=1.0)
        return self._client.jetstream(timeout=self._settings.publish_seconds)

    async def provision(self) -> None:
        """Creates the streams that are missing and updates the others.

        Raises:
            Unavailable: the broker is away.
        """
        jetstream = self._jetstream()
        for config in streams(self._settings.max_stream_bytes):
            try:
                try:
                    await jetstream.update_stream(config)
                except NotFoundError:
                    await jetstream.add_stream(config)
            except (NatsError, TimeoutError) as error:
                raise Unavailable("the event bus cannot be provisioned", reason="BUS_UNAVAILABLE") from error

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        """Publishes once and waits until the broker has stored it. A repeated `message_id` counts once.

        Raises:
            Unavailable: the broker is away, or has no stream for the subject.
        """
        headers = {"Nats-Msg-Id": message_id}
        inject(headers)
        jetstream = self._jetstream()
        try:
            async with asyncio.timeout(self._settings.publish_seconds):
                await jetstream.publish(subject, payload, headers=headers)
        except (NatsError, TimeoutError) as error:
            # A broker whose streams were wiped says "no responders": make them anew for the next try.
            await self._restore_streams()
            raise Unavailable("the event bus did not store the message", reason="BUS_UNAVAILABLE") from error

    async def _restore_streams(self) -> None:
        if not (self._owns_streams and self.connected):
            return
        try:
            await self.provision()
        except Unavailable:
            logger.debug("bus not provisioned")

    async def durable(
        self, stream: str, subject: str, name: str, ack_seconds: float = 30.0
    ) -> AsyncIterator[Message]:
        """Messages of a durable pull consumer, one at a time, for ever: made when missing, whatever was restarted."""
        config = ConsumerConfig(
            durable_name=name, filter_subject=subject, ack_policy=AckPolicy.EXPLICIT, ack_wait=ack_seconds,
            max_ack_pending=1000, max_waiting=512,
        )  # fmt: skip
        while True:
            try:
                jetstream = self._jetstream()
                try:
                    await jetstream.consumer_info(stream, name)
                except NotFoundError:
                    await jetstream.add_consumer(stream, config)
                subscription = await jetstream.pull_subscribe_bind(consumer=name, stream=stream)
                while self.connected:
                    try:
                        raw = (await subscription.fetch(1, timeout=_FETCH_SECONDS))[0]
                    except TimeoutError:
                        # Nothing came, or the consumer is gone: they look alike.
                        await jetstream.consumer_info(stream, name)
                        continue
                    yield Message(raw.subject, raw.data, dict(raw.headers or {}), raw)
            except (NatsError, Unavailable, TimeoutError, OSError):
                await self._restore_streams()
            await asyncio.sleep(_RETRY_SECONDS)

    async def tail(self, subject: str) -> AsyncIterator[Message]:
        """Messages as they pass, without memory: what passes while nobody is connected is not seen."""
        while not self.connected:
            await asyncio.sleep(_RETRY_SECONDS)
        subscription = await self._client.subscribe(subject)
        try:
            async for raw in subscription.messages:
                yield Message(raw.subject, raw.data, dict(raw.headers or {}), raw)
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def close(self) -> None:
        """Leaves."""
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if not self._client.is_closed:
            await self._client.close()


def _tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    tls = settings.tls
    if not tls.enabled:
        return None
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context
