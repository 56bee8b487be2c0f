"""What the old paths are, and the one shape in which everything fails there: `{"detail": …}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

PREFIX = "/api"
_NEW = "/api/v1"
# Each says where it is and what was sent there; nobody reads more.
_MAX_VIOLATIONS = 50
# Of what was sent, values and characters: what misses a field may be a whole body, and may miss many.
_MAX_INPUT = 1000


def is_old(path: str) -> bool:
    """Whether a path belongs to the old web apps: everything under /api that is not of /api/v1."""
    return path.startswith(f"{PREFIX}/") and path != _NEW and not path.startswith(f"{_NEW}/")


class OldFailure(JSONResponse):
    """A failure as the old pages read it. It may name what the caller sent, which need not be text that UTF-8
    can say, nor numbers that JSON can."""

    def __init__(
        self, status_code: int, detail: str | list[dict[str, Any]], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__({"detail": detail}, status_code=status_code, headers=headers)

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(_sayable(content), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def invalid(errors: Sequence[Mapping[str, Any]]) -> OldFailure:
    """The answer to a request that has not the shape it should have: pydantic's errors, as FastAPI lists
    them."""
    listed = [
        {
            "type": error["type"],
            "loc": list(error["loc"]),
            "msg": error["msg"],
            "input": _repeated(error.get("input")),
            **({"ctx": error["ctx"]} if error.get("ctx") else {}),
        }
        for error in errors[:_MAX_VIOLATIONS]
    ]
    return OldFailure(422, listed)


def _repeated(value: Any) -> Any:
    """What was sent, where that is little: of a longer text its beginning, of anything larger None."""
    if isinstance(value, str):
        return value if len(value) <= _MAX_INPUT else f"{value[:_MAX_INPUT]}…"
    return value if _is_small(value) else None


def _is_small(value: Any) -> bool:
    left, waiting = _MAX_INPUT, [value]
    while waiting:
        item = waiting.pop()
        parts: Sequence[Any] = ()
        if isinstance(item, dict):
            parts = (*item.keys(), *item.values()) if len(item) <= left else ()
        elif isinstance(item, (list, tuple)):
            parts = item
        left -= len(item) if isinstance(item, (str, dict, list, tuple)) else 1
        if left < 0:
            return False
        waiting += parts
    return True


def _sayable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _sayable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sayable(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)
