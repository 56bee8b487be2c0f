"""The one error tree, and its two translations: to a gRPC status and to an HTTP problem.

    AppError
    ├── InvalidArgument      a field of the request is wrong
    ├── OutOfRange           a valid request for something past the end
    ├── FailedPrecondition   the resource is not in a state for it
    ├── NotFound             it does not exist, or the caller may not know that it does
    ├── AlreadyExists
    ├── Aborted              somebody else changed it first
    ├── PermissionDenied
    ├── Unauthenticated
    ├── ResourceExhausted    a quota or a queue is full
    ├── Unavailable          try again
    ├── DeadlineExceeded
    ├── Cancelled
    ├── Unimplemented
    ├── DataLoss             what is stored is not what was stored
    └── Internal             our fault
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "guidehall"
_SHOWN_VALUE_CHARACTERS = 120
# A status travels in headers, which peers limit to 8 KiB.
_MESSAGE_CHARACTERS = 2000
_VIOLATIONS_SENT = 12


class Code(Enum):
    """The canonical status codes, with gRPC's numbers."""

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
    """One field that was refused, and what would have been allowed."""

    field: str
    description: str


def shown(value: object) -> str:
    """A value as an error message shows it: its repr, cut to a length that people read."""
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE_CHARACTERS else text[: _SHOWN_VALUE_CHARACTERS - 1] + "…"


class AppError(Exception):
    """Anything that a caller is told about.

    Args:
        message: for people; holds no traceback, path or secret.
        reason: UPPER_SNAKE, for programs; each class has a default.
        metadata: what a program may want to know, as strings.
        violations: the fields that were refused.
        retry_after_seconds: when to try again, if that makes sense.
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
    code = Code.INVALID_ARGUMENT

    @classmethod
    def field(cls, field: str, value: object, allowed: str) -> InvalidArgument:
        """The uniform refusal of one field: its name, what came, what is allowed."""
        description = f"got {shown(value)}; allowed: {allowed}"
        return cls(f"{field}: {description}", violations=[Violation(field, description)])


class OutOfRange(AppError):
    code = Code.OUT_OF_RANGE


class FailedPrecondition(AppError):
    code = Code.FAILED_PRECONDITION


class NotFound(AppError):
    code = Code.NOT_FOUND


class AlreadyExists(AppError):
    code = Code.ALREADY_EXISTS


class Aborted(AppError):
    code = Code.ABORTED


class PermissionDenied(AppError):
    code = Code.PERMISSION_DENIED


class Unauthenticated(AppError):
    code = Code.UNAUTHENTICATED


class ResourceExhausted(AppError):
    code = Code.RESOURCE_EXHAUSTED


class Unavailable(AppError):
    code = Code.UNAVAILABLE


class DeadlineExceeded(AppError):
    code = Code.DEADLINE_EXCEEDED


class Cancelled(AppError):
    code = Code.CANCELLED


class Unimplemented(AppError):
    code = Code.UNIMPLEMENTED


class DataLoss(AppError):
    code = Code.DATA_LOSS


class Internal(AppError):
    code = Code.INTERNAL


_BY_CODE: dict[Code, type[AppError]] = {cls.code: cls for cls in AppError.__subclasses__()}


def to_status(error: AppError) -> status_pb2.Status:
    """The error as `google.rpc.Status`, always with ErrorInfo."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations[:_VIOLATIONS_SENT]
                ]
            )
        )
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMilliseconds(max(0, round(error.retry_after_seconds * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=error.code.value, message=error.message[:_MESSAGE_CHARACTERS])
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def from_status(status: status_pb2.Status) -> AppError:
    """The error that `to_status` made the status of."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return _BY_CODE.get(_code(status.code), AppError)(
        status.message,
        reason=info.reason or None,
        metadata=info.metadata,
        violations=[Violation(v.field, v.description) for v in bad.field_violations],
        retry_after_seconds=retry.retry_delay.ToMilliseconds() / 1000 if retry.HasField("retry_delay") else None,
    )


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN


def from_rpc_error(error: grpc.RpcError) -> AppError:
    """A failed call as the error that the server raised."""
    status = rpc_status.from_call(error) if getattr(error, "trailing_metadata", None) else None
    if status is not None:
        return from_status(status)
    number = error.code().value[0] if hasattr(error, "code") else Code.UNKNOWN.value
    details = error.details() if hasattr(error, "details") else str(error)
    return _BY_CODE.get(_code(number), AppError)(details or _code(number).name)


def problem(error: AppError, instance: str, trace_id: str | None) -> dict[str, Any]:
    """The error as the body of an RFC 9457 problem."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": error.code.name.replace("_", " ").capitalize(),
        "status": HTTP_STATUS[error.code],
        "detail": error.message,
        "instance": instance,
        "reason": error.reason,
        "metadata": error.metadata,
    }
    if error.violations:
        body["violations"] = [{"field": v.field, "description": v.description} for v in error.violations]
    if trace_id:
        body["trace_id"] = trace_id
    return body
