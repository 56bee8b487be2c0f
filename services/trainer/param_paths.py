"""Parameters by their paths, such as `training.steps` or `stack.layers[1].thickness`; sweeps over them."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from guidehall.core.errors import InvalidArgument, Violation
from services.trainer.documents import Document

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_PATH = re.compile(rf"{_NAME}(\[\d{{1,6}}\])*(\.{_NAME}(\[\d{{1,6}}\])*)*")
_PART = re.compile(rf"{_NAME}|\[(\d+)\]")
_FORM = "a path such as training.steps or layers[1].thickness"


def parts(path: str, field: str) -> list[str | int]:
    """The keys and the list indices of a path, in order.

    Raises:
        InvalidArgument: no path; `field` is the request field to blame.
    """
    if not _PATH.fullmatch(path):
        raise InvalidArgument.field(field, path, _FORM)
    return [int(part[1]) if part[1] else part[0] for part in _PART.finditer(path)]


def assign(document: Document, path: str, value: Any, field: str, defaults: Document | None = None) -> None:
    """Sets one value in `document`. What leads there and is missing is as in `defaults`, or a new object.

    Raises:
        InvalidArgument: no path, or one that leads through something else than objects and lists.
    """
    where: Any = document
    usual: Any = defaults
    keys = parts(path, field)
    for depth, key in enumerate(keys, 1):
        if isinstance(key, int):
            if not isinstance(where, list) or key >= len(where):
                size = len(where) if isinstance(where, list) else 0
                raise InvalidArgument.field(field, path, f"list indices below {size} at [{key}]")
        elif not isinstance(where, dict):
            raise InvalidArgument.field(
                field, path, f"a path that does not look for {key!r} in a single value"
            )
        if depth == len(keys):
            where[key] = value
            return
        usual = _inside(usual, key)
        if isinstance(where, dict) and where.get(key) is None:
            where[key] = copy.deepcopy(usual) if isinstance(usual, dict | list) else {}
        where = where[key]


def _inside(document: Any, key: str | int) -> Any:
    if isinstance(document, dict):
        return document.get(key)
    if isinstance(document, list) and isinstance(key, int) and key < len(document):
        return document[key]
    return None


@dataclass(frozen=True)
class Axis:
    """Values for one parameter."""

    path: str
    values: Sequence[Any]


@dataclass(frozen=True)
class Choice:
    """One combination of a sweep: which value of each axis."""

    axes: Sequence[Axis]
    places: Sequence[int]

    def params(self, template: Document, defaults: Document | None) -> Document:
        """The template's parameters with the chosen values.

        Raises:
            InvalidArgument: a path leads nowhere.
        """
        params = copy.deepcopy(template)
        for number, (axis, place) in enumerate(zip(self.axes, self.places, strict=True)):
            assign(params, axis.path, axis.values[place], f"sweep.axes[{number}].path", defaults)
        return params

    def blame(self, field: str) -> str:
        """The field of the request that stands behind a field of the job that it makes."""
        for number, (axis, place) in enumerate(zip(self.axes, self.places, strict=True)):
            path = f"params.{axis.path}"
            if field == path or field.startswith((f"{path}.", f"{path}[")):
                return f"sweep.axes[{number}].values[{place}]{field.removeprefix(path)}"
        return field if field.startswith("sweep.") else f"sweep.template.{field}"


def combinations(axes: Sequence[Axis], zipped: bool, most: int) -> Iterator[Choice]:
    """Every combination of the axes' values, the last axis fastest; or the first of each, then the second.

    Raises:
        InvalidArgument: an axis has no values, two have one path, they do not fit, or there are too many.
    """
    if not axes:
        raise InvalidArgument.field("sweep.axes", "none", "one or more")
    seen: dict[str, int] = {}
    for number, axis in enumerate(axes):
        field = f"sweep.axes[{number}]"
        parts(axis.path, f"{field}.path")
        if axis.path in seen:
            raise InvalidArgument.field(
                f"{field}.path", axis.path, f"another than axes[{seen[axis.path]}] has"
            )
        seen[axis.path] = number
        if not axis.values:
            raise InvalidArgument.field(f"{field}.values", "none", "one or more")
        if zipped and len(axis.values) != len(axes[0].values):
            allowed = f"{len(axes[0].values)}, as many as sweep.axes[0] has, because zipped is set"
            raise InvalidArgument.field(f"{field}.values", f"{len(axis.values)} values", allowed)
    sizes = [len(axis.values) for axis in axes]
    count = sizes[0] if zipped else math.prod(sizes)
    if count > most:
        raise InvalidArgument.field("sweep.axes", f"{count} combinations", f"at most {most}")
    places = zip(*map(range, sizes), strict=True) if zipped else itertools.product(*map(range, sizes))
    return (Choice(axes, chosen) for chosen in places)


def blamed(error: InvalidArgument, rename: Any) -> InvalidArgument:
    """The same refusal by the names that `rename` gives to its fields."""
    violations = [Violation(rename(item.field), item.description) for item in error.violations]
    message = "; ".join(f"{item.field}: {item.description}" for item in violations) or error.message
    return InvalidArgument(message, reason=error.reason, metadata=error.metadata, violations=violations)
