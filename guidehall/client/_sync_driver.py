"""Performs the steps of operations on blocking gRPC channels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, TypeVar

import grpc

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
        self.call = call
        self.cancel: Callable[[], object] = call.cancel


class SyncDriver:
    """One channel for each service, opened when first needed; usable from several threads."""

    def __init__(self, endpoints: Endpoints, credentials: Credentials, tls: Tls) -> None:
        self._endpoints = endpoints
        self._credentials = credentials
        self._tls = tls
        self._channels: dict[str, grpc.Channel] = {}
        self._stubs: dict[type[Any], Any] = {}
        self._closed = False
        self._lock = Lock()

    def run(self, operation: Operation[T]) -> T:
        """Performs `operation` and returns its result."""
        progression = Progression(operation)
        for _ in self._steps(progression):
            raise AssertionError("an operation with items must be iterated")
        return progression.result

    def iterate(self, operation: Operation[None]) -> Iterator[Any]:
        """Performs `operation` and yields what it emits."""
        return self._steps(Progression(operation))

    def close(self) -> None:
        """Ends every call and closes the channels."""
        with self._lock:
            self._closed = True
            for channel in self._channels.values():
                channel.close()

    def _steps(self, progression: Progression[Any]) -> Iterator[Any]:
        opened: list[_Stream] = []
        try:
            while (step := progression.advance()) is not None:
                if isinstance(step, Emit):
                    progression.answer(None)
                    yield step.item
                    continue
                try:
                    progression.answer(self._perform(step, opened))
                except (AppError, OSError) as error:
                    progression.fail(error)
        finally:
            progression.close()
            for stream in opened:
                stream.cancel()

    def _perform(self, step: Step, opened: list[_Stream]) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Work):
            return step.function()
        if isinstance(step, Read):
            return self._guard(step.stream.rpc, lambda: next(step.stream.call, None))
        if isinstance(step, (Call, Open)):
            answer = self._start(step.rpc, step.request, step.timeout_seconds)
            if isinstance(step, Call):
                return answer
            stream = _Stream(step.rpc, answer)
            opened.append(stream)
            return stream
        if isinstance(step, Upload):
            try:
                return self._start(step.rpc, step.requests, step.timeout_seconds)
            except AppError:
                if step.requests.error is not None:
                    raise step.requests.error from None
                raise
        raise AssertionError(step)

    def _start(self, rpc: Rpc, request: Any, timeout_seconds: float) -> Any:
        method = getattr(self._stub(rpc), rpc.method)
        metadata = self._credentials.metadata()
        return self._guard(rpc, lambda: method(request, timeout=timeout_seconds, metadata=metadata))

    def _guard(self, rpc: Rpc, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except grpc.RpcError as error:
            raise _channels.failure(rpc, self._endpoints[rpc.service], error) from error

    def _stub(self, rpc: Rpc) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            if rpc.service not in self._channels:
                self._channels[rpc.service] = _channels.open_channel(
                    self._endpoints[rpc.service], self._tls, grpc.insecure_channel, grpc.secure_channel
                )
            if rpc.stub not in self._stubs:
                self._stubs[rpc.stub] = rpc.stub(self._channels[rpc.service])
            return self._stubs[rpc.stub]
