"""YAML as people write numbers in it, and no more of it than was written down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

# With every alias counted as often as it stands: a few lines of nested aliases or merge keys could mean
# billions.
MAX_VALUES = 100_000


# Python reads hexadecimal numbers of any length, and cannot write them.
_MAX_WHOLE_NUMBER = 40


class _Loader(yaml.SafeLoader):
    """A safe loader that reads `1e-6` as a number, which YAML 1.1 takes for text."""

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """The number of a node, unless it is longer than any that can be meant."""
        if len(node.value) > _MAX_WHOLE_NUMBER:
            problem = (
                f"a whole number of {len(node.value)} characters; at most {_MAX_WHOLE_NUMBER} are allowed"
            )
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return int(self.construct_yaml_int(node))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


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
    loader = _Loader(data)
    try:
        # As it is written: an alias is the node that it names, and nothing is written out yet.
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_VALUES} values, an alias counted where it stands"
            )
        return _constructed(loader, node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deep") from None
    finally:
        loader.dispose()


def _constructed(loader: _Loader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except (ValueError, OverflowError, KeyError, AttributeError):
        # What yaml lets through of `!!int x`, `!!bool x` and numbers beyond all bounds.
        raise yaml.MarkedYAMLError(problem="a value that is not what its tag says") from None


def _count(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values there are if aliases and merge keys are written out, at most one more than may be; what
    holds itself has too many."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node not in known:
        known[node] = MAX_VALUES + 1
        known[node] = min(1 + sum(_count(part, known) for part in _parts(node)), MAX_VALUES + 1)
    return known[node]


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
        return
    for key, value in node.value:
        # A name is none of the values, unless it holds some.
        if not isinstance(key, yaml.ScalarNode):
            yield key
        yield value
