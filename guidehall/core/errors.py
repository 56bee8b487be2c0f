"""The one tree of errors that callers are told about, and its translations to gRPC and to HTTP.

    AppError
    ├── InvalidArgument      a field of the request is wrong, whatever the state of the system
    ├── OutOfRange           past the end of what exists
    ├── FailedPrecondition   the state of the resource does not allow it
    ├── NotFound             no such resource, or none that the caller may know of
    ├── AlreadyExists        the name is taken
    ├── Aborted              somebody else was quicker; read again and retry
    ├── Unauthenticated      no valid credential
    ├── PermissionDenied     the caller is known and may not
    ├── ResourceExhausted    a quota, a limit or a queue is full
    ├── Unavailable          a part is away for the moment; retry
    ├── DeadlineExceeded     the time that the caller gave is over
    ├── Cancelled            the caller gave up
    ├── Unimplemented        not offered here
    ├── DataLoss             what was stored or sent is not what arrived
    └── Internal             a fault of ours

A domain raises one of these; an interceptor turns it into a status, and nothing else knows about codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, ClassVar, Self

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "guidehall"

_SHOWN_VALUE_CHARACTERS = 120
# A status travels in response headers, where clients refuse more than 8 KiB in total by default.
_MESSAGE_CHARACTERS = 512
_METADATA_CHARACTERS = 256
_STATUS_BYTES = 3072


class Code(Enum):
    """The canonical codes of gRPC with their numbers."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: dict[Code, int] = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


@dataclass(frozen=True)
class Violation:
    """One field of a request, and what is wrong with it."""

    field: str
    description: str


class AppError(Exception):
    """The root: a failure that the caller is told about.

    Args:
        message: for people; never a traceback, a path or a secret.
        reason: for programs, in UPPER_SNAKE and stable; the name of the code unless given.
        metadata: details for programs.
        violations: the fields that were refused.
        retry_after_seconds: how long to wait before another try.
    """

    code: ClassVar[Code] = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.code.name
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_seconds = retry_after_seconds


class InvalidArgument(AppError):
    """A field of the request is wrong, whatever the state of the system."""

    code = Code.INVALID_ARGUMENT

    @classmethod
    def field(cls, field: str, value: object, allowed: str) -> InvalidArgument:
        """The uniform refusal of `value` for `field`; `allowed` completes "allowed: …"."""
        description = f"got {shown(value)}; allowed: {allowed}"
        return cls(f"{field}: {description}", violations=[Violation(field, description)])


class OutOfRange(AppError):
    """Past the end of what exists."""

    code = Code.OUT_OF_RANGE


class FailedPrecondition(AppError):
    """The state of the resource does not allow it."""

    code = Code.FAILED_PRECONDITION


class NotFound(AppError):
    """No such resource, or none that the caller may know of."""

    code = Code.NOT_FOUND

    @classmethod
    def named(cls, name: str) -> Self:
        """There is nothing with this resource name."""
        return cls(f"{name} does not exist", metadata={"resource": name})


class AlreadyExists(AppError):
    """The name is taken."""

    code = Code.ALREADY_EXISTS


class Aborted(AppError):
    """Somebody else was quicker; read again and retry."""

    code = Code.ABORTED


class Unauthenticated(AppError):
    """No valid credential."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(AppError):
    """The caller is known and may not."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(AppError):
    """A quota, a limit or a queue is full."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(AppError):
    """A part is away for the moment; retry."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(AppError):
    """The time that the caller gave is over."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(AppError):
    """The caller gave up."""

    code = Code.CANCELLED


class Unimplemented(AppError):
    """Not offered here."""

    code = Code.UNIMPLEMENTED


class DataLoss(AppError):
    """What was stored or sent is not what arrived."""

    code = Code.DATA_LOSS


class Internal(AppError):
    """A fault of ours."""

    code = Code.INTERNAL


_CLASSES: dict[int, type[AppError]] = {cls.code.value: cls for cls in AppError.__subclasses__()}


def to_status(error: AppError) -> status_pb2.Status:
    """The error as `google.rpc.Status`; texts and violations beyond what headers can carry are cut."""
    status = status_pb2.Status(code=error.code.value, message=_cut(error.message, _MESSAGE_CHARACTERS))
    metadata = {key: _cut(value, _METADATA_CHARACTERS) for key, value in error.metadata.items()}
    _append(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(max(0, round(error.retry_after_seconds * 1000)))
        _append(status, retry)
    if error.violations:
        _append(status, _violation_detail(error, _STATUS_BYTES - status.ByteSize()))
    return status


def from_status(status: status_pb2.Status) -> AppError:
    """The error that `to_status` wrote."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    violations: list[Violation] = []
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
        else:
            violations += _violations_in(detail)
    delay = retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None
    return _class_of(status.code)(
        status.message,
        reason=info.reason,
        metadata=info.metadata,
        violations=violations,
        retry_after_seconds=delay,
    )


def from_rpc_error(error: grpc.RpcError) -> AppError:
    """The error that a failed call stands for, as its server raised it where the server is one of ours."""
    if not isinstance(error, (grpc.Call, grpc.aio.AioRpcError)):
        return AppError("the call failed")
    status = _rich_status(error)
    if status is not None:
        return from_status(status)
    number: int = error.code().value[0]
    if number == Code.UNAVAILABLE.value or (
        # What grpc.aio makes of a call that breaks while something is written to it.
        number == Code.INTERNAL.value and (error.details() or "").startswith("Internal error from Core")
    ):
        # The transport's own words name addresses, which are no business of the caller.
        return Unavailable("the service cannot be reached")
    return _class_of(number)(error.details() or error.code().name)


def problem(error: AppError, instance: str, trace_id: str | None) -> dict[str, Any]:
    """The error as the body of an RFC 9457 problem; `instance` is the path of the request."""
    status = HTTP_STATUS[error.code]
    return {
        "type": "about:blank",
        "title": "Client Closed Request" if status == 499 else HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "instance": instance,
        "reason": error.reason,
        "metadata": error.metadata,
        "violations": [{"field": item.field, "description": item.description} for item in error.violations],
        "trace_id": trace_id,
    }


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, cut to a length that people read."""
    # A huge value is cut before it is written out whole.
    if isinstance(value, (str, bytes)):
        value = value[: _SHOWN_VALUE_CHARACTERS + 1]
    return _cut(repr(value), _SHOWN_VALUE_CHARACTERS)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _append(status: status_pb2.Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _violation_detail(error: AppError, budget_bytes: int) -> Message:
    """The violations in the kind of detail that fits the code, as many as fit the budget."""
    detail: Any
    if error.code is Code.RESOURCE_EXHAUSTED:
        detail = error_details_pb2.QuotaFailure()
        items = [detail.Violation(subject=v.field, description=v.description) for v in error.violations]
        target = detail.violations
    elif error.code is Code.FAILED_PRECONDITION:
        detail = error_details_pb2.PreconditionFailure()
        items = [
            detail.Violation(type=error.reason, subject=v.field, description=v.description)
            for v in error.violations
        ]
        target = detail.violations
    else:
        detail = error_details_pb2.BadRequest()
        items = [detail.FieldViolation(field=v.field, description=v.description) for v in error.violations]
        target = detail.field_violations
    for item in items:
        budget_bytes -= item.ByteSize() + 4
        if budget_bytes < 0:
            break
        target.append(item)
    return detail  # type: ignore[no-any-return]


def _violations_in(detail: Any) -> list[Violation]:
    bad_request = error_details_pb2.BadRequest()
    if detail.Is(bad_request.DESCRIPTOR):
        detail.Unpack(bad_request)
        return [Violation(item.field, item.description) for item in bad_request.field_violations]
    for failure in (error_details_pb2.QuotaFailure(), error_details_pb2.PreconditionFailure()):
        if detail.Is(failure.DESCRIPTOR):
            detail.Unpack(failure)
            return [Violation(item.subject, item.description) for item in failure.violations]
    return []


def _class_of(number: int) -> type[AppError]:
    return _CLASSES.get(number, AppError)


def _rich_status(error: Any) -> status_pb2.Status | None:
    """The `google.rpc.Status` in the trailers; None without a sound one that agrees with the call."""
    try:
        status: status_pb2.Status | None = rpc_status.from_call(error)
    except (ValueError, DecodeError):
        return None
    return status
