"""What calls raise: `AppError` and one subclass for each canonical gRPC code.

Every error carries `code`, a stable `reason` for programs, a message for people, `metadata`, and the
`violations` that name the fields which were refused.
"""

from __future__ import annotations

from guidehall.core.errors import (
    Aborted,
    AlreadyExists,
    AppError,
    Cancelled,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)

__all__ = [
    "Aborted",
    "AlreadyExists",
    "AppError",
    "Cancelled",
    "Code",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
]
