"""When a run counts as kept in a history before."""

from __future__ import annotations

import pytest

from guidehall.core.errors import AppError, InvalidArgument, NotFound, PermissionDenied
from services.gateway.legacy.keeping import is_repeat


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (InvalidArgument.field("request_id", "a", "an id of no other request"), True),
        (NotFound("users/ada/history/1 does not exist"), True),
        (InvalidArgument.field("entry.result", "5000000 bytes", "at most 4194304 bytes as JSON"), False),
        (InvalidArgument("entry.params: nested more than 64 deep"), False),
        (PermissionDenied("no"), False),
    ],
)
def test_only_a_repeat_counts_as_kept_before(refusal: AppError, expected: bool) -> None:
    assert is_repeat(refusal) is expected
