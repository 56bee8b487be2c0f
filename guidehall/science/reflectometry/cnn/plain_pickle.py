"""Data out of pickles, without unpickling: dict, list, tuple, str, bytes, numbers and numpy arrays.

The operations of a file are followed one by one. Nothing is imported and nothing is called for it: the few
names that numpy writes stand for fixed steps here, and any other is refused.
"""

from __future__ import annotations

import io
import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_PICKLE_BYTES = 256 << 10
_MAX_OPERATIONS = 20_000
_MAX_ITEMS = 10_000
_MAX_DIMENSIONS = 8

_VALUES = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT",
    "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What numpy writes, by what it stands for; its parts were renamed in numpy 2.
_NUMPY_NAMES = {
    f"{module}.{name}": name
    for module in ("numpy._core.multiarray", "numpy.core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {"numpy.ndarray": "ndarray", "numpy.dtype": "dtype"}
_NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class NotPlainError(ValueError):
    """The file holds something else than plain data. The message may be shown to anybody."""


@dataclass(frozen=True)
class _Named:
    """One of the names in _NUMPY_NAMES."""

    name: str


@dataclass
class _Type:
    """A numpy type: a letter and a size, and the byte order once it is known."""

    code: str
    order: str = "<"

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass
class PlainArray:
    """A numpy array: numbers, or a list of objects, or the only object of an array of no dimension."""

    value: Any = None


_MARK = object()


class _Reader:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        stream = io.BytesIO(data)
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _MAX_OPERATIONS:
                raise NotPlainError(f"more than {_MAX_OPERATIONS} operations")
            if opcode.name == "STOP":
                break
            self._step(opcode.name, argument)
        (value,) = self._take(1)
        if self._stack:
            raise NotPlainError("an incomplete pickle")
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in _VALUES:
            self._push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}.get(name, argument))
        elif name in _EMPTY:
            self._push(_EMPTY[name]())
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in ("TUPLE", "LIST"):
            items = self._above_mark()
            self._push(tuple(items) if name == "TUPLE" else items)
        elif name == "DICT":
            items = self._above_mark()
            self._push({})
            self._set_items(items)
        elif name in _TUPLES:
            self._push(tuple(self._take(_TUPLES[name])))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if argument is None else argument] = self._top(object)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise NotPlainError("a reference to nothing")
            self._push(self._memo[argument])
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._take(2) if name == "SETITEM" else self._above_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self._take(1) if name == "APPEND" else self._above_mark()
            self._top(list).extend(items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ", 1) if name == "GLOBAL" else self._take(2)
            self._push(_named(words))
        elif name == "REDUCE":
            function, arguments = self._take(2)
            self._push(_call(function, arguments))
        elif name == "BUILD":
            (state,) = self._take(1)
            _build(self._top(object), state)
        else:
            raise NotPlainError(f"the operation {name}, which plain data do not need")

    def _push(self, value: Any) -> None:
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise NotPlainError("a number of more than 64 bits")
        self._stack.append(value)

    def _take(self, count: int) -> list[Any]:
        taken = self._stack[len(self._stack) - count :] if count <= len(self._stack) else [_MARK]
        if any(item is _MARK for item in taken):
            raise NotPlainError("an operation that lacks what it works on")
        del self._stack[len(self._stack) - count :]
        return taken

    def _top(self, kind: type[Any]) -> Any:
        (value,) = self._take(1)
        if not isinstance(value, kind):
            raise NotPlainError("an operation on the wrong kind of thing")
        self._stack.append(value)
        return value

    def _above_mark(self) -> list[Any]:
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                above = self._stack[at + 1 :]
                del self._stack[at:]
                return above
        raise NotPlainError("an operation that lacks what it works on")

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
            raise NotPlainError("a dict whose keys are not words")
        self._top(dict).update(zip(keys, values, strict=True))


def _named(words: list[Any]) -> _Named:
    name = ".".join(word for word in words if isinstance(word, str))[:200]
    if name not in _NUMPY_NAMES:
        raise NotPlainError(f"the name {name}; only numbers, words, dicts and numpy arrays may be in it")
    return _Named(_NUMPY_NAMES[name])


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        # The shape and the type that come with it are those of an empty array; BUILD brings the real ones.
        case _Named("_reconstruct"), (_Named("ndarray"), *_):
            return PlainArray()
        case _Named("dtype"), (str(code), *_) if code in _NUMBERS or code in ("O8", "O"):
            return _Type(code)
        case _Named("scalar"), (_Type() as kind, bytes(data)) if kind.code in _NUMBERS:
            return _numbers(kind, (), data).item()
    raise NotPlainError("a call, which plain data do not need")


def _build(target: Any, state: Any) -> None:
    match target, state:
        # Version, byte order, and what only structured types have.
        case _Type(), (int(), str(order), *_) if order in ("<", ">", "|", "="):
            target.order = order if target.code != "O8" else "|"
        case PlainArray(), (int(), tuple(shape), _Type() as kind, _, bytes(data)) if kind.code in _NUMBERS:
            target.value = _numbers(kind, shape, data)
        case PlainArray(), (int(), tuple(shape), _Type("O8" | "O"), _, list(items)):
            if _size(shape) != len(items):
                raise NotPlainError("an array of another length than its shape says")
            target.value = items[0] if shape == () else items
        case _:
            raise NotPlainError("a state that is not that of a numpy array")


def _size(shape: tuple[Any, ...]) -> int:
    plain = len(shape) <= _MAX_DIMENSIONS and all(type(n) is int and 0 <= n <= _MAX_ITEMS for n in shape)
    size = math.prod(shape) if plain else _MAX_ITEMS + 1
    if size > _MAX_ITEMS:
        raise NotPlainError(f"an array of more than {_MAX_ITEMS} items or {_MAX_DIMENSIONS} dimensions")
    return size


def _numbers(kind: _Type, shape: tuple[Any, ...], data: bytes) -> np.ndarray:
    if _size(shape) * kind.dtype().itemsize != len(data):
        raise NotPlainError("an array of another length than its shape says")
    return np.frombuffer(data, kind.dtype()).reshape(shape)


def read_plain(data: bytes) -> Any:
    """The data in a pickle of any protocol, numpy arrays as `PlainArray`.

    Dicts and lists may contain each other: look up what you need instead of walking through all of it.

    Raises:
        NotPlainError: it holds something else, is damaged, or is too large.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise NotPlainError(f"{len(data)} bytes; at most {MAX_PICKLE_BYTES} are allowed")
    try:
        return _Reader().read(data)
    except (ValueError, IndexError, OverflowError, RecursionError) as error:
        if isinstance(error, NotPlainError):
            raise
        raise NotPlainError("a damaged pickle") from None
