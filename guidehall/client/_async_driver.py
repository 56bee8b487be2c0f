"""Performs the steps of operations on asyncio gRPC channels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio

from guidehall.client import _channels
from guidehall.client._config import Credentials, Tls
from guidehall.client._endpoints import Endpoints
from guidehall.client._steps import (
    Call,
    Emit,
    Open,
    Operation,
    Pause,
    Progression,
    Read,
    Rpc,
    Step,
    Upload,
    Work,
)
from guidehall.core.errors import AppError

T = TypeVar("T")


class _Stream:
    def __init__(self, rpc: Rpc, call: Any) -> None:
        self.rpc = rpc
        self.messages = aiter(call)
        self.cancel: Callable[[], object] = call.cancel


async def _aiter(items: Iterator[Any]) -> AsyncIterator[Any]:
    """`items` made in a thread, because making them reads files."""
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item


class AsyncDriver:
    """One channel for each service, opened when first needed; belongs to one event loop."""

    def __init__(self, endpoints: Endpoints, credentials: Credentials, tls: Tls) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[type[Any], Any] = {}
        self._closed = False

    async def run(self, operation: Operation[T]) -> T:
        """Performs `operation` and returns its result."""
        progression = Progression(operation)
        async for _ in self._steps(progression):
            raise AssertionError("an operation with items must be iterated")
        return progression.result

    def iterate(self, operation: Operation[None]) -> AsyncIterator[Any]:
        """Performs `operation` and yields what it emits."""
        return self._steps(Progression(operation))

    async def close(self) -> None:
        """Ends every call and closes the channels."""
        self._closed = True
        for channel in self._channels.values():
            await channel.close(None)

    async def _steps(self, progression: Progression[Any]) -> AsyncIterator[Any]:
        opened: list[_Stream] = []
        try:
            while (step := progression.advance()) is not None:
                if isinstance(step, Emit):
                    progression.answer(None)
                    yield step.item
                    continue
                try:
                    progression.answer(await self._perform(step, opened))
                except (AppError, OSError) as error:
                    progression.fail(error)
        finally:
            progression.close()
            for stream in opened:
                stream.cancel()

    async def _perform(self, step: Step, opened: list[_Stream]) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Work):
            return await asyncio.to_thread(step.function)
        if isinstance(step, Read):
            return await self._guard(step.stream.rpc, anext(step.stream.messages, None))
        if isinstance(step, Call):
            return await self._guard(step.rpc, self._start(step.rpc, step.request, step.timeout_seconds))
        if isinstance(step, Open):
            stream = _Stream(step.rpc, self._start(step.rpc, step.request, step.timeout_seconds))
            opened.append(stream)
            return stream
        if isinstance(step, Upload):
            requests = _aiter(step.requests)
            try:
                return await self._guard(step.rpc, self._start(step.rpc, requests, step.timeout_seconds))
            except (AppError, asyncio.CancelledError):
                # The call is cancelled when making a request fails.
                if step.requests.error is not None:
                    raise step.requests.error from None
                raise
        raise AssertionError(step)

    def _start(self, rpc: Rpc, request: Any, timeout_seconds: float) -> Any:
        method = getattr(self._stub(rpc), rpc.method)
        return method(request, timeout=timeout_seconds, metadata=self._credentials.metadata())

    async def _guard(self, rpc: Rpc, answer: Awaitable[Any]) -> Any:
        try:
            return await answer
        except grpc.RpcError as error:
            raise _channels.failure(rpc, self._endpoints[rpc.service], error) from error

    def _stub(self, rpc: Rpc) -> Any:
        if self._closed:
            raise RuntimeError("this client is closed")
        if rpc.service not in self._channels:
            self._channels[rpc.service] = _channels.open_channel(
                self._endpoints[rpc.service], self._tls, grpc.aio.insecure_channel, grpc.aio.secure_channel
            )
        if rpc.stub not in self._stubs:
            self._stubs[rpc.stub] = rpc.stub(self._channels[rpc.service])
        return self._stubs[rpc.stub]
