"""The one way that every call takes: trace, authentication, policy, deadline, validation, metrics, errors."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status
from prometheus_client import Counter, Gauge, Histogram

from guidehall.core.audit import Counts
from guidehall.core.auth import Authenticator, Policy, known_principal, require_scope, set_principal
from guidehall.core.deadlines import set_deadline
from guidehall.core.errors import (
    AppError,
    Code,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    Unavailable,
    Unimplemented,
    from_rpc_error,
    to_status,
)
from guidehall.core.telemetry import begin_request, end_request, job_id, note_job
from guidehall.core.validation import MAX_STRUCT_DEPTH, validate

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What anybody may ask, without a credential.
_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")
# A request that is checked beside the loop, so that the others need not wait for it.
_LARGE_BYTES = 64 << 10
_OURS_TO_MEND = (Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS)

_CALLS = Counter("guidehall_rpc", "Finished calls", ["method", "code"])
_SECONDS = Histogram("guidehall_rpc_seconds", "How long calls took", ["method"])
_RUNNING = Gauge("guidehall_rpc_running", "Calls being answered", ["method"])


@dataclass(frozen=True)
class Limits:
    """What calls may ask for.

    Attributes:
        default_deadline_seconds: of unary calls that come without one.
        max_deadline_seconds: of all unary calls.
        max_struct_bytes: of one struct in a request.
    """

    default_deadline_seconds: float
    max_deadline_seconds: float
    max_struct_bytes: int


class _HungUp(Exception):
    """Nobody reads the answer any more."""


class Chain(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every method once. gRPC answers each call in a task of its own: context set here ends with it."""

    def __init__(
        self,
        authenticator: Authenticator,
        policies: Mapping[str, Policy],
        limits: Limits,
        counts: Counts | None = None,
    ) -> None:
        self._counts = counts
        self._authenticator = authenticator
        self._policies = policies
        self._limits = limits
        self._wrapped: dict[str, Any] = {}
        self._watchers: set[asyncio.Timeout] = set()
        self._running: set[asyncio.Task[Any]] = set()

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The wrapped handler of a method; None for one that nobody registered."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._wrap(handler, method)
        return wrapped

    def end_watchers(self) -> None:
        """Ends streams of health and reflection, which else would last as long as their clients like."""
        for limit in self._watchers:
            limit.reschedule(asyncio.get_running_loop().time())

    async def ended(self, seconds: float) -> None:
        """Waits until every call that was answered has ended, with all it has to clear away."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    def _wrap(self, handler: Any, method: str) -> Any:
        streams = handler.request_streaming, handler.response_streaming
        make, behaviour = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
        }[streams]
        if method.startswith(_OPEN):
            legible = _legible(behaviour, handler.request_streaming)
            wrapped = self._watched(legible) if handler.response_streaming else legible
        else:
            wrapped = self._guarded(behaviour, method, streams)
        return make(wrapped, _reader(handler.request_deserializer), handler.response_serializer)

    def _guarded(
        self, behaviour: Any, method: str, streams: tuple[bool, bool]
    ) -> Callable[..., Awaitable[Any]]:
        streams_requests, streams_answers = streams
        policy = self._policies.get(method) or self._policies.get(method.rpartition("/")[0] + "/*")
        limits = None if any(streams) else self._limits
        most = self._limits.max_struct_bytes

        async def guarded(request: Any, context: Any) -> Any:
            measured = _Measured(method)
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 (gRPC made one for this call)
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            try:
                seconds = await self._begin(method, policy, limits, context)
                if streams_requests:
                    request = _validated(request, most)
                else:
                    await _validate(request, most)
                    _note_job(request)
                answer = behaviour(request, context)
                if streams_answers:
                    answer = _write(answer, context)
                result = await _within(seconds, answer, method)
                measured.code = _code_name(context)
                return result
            except BaseException as error:
                if _is_from_outside(error):
                    measured.code = Code.CANCELLED.name
                    raise
                if isinstance(error, _HungUp):
                    measured.code = Code.CANCELLED.name
                    raise asyncio.CancelledError from error
                if isinstance(error, grpc.aio.AbortError):
                    measured.code = _code_name(context)
                    raise
                told = _told(error, method, context)
                measured.code = told.code.name
                try:
                    await context.abort_with_status(rpc_status.to_status(to_status(told)))
                except grpc.aio.InternalError as left:
                    # Nobody is there any more to be told.
                    raise asyncio.CancelledError from left
            finally:
                measured.end()
                if self._counts is not None:
                    self._counts.call(known_principal(), method, request, measured.code)

        return guarded

    async def _begin(
        self, method: str, policy: Policy | None, limits: Limits | None, context: Any
    ) -> float | None:
        """Trace, authentication, authorisation, deadline.

        Returns:
            Seconds the call may take; None for no bound.
        """
        metadata = {
            name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        begin_request(metadata, method)
        principal = await self._authenticator.authenticate(metadata, context.peer())
        # Before the policy is asked: whom it refuses is counted, too.
        set_principal(principal)
        if policy is None:
            raise PermissionDenied(
                f"{method} is open to nobody", reason="NO_POLICY", metadata={"method": method}
            )
        policy.check(principal, method)
        require_scope(principal, method)
        job_id.set(principal.job_id or "")
        seconds: float | None = context.time_remaining()
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded("the deadline had passed on arrival")
        if limits is not None:
            wanted = limits.default_deadline_seconds if seconds is None else seconds
            seconds = min(wanted, limits.max_deadline_seconds)
        set_deadline(seconds)
        return seconds

    def _watched(self, behaviour: Any) -> Callable[..., Awaitable[None]]:
        async def watched(request: Any, context: Any) -> None:
            try:
                async with asyncio.timeout(None) as limit:
                    self._watchers.add(limit)
                    try:
                        await _write(behaviour(request, context), context)
                    finally:
                        self._watchers.discard(limit)
            except TimeoutError:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")

        return watched


def _reader(deserialize: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """Reads requests; one that cannot be read is None, for `_validate` to refuse in our own way."""

    def read(data: bytes) -> Message | None:
        try:
            return deserialize(data)
        except DecodeError:
            return None

    return read


def _legible(behaviour: Any, streams_requests: bool) -> Callable[[Any, Any], Any]:
    """A method that others wrote, which does not expect requests that could not be read."""

    async def one(request: Message | None, context: Any) -> Any:
        await _refuse_unreadable(request, context)
        return await behaviour(request, context)

    async def each(requests: AsyncIterator[Message | None], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            await _refuse_unreadable(request, context)
            yield request

    if streams_requests:
        return lambda requests, context: behaviour(each(requests, context), context)
    return one


async def _refuse_unreadable(request: Message | None, context: Any) -> None:
    if request is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is no message of its kind")


async def _validate(request: Message | None, max_struct_bytes: int) -> None:
    if request is None:
        raise InvalidArgument(
            f"the request is no message of its kind, or nested more than {MAX_STRUCT_DEPTH} deep",
            reason="UNREADABLE_REQUEST",
        )
    if request.ByteSize() > _LARGE_BYTES:
        await asyncio.to_thread(validate, request, max_struct_bytes)
    else:
        validate(request, max_struct_bytes)


def _note_job(request: Message | None) -> None:
    for field in ("job", "name"):
        name = getattr(request, field, None)
        if isinstance(name, str) and "/jobs/" in name:
            note_job(name)


async def _validated(
    requests: AsyncIterator[Message | None], max_struct_bytes: int
) -> AsyncIterator[Message | None]:
    async for request in requests:
        await _validate(request, max_struct_bytes)
        yield request


async def _write(answer: Any, context: Any) -> None:
    """Sends what a streaming method gives; one that is no generator writes through the context itself.

    The generator is closed here and now, so that its clean-up runs in the task of its call.
    """
    if not hasattr(answer, "__aiter__"):
        await answer
        return
    async with aclosing(answer) as messages:
        async for message in messages:
            try:
                await context.write(message)
            except grpc.aio.InternalError as error:
                # All that the transport says when the other side has gone.
                raise _HungUp from error


async def _within(seconds: float | None, answer: Awaitable[T], method: str) -> T:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await answer
    except TimeoutError:
        if limit.expired():
            raise DeadlineExceeded(f"{method} took longer than its deadline") from None
        raise


def _is_from_outside(error: BaseException) -> bool:
    """Whether the call was cancelled or the process is ending, rather than that something in it failed.

    A handler may also let the cancellation of something else escape. gRPC would then never answer.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return not isinstance(error, Exception)


def _told(error: BaseException, method: str, context: Any) -> AppError:
    """What the caller is told about a failure."""
    if isinstance(error, AppError):
        return error
    if isinstance(error, NotImplementedError) and _code_name(context) == Code.UNIMPLEMENTED.name:
        # The generated base of a servicer says so of what the servicer leaves out.
        return Unimplemented(f"{method} is not offered here")
    if isinstance(error, TimeoutError):
        logger.warning("%s: a part did not answer in time", method, exc_info=error)
        return Unavailable("a part of the service did not answer in time", reason="DEPENDENCY_TIMEOUT")
    if isinstance(error, grpc.RpcError):
        # What is passing stays so for our caller; any other refusal of one service by another is our fault.
        passed_on = from_rpc_error(error)
        if isinstance(passed_on, (Unavailable, DeadlineExceeded)):
            return passed_on
    error_id = uuid.uuid4().hex
    logger.error("%s failed (error %s)", method, error_id, exc_info=error)
    return Internal("internal error", metadata={"error_id": error_id})


def _code_name(context: Any) -> str:
    """The code that a handler set by itself, kept by gRPC as a number or as a code; OK without one."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    return Code(code).name if code else "OK"


class _Measured:
    """Counts and times one call."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._start = time.perf_counter()
        self.code = "OK"
        _RUNNING.labels(method).inc()

    def end(self) -> None:
        """The call is over."""
        end_request(failed=any(self.code == code.name for code in _OURS_TO_MEND))
        _RUNNING.labels(self._method).dec()
        _CALLS.labels(self._method, self.code).inc()
        _SECONDS.labels(self._method).observe(time.perf_counter() - self._start)
