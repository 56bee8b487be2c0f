"""The filter language of the list calls: `field = "value" AND labels.film = "a"` (a small part of AIP-160).

filter   = term { "AND" term }
term     = field operator value
field    = name { "." name }            as in `labels.film`
operator = "=" | "!=" | ":" | "<" | "<=" | ">" | ">="     ":" means "contains"
value    = a double-quoted text, in which \\" and \\\\ stand for " and \\, or one bare word
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guidehall.core.errors import InvalidArgument

MAX_FILTER_CHARACTERS = 4000
MAX_TERMS = 20

_TERM = re.compile(
    r"""\s*(?P<field>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_-]+)*)
        \s*(?P<operator>!=|<=|>=|=|:|<|>)
        \s*(?:"(?P<quoted>(?:[^"\\]|\\["\\])*)"|(?P<bare>[^\s"\\=!<>:]+))""",
    re.VERBOSE,
)
_AND = re.compile(r"\s+AND(?=\s)")
_ESCAPE = re.compile(r'\\(["\\])')


@dataclass(frozen=True)
class Term:
    """One comparison; `field` is in full, such as "labels.film"."""

    field: str
    operator: str
    value: str


def parse(text: str, fields: Mapping[str, Sequence[str]]) -> list[Term]:
    """The terms of a filter, all of which must hold; none for an empty filter.

    Args:
        text: the filter.
        fields: the operators that each field takes; "labels.*" stands for any one name after "labels.".

    Raises:
        InvalidArgument: not in this language, or a field or operator that is not offered.
    """
    if len(text) > MAX_FILTER_CHARACTERS or "\x00" in text:
        raise InvalidArgument.field(
            "filter", text, f"at most {MAX_FILTER_CHARACTERS} characters, none of them NUL"
        )
    terms: list[Term] = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        if terms:
            joint = _AND.match(text, position)
            if joint is None:
                raise _malformed(text, position)
            position = joint.end()
        match = _TERM.match(text, position)
        if match is None:
            raise _malformed(text, position)
        terms.append(_term(match, fields))
        position = match.end()
    if len(terms) > MAX_TERMS:
        raise InvalidArgument.field("filter", text, f"at most {MAX_TERMS} terms")
    return terms


def _term(match: re.Match[str], fields: Mapping[str, Sequence[str]]) -> Term:
    field, operator, quoted = match["field"], match["operator"], match["quoted"]
    operators = fields.get(field)
    if operators is None and field.count(".") == 1:
        operators = fields.get(field.partition(".")[0] + ".*")
    if operators is None:
        raise InvalidArgument.field("filter", field, f"one of the fields {', '.join(sorted(fields))}")
    if operator not in operators:
        raise InvalidArgument.field(
            "filter", f"{field} {operator}", f"{field} with one of {' '.join(operators)}"
        )
    return Term(field, operator, match["bare"] if quoted is None else _ESCAPE.sub(r"\1", quoted))


def _malformed(text: str, position: int) -> InvalidArgument:
    return InvalidArgument.field("filter", text[position:], 'terms such as name = "value", joined by AND')
