"""YAML as people write numbers in it, and no more of it than was written down."""

from __future__ import annotations

import re
from typing import Any

import yaml

# With every alias counted as often as it stands: a few lines of nested aliases could mean billions.
MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-6` as a number, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


# A date is text, as in JSON. Whether yaml makes a date of it depends on which other packages are imported.
_Loader.yaml_implicit_resolvers = {
    start: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for start, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def load(data: bytes) -> Any:
    """The document in a YAML or JSON text.

    Raises:
        yaml.YAMLError: it is not YAML of plain data, or means more than it may.
        UnicodeDecodeError: it is no text.
    """
    try:
        document = yaml.load(data, _Loader)  # noqa: S506 (a safe loader)
        values = _count(document, {})
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deep") from None
    if values > MAX_VALUES:
        raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES} values, an alias counted where it stands")
    return document


def _count(value: Any, known: dict[int, int]) -> int:
    """How many values there are if aliases are written out; what holds itself has too many."""
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        known[id(value)] = MAX_VALUES + 1
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(value)]
