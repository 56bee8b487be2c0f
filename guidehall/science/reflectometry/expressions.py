"""Expressions that tie one parameter to others, such as "min(film.roughness, film.thickness / 3)".

Text is parsed by Python's own parser and accepted node by node: numbers, names, + - * / **, a minus or plus
in front, and the functions of `FUNCTIONS`. Nothing of it is ever run as Python. A name is a parameter that
the user declared ("phi") or a part and what it has ("film.thickness"); `identifier` says how to write names
that Python could not read. What an expression is evaluated on is up to the caller: `Interval` here, batches
of tensors in `prior`. Needs no torch.
"""

from __future__ import annotations

import ast
import itertools
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

_MAX_DEPTH = 20
_ALPHABET = re.compile(r"[A-Za-z0-9_.,+\-*/() ]*")
# Name to the least and the largest number of arguments.
FUNCTIONS = {"min": (2, 8), "max": (2, 8), "sqrt": (1, 1), "exp": (1, 1), "log": (1, 1), "abs": (1, 1)}
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
T = TypeVar("T")


def identifier(name: str) -> str:
    """A part's name in expressions: underscores for spaces and hyphens, and one behind a word of Python."""
    plain = re.sub(r"[ -]", "_", name)
    return f"{plain}_" if keyword.iskeyword(plain) else plain


class Expression:
    """A parsed expression.

    Args:
        text: nested at most 20 deep; who takes it from a user bounds its length.

    Attributes:
        text: without blanks around it.
        names: of the parameters in it.

    Raises:
        ValueError: says what is not allowed.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        if not _ALPHABET.fullmatch(self.text):
            raise ValueError("must be made of numbers, names, + - * / ** ( ) and " + ", ".join(FUNCTIONS))
        try:
            self._root = ast.parse(self.text, mode="eval").body
        except SyntaxError:
            raise ValueError(f"cannot be read as an expression: {self.text!r}") from None
        self.names = frozenset(_names(self._root, 1))

    def evaluate(
        self,
        known: Mapping[str, T],
        number: Callable[[float], T],
        functions: Mapping[str, Callable[..., T]],
    ) -> T:
        """Its value.

        Args:
            known: values of `names`.
            number: makes a value of a number in the text.
            functions: those of `FUNCTIONS`. Operators are the values' own.
        """

        def value(node: ast.expr) -> T:
            if isinstance(node, ast.Constant):
                return number(float(node.value))  # type: ignore[arg-type]  # _names saw that it is a number
            if isinstance(node, ast.UnaryOp):
                operand = value(node.operand)
                return -operand if isinstance(node.op, ast.USub) else operand  # type: ignore[operator]
            if isinstance(node, ast.BinOp):
                result: T = _OPERATORS[type(node.op)](value(node.left), value(node.right))
                return result
            if isinstance(node, ast.Call):
                return functions[ast.unparse(node.func)](*map(value, node.args))
            return known[ast.unparse(node)]

        return value(self._root)


def _names(node: ast.expr, depth: int) -> Iterable[str]:
    """The names below `node`, all of which is checked."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"must not be nested more than {_MAX_DEPTH} deep")
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        # A number may have as many digits as the text has characters, and an exponent.
        if not math.isfinite(float(node.value)):  # type: ignore[arg-type]
            raise ValueError("has a number that is too large")
        return ()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _names(node.operand, depth + 1)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return {*_names(node.left, depth + 1), *_names(node.right, depth + 1)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name, count = node.func.id, len(node.args)
        if name not in FUNCTIONS:
            raise ValueError(f"{name} is no function here; there are {', '.join(FUNCTIONS)}")
        fewest, most = FUNCTIONS[name]
        if not fewest <= count <= most:
            allowed = "1 argument" if most == 1 else f"{fewest} to {most} arguments"
            raise ValueError(f"{name} takes {allowed}, not {count}")
        return set(itertools.chain.from_iterable(_names(part, depth + 1) for part in node.args))
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (f"{node.value.id}.{node.attr}",)
    raise ValueError(f"{ast.unparse(node)!r} is not allowed")


class Tangled(ValueError):
    """Expressions that need one another.

    Attributes:
        name: whose expression closes the circle.
    """

    def __init__(self, circle: list[str]) -> None:
        super().__init__(f"needs itself: {' -> '.join(circle)}")
        self.name = circle[0]


def order(expressions: Mapping[str, Expression]) -> list[str]:
    """Their names in an order in which each comes after those that it needs.

    Raises:
        Tangled: there is none.
    """
    done: dict[str, None] = {}

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            raise Tangled([*path[path.index(name) :], name])
        if name in done or name not in expressions:
            return
        for needed in sorted(expressions[name].names):
            visit(needed, [*path, name])
        done[name] = None

    for name in expressions:
        visit(name, [])
    return list(done)


@dataclass(frozen=True)
class Interval:
    """All that a number may be. Arithmetic on it gives bounds of the result, which may be wider than needed.

    Raises:
        ValueError: for some of the numbers an operation has no finite result, or no finite derivative.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError("may become too large")

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Interval) -> Interval:
        return self + -other

    def __mul__(self, other: Interval) -> Interval:
        return _hull(a * b for a in (self.low, self.high) for b in (other.low, other.high))

    def __truediv__(self, other: Interval) -> Interval:
        if other.low <= 0.0 <= other.high:
            raise ValueError(f"divides by what may be 0 (it lies between {other.low:g} and {other.high:g})")
        return _hull(a / b for a in (self.low, self.high) for b in (other.low, other.high))

    def __pow__(self, other: Interval) -> Interval:
        whole = other.low == other.high and other.low.is_integer()
        if whole and other.low < 0.0:
            return Interval(1.0, 1.0) / self ** Interval(-other.low, -other.low)
        if not whole and self.low <= 0.0:
            raise ValueError(
                f"raises what may be 0 or negative (from {self.low:g}) to a power that is no integer"
            )
        try:
            ends = [a**b for a in (self.low, self.high) for b in (other.low, other.high)]
        except OverflowError:
            raise ValueError("may become too large") from None
        # An even power has its least value within an interval that holds 0.
        return _hull([*ends, 0.0] if whole and other.low and self.low < 0.0 < self.high else ends)

    def clamp(self, low: float, high: float) -> Interval:
        """Brings both ends between `low` and `high`."""
        return Interval(min(max(self.low, low), high), min(max(self.high, low), high))


def _hull(ends: Iterable[float]) -> Interval:
    numbers = list(ends)
    # max() would pass over NaN, the product of 0 and an infinity, which __post_init__ keeps out.
    return Interval(min(numbers), max(numbers))


def _sqrt(x: Interval) -> Interval:
    _positive("sqrt", x)
    return Interval(math.sqrt(x.low), math.sqrt(x.high))


def _log(x: Interval) -> Interval:
    _positive("log", x)
    return Interval(math.log(x.low), math.log(x.high))


def _exp(x: Interval) -> Interval:
    try:
        return Interval(math.exp(x.low), math.exp(x.high))
    except OverflowError:
        raise ValueError("may become too large") from None


def _abs(x: Interval) -> Interval:
    ends = (abs(x.low), abs(x.high))
    return Interval(0.0 if x.low < 0.0 < x.high else min(ends), max(ends))


def _positive(function: str, x: Interval) -> None:
    # At 0 itself the derivative is infinite.
    if x.low <= 0.0:
        raise ValueError(f"takes the {function} of what may be 0 or negative (from {x.low:g})")


_INTERVAL_FUNCTIONS: dict[str, Callable[..., Interval]] = {
    "min": lambda *of: Interval(min(x.low for x in of), min(x.high for x in of)),
    "max": lambda *of: Interval(max(x.low for x in of), max(x.high for x in of)),
    "sqrt": _sqrt,
    "exp": _exp,
    "log": _log,
    "abs": _abs,
}


def bounds(expression: Expression, known: Mapping[str, Interval]) -> Interval:
    """What the expression may be, where its names may be anything in their intervals.

    Raises:
        ValueError: somewhere in there it may have no finite value or derivative.
    """
    return expression.evaluate(known, lambda x: Interval(x, x), _INTERVAL_FUNCTIONS)
