"""Calls every rpc there is with the names of somebody's things, as others, and finds out what they got."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from guidehall.core.auth import ON_BEHALF_OF
from tests.rpcs import full_name

_SECONDS = 10
_MOST_MESSAGES = 3


@dataclass(frozen=True)
class Caller:
    """Somebody who calls, by what the calls carry."""

    name: str
    metadata: tuple[tuple[str, str], ...] = ()

    @classmethod
    def bearing(cls, name: str, token: str, delegation: str = "") -> Caller:
        """Who has a token, and perhaps acts for another."""
        carried = [("authorization", f"Bearer {token}")]
        if delegation:
            carried.append((ON_BEHALF_OF, delegation))
        return cls(name, tuple(carried))


@dataclass(frozen=True)
class Answer:
    """What came of a call: the name of its status, the bytes that came back, what a refusal said."""

    code: str
    content: bytes
    details: str = ""


@dataclass(frozen=True)
class Things:
    """Names of what somebody has, by the service or method that takes them, and a text that is in all."""

    marker: str
    fields: Mapping[str, Mapping[str, Any]]

    def request(self, method: MethodDescriptor) -> Message:
        """A request that names them."""
        service = method.containing_service.full_name
        values = {**self.fields.get(service, {}), **self.fields.get(f"{service}/{method.name}", {})}
        message = message_factory.GetMessageClass(method.input_type)()
        _fill(message, values)
        return message


async def call(
    channel: grpc.aio.Channel, method: MethodDescriptor, request: Message, caller: Caller
) -> Answer:
    """Calls, and gives what came of it; of a stream that goes on, its first messages."""
    kind = f"{'stream' if _streams_in(method) else 'unary'}_{'stream' if _streams_out(method) else 'unary'}"
    stub = getattr(channel, kind)(full_name(method), request_serializer=_serialized)
    sent: Any = _one(request) if _streams_in(method) else request
    received = bytearray()
    try:
        running = stub(sent, metadata=caller.metadata, timeout=_SECONDS)
        if _streams_out(method):
            count = 0
            async for content in running:
                received += content
                count += 1
                if count == _MOST_MESSAGES:
                    running.cancel()
                    break
        else:
            received += await running
    except grpc.aio.AioRpcError as error:
        # What came before a refusal was read, too.
        return Answer(error.code().name, bytes(received), error.details() or "")
    return Answer("OK", bytes(received))


@dataclass(frozen=True)
class Finding:
    """A read or a write that ought not to have been."""

    caller: str
    method: str
    what: str


@dataclass
class Walk:
    """All calls of all callers.

    Args:
        channels: of each service, by its full name.
        things: whose names go into the requests.
        states: digests of all that is stored, by names of the databases.
    """

    channels: Mapping[str, grpc.aio.Channel]
    things: Things
    states: Sequence[Any]

    async def as_caller(
        self, caller: Caller, called: Sequence[MethodDescriptor]
    ) -> tuple[list[Finding], dict[str, Answer]]:
        """What somebody who may see none of it got and changed, and all answers by method."""
        findings, answers = [], {}
        before = await self._state()
        for method in called:
            name = full_name(method)
            channel = self.channels[method.containing_service.full_name]
            answer = answers[name] = await call(channel, method, self.things.request(method), caller)
            if self.things.marker.encode() in answer.content:
                findings.append(Finding(caller.name, name, "read"))
            after = await self._state()
            if after != before:
                findings.append(Finding(caller.name, name, "changed"))
                before = after
        return findings, answers

    async def _state(self) -> list[str]:
        return list(await asyncio.gather(*(state() for state in self.states)))


def table(answers: Mapping[str, Mapping[str, Answer]]) -> str:
    """How many calls of each caller came to which end."""
    lines = []
    for caller, by_method in answers.items():
        counts: dict[str, int] = {}
        for answer in by_method.values():
            counts[answer.code] = counts.get(answer.code, 0) + 1
        lines.append(f"{caller:24}{len(by_method):5} calls  {json.dumps(counts, sort_keys=True)}")
    return "\n".join(lines)


def _fill(message: Message, values: Mapping[str, Any]) -> None:
    """Sets the fields that are there, also those of messages within."""
    for field in message.DESCRIPTOR.fields:
        if field.name in values:
            value = values[field.name]
            target = getattr(message, field.name)
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                if isinstance(value, Mapping):
                    _fill(target, value)
            elif isinstance(value, list):
                target.extend(value)
            else:
                setattr(message, field.name, value)


def _streams_in(method: MethodDescriptor) -> bool:
    return bool(method.client_streaming)


def _streams_out(method: MethodDescriptor) -> bool:
    return bool(method.server_streaming)


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


async def _one(request: Message) -> Any:
    yield request
