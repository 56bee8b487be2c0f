"""YAML of strangers: plain data only, and no more of it than was written down."""

from __future__ import annotations

import re
from typing import Any

import yaml

from guidehall.science.pipeline import UserError

# Of nodes, with every alias counted as often as it stands: a few lines of nested aliases could mean billions.
_MAX_NODES = 20_000
# Reading YAML takes a second for each 100 kB.
_MAX_CHARACTERS = 256 << 10
# Python reads hexadecimal numbers of any length, and cannot write them.
_MAX_WHOLE_NUMBER = 40


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-6` as a number, which YAML 1.1 takes for text."""

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """The number of a node, unless it is longer than any that can be meant."""
        if len(node.value) > _MAX_WHOLE_NUMBER:
            got = f"a whole number of {len(node.value)} characters; at most {_MAX_WHOLE_NUMBER} are allowed"
            raise yaml.MarkedYAMLError(problem=got, problem_mark=node.start_mark)
        return int(self.construct_yaml_int(node))


# The rule of guidehall.core.plain_yaml, which the science cannot import.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def load_all(text: str, field: str) -> list[Any]:
    """The documents in a YAML text.

    Raises:
        UserError: it is not YAML of plain data, or means more than it may.
    """
    if len(text) > _MAX_CHARACTERS:
        raise UserError(field, f"{len(text)} characters of YAML", f"at most {_MAX_CHARACTERS} are allowed")
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            if node is not None and _weight(node, {}) > _MAX_NODES:
                got = f"YAML of more than {_MAX_NODES} values"
                raise UserError(field, got, "an alias counts as often as it stands")
        return list(yaml.load_all(text, Loader=_Loader))
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
