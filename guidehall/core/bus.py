"""The event bus: NATS JetStream. It wakes and announces; Postgres has the truth: nothing is lost with it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from guidehall.core.errors import Unavailable
from guidehall.core.settings import NatsSettings
from guidehall.core.telemetry import inject
from guidehall.core.tls import client_context, fault

logger = logging.getLogger(__name__)

JOBS = "JOBS"
EVENTS = "EVENTS"


def streams(settings: NatsSettings) -> list[StreamConfig]:
    """What the platform keeps on the broker, bounded."""
    max_bytes, replicas = settings.max_stream_bytes, settings.replicas
    return [
        # A doorbell is gone once heard; unheard it is worth little after a while: the sweeper rings again.
        StreamConfig(
            name=JOBS, subjects=["jobs.>"], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.FILE,
            max_age=settings.doorbell_keep_seconds, max_bytes=max_bytes // 8, max_msgs_per_subject=1000,
            discard=DiscardPolicy.OLD, num_replicas=replicas,
        ),
        StreamConfig(
            name=EVENTS, subjects=["events.>", "model.>", "dataset.>"], retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE, max_age=settings.event_keep_seconds, max_bytes=max_bytes,
            discard=DiscardPolicy.OLD, num_replicas=replicas,
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
        _heed_cancellation()

    async def decline(self) -> None:
        """Gives it back, for somebody else to hear at once."""
        try:
            await self._raw.nak()
        except NatsError:
            logger.debug("refusal lost; it will be delivered again all the same")
        _heed_cancellation()


class _Client(Client):
    """Never falls back to plaintext.

    By itself the library encrypts only when the broker demands it: whoever answers in the broker's place
    would be told the password.
    """

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if "tls" in self.options and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise NatsError("nats.tls or nats.url asks for encryption, which the broker does not offer")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class EventBus:
    """A connection that comes back by itself, however long the broker was away.

    One service owns the streams and makes them anew when they are gone; the others may only use them.
    """

    def __init__(self, settings: NatsSettings, name: str, owns_streams: bool) -> None:
        self._settings = settings
        self._name = name
        self._owns_streams = owns_streams
        self._client = _Client()
        self._connecting: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self._fetches: set[asyncio.Timeout] = set()
        self._last_error = ""

    @classmethod
    async def connect(cls, settings: NatsSettings, name: str, owns_streams: bool = False) -> EventBus:
        """Opens the bus. When the broker is away it goes on trying in the background.

        Raises:
            SettingsError: the certificates cannot be used.
        """
        bus = cls(settings, name, owns_streams)
        if settings.url is not None:
            bus._connecting = asyncio.create_task(bus._connect(settings.url), name="bus-connect")
            await asyncio.wait([bus._connecting], timeout=settings.connect_seconds)
            if bus._connecting.done():
                bus._connecting.result()
        return bus

    async def _connect(self, url: str) -> None:
        settings = self._settings
        options: dict[str, Any] = {
            "name": self._name,
            "user": settings.user,
            "password": settings.password.get_secret_value() if settings.password else None,
            "tls": client_context(settings.tls)
            or (url.startswith("tls://") and ssl.create_default_context()),
            "allow_reconnect": True,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": settings.reconnect_seconds,
            "connect_timeout": settings.connect_seconds,
            "ping_interval": settings.ping_seconds,
            "max_outstanding_pings": 2,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
            "reconnected_cb": self._on_reconnect,
            "closed_cb": self._on_close,
        }
        while True:
            try:
                await self._client.connect(url, **options)
            except (NatsError, OSError, TimeoutError) as error:
                await self._on_error(error)
                await asyncio.sleep(settings.retry_seconds)
            else:
                logger.info("bus connected")
                self._up.set()
                return

    async def _on_error(self, error: Exception) -> None:
        # While the broker is away the same error comes with every try.
        text = fault(error, "nats") or str(error) or type(error).__name__
        if text != self._last_error:
            self._last_error = text
            logger.warning("bus: %s", text)

    async def _on_disconnect(self) -> None:
        self._up.clear()
        logger.warning("bus disconnected")
        for fetch in self._fetches:
            # What was asked of the old connection will never be answered.
            fetch.reschedule(asyncio.get_running_loop().time())

    async def _on_reconnect(self) -> None:
        self._last_error = ""
        self._up.set()
        logger.info("bus reconnected")

    async def _on_close(self) -> None:
        logger.debug("bus closed")

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return bool(self._client.is_connected)

    def _jetstream(self) -> JetStreamContext:
        if not self.connected:
            raise Unavailable(
                "the event bus cannot be reached", reason="BUS_UNAVAILABLE", retry_after_seconds=1.0
            )
        return self._client.jetstream(timeout=self._settings.publish_seconds)

    async def provision(self) -> None:
        """Creates the streams that are missing and updates the others.

        Raises:
            Unavailable: the broker is away.
        """
        jetstream = self._jetstream()
        for config in streams(self._settings):
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
        finally:
            _heed_cancellation()

    async def _restore_streams(self) -> None:
        if not (self._owns_streams and self.connected):
            return
        try:
            await self.provision()
        except Unavailable as error:
            logger.warning("bus not provisioned: %s", error.__cause__ or error)

    async def durable(
        self, stream: str, subject: str, name: str, ack_seconds: float = 30.0
    ) -> AsyncIterator[Message]:
        """Messages of a durable pull consumer, one at a time, for ever, whatever is restarted or wiped.

        Args:
            stream: `JOBS` or `EVENTS`.
            subject: which of its messages.
            name: of the consumer, made when missing; those who use the same name share its messages.
            ack_seconds: a message that is not acknowledged for so long is delivered again.
        """
        config = ConsumerConfig(
            durable_name=name, filter_subject=subject, ack_policy=AckPolicy.EXPLICIT, ack_wait=ack_seconds,
            max_ack_pending=1000, max_waiting=512,
        )  # fmt: skip
        while True:
            await self._up.wait()
            try:
                subscription = await self._bind(stream, config)
                try:
                    while self.connected:
                        raw = await self._fetch(subscription)
                        _heed_cancellation()
                        if raw is None:
                            # Nothing came, or the consumer is gone: they look alike.
                            await subscription.consumer_info()
                        else:
                            yield Message(raw.subject, raw.data, dict(raw.headers or {}), raw)
                finally:
                    with suppress(NatsError):
                        await subscription.unsubscribe()
            except (NatsError, Unavailable, TimeoutError, OSError) as error:
                logger.warning("bus: consumer %s of %s: %s", name, stream, str(error) or type(error).__name__)
                await self._restore_streams()
                _heed_cancellation()
                await asyncio.sleep(self._settings.retry_seconds)

    async def _bind(self, stream: str, config: ConsumerConfig) -> JetStreamContext.PullSubscription:
        jetstream = self._jetstream()
        name = config.durable_name or ""
        try:
            await jetstream.consumer_info(stream, name)
        except NotFoundError:
            await jetstream.add_consumer(stream, config)
        return await jetstream.pull_subscribe_bind(consumer=name, stream=stream)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> Msg | None:
        """The next message; None when there was none in time, or the connection broke."""
        try:
            async with asyncio.timeout(None) as limit:
                self._fetches.add(limit)
                try:
                    return (await subscription.fetch(1, timeout=self._settings.fetch_seconds))[0]
                finally:
                    self._fetches.discard(limit)
        except TimeoutError:
            return None

    async def tail(self, subject: str) -> AsyncIterator[Message]:
        """Messages as they pass, without memory: what passes while nobody is connected is not seen."""
        await self._up.wait()
        subscription = await self._client.subscribe(subject)
        try:
            async for raw in subscription.messages:
                yield Message(raw.subject, raw.data, dict(raw.headers or {}), raw)
        finally:
            if not self._client.is_closed:
                await subscription.unsubscribe()

    async def close(self) -> None:
        """Leaves."""
        if self._connecting is None:
            return
        if not self._connecting.done():
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if not self._client.is_closed:
            await self._client.close()


def _heed_cancellation() -> None:
    """Ends a task that was cancelled: the client swallows a cancellation that meets it while it writes."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
