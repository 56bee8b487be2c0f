"""YAML of strangers: plain data only, and no more of it than was written down."""

from __future__ import annotations

from typing import Any

import yaml

from guidehall.science.pipeline import UserError

# Of nodes, with every alias counted as often as it stands: a few lines of nested aliases could mean billions.
_MAX_NODES = 20_000
# Reading YAML takes a second for each 100 kB.
_MAX_CHARACTERS = 256 << 10


def load_all(text: str, field: str) -> list[Any]:
    """The documents in a YAML text.

    Raises:
        UserError: it is not YAML of plain data, or means more than it may.
    """
    if len(text) > _MAX_CHARACTERS:
        raise UserError(field, f"{len(text)} characters of YAML", f"at most {_MAX_CHARACTERS} are allowed")
    try:
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            if node is not None and _weight(node, {}) > _MAX_NODES:
                got = f"YAML of more than {_MAX_NODES} values"
                raise UserError(field, got, "an alias counts as often as it stands")
        return list(yaml.safe_load_all(text))
    except RecursionError:
        raise UserError(field, "YAML that is nested too deep", "must be a flat document") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(field, "text that is not plain YAML", reason[:200]) from None


def _weight(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there would be if aliases were written out; one that holds itself is endless."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MAX_NODES + 1
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    known[id(node)] = 1 + sum(_weight(part, known) for part in parts)
    return known[id(node)]
