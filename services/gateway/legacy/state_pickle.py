"""The pickle in a .pth file, read and written without unpickling: names of tensors, and where their numbers
are.

Reading follows the operations by a list of those that such a pickle has. Whatever else one says, a call of
something or an operation, is refused, so that nothing in it is ever run.
"""

from __future__ import annotations

import itertools
import math
import pickletools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from guidehall.core.errors import InvalidArgument

# Bytes of an item and torch's storage, by the name of the type in safetensors.
TYPES = {
    "F64": (8, "Double"), "F32": (4, "Float"), "F16": (2, "Half"), "BF16": (2, "BFloat16"),
    "I64": (8, "Long"), "I32": (4, "Int"), "I16": (2, "Short"), "I8": (1, "Char"),
    "U8": (1, "Byte"), "BOOL": (1, "Bool"),
}  # fmt: skip
_NAMES = {f"torch {word}Storage": name for name, (_, word) in TYPES.items()}
_DICT, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
# Where training scripts put the weights among other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_TENSORS = 1000
# About 30 each, of thrice as many tensors: an optimizer keeps two for each of the model's.
_MAX_OPERATIONS = 100_000
_MAX_DIMENSIONS = 8
_MAX_NUMBERS = 2**40
_CONSTANTS = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Tensor:
    """A tensor, whose numbers are a record of their own.

    Attributes:
        key: name of that record.
        dtype: as safetensors calls it.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * TYPES[self.dtype][0]


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: str
    numbers: int


_MARK = object()


class _Machine:
    """An unpickler that makes tensors' descriptions and plain containers only."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """What the pickle holds."""
        argument: Any
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count >= _MAX_OPERATIONS:
                raise _refusal(f"a pickle of more than {_MAX_OPERATIONS} operations")
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _TUPLES:
                count = _TUPLES[name]
                self._stack[-count:] = [tuple(self._stack[-count:])]
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[argument] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif name != "PROTO":
                self._step(name, argument)
        raise _refusal("a pickle that does not end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        match name:
            case "MARK":
                stack.append(_MARK)
            case "GLOBAL":
                stack.append(_Global(argument))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(self._above_mark()))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = self._above_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][_text(key)] = value
            case "SETITEMS":
                items = self._above_mark()
                for key, value in zip(items[::2], items[1::2], strict=True):
                    stack[-1][_text(key)] = value
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(_made(called, arguments))
            case "BUILD":
                # Of a dict, what torch notes of its modules' versions.
                stack.pop()
                if not isinstance(stack[-1], dict):
                    raise _refusal("something else than tensors")
            case _:
                raise _refusal(f"the operation {name} in its pickle")

    def _above_mark(self) -> list[Any]:
        # What is passed over is taken away, so that all searches together pass over each item once.
        for at in range(len(self._stack) - 1, -1, -1):
            if self._stack[at] is _MARK:
                above = self._stack[at + 1 :]
                del self._stack[at:]
                return above
        raise IndexError


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError
    return key


def _storage(found: Any) -> _Storage:
    match found:
        case ("storage", _Global(name), str(key), str(), int(numbers)) if 0 <= numbers <= _MAX_NUMBERS:
            if name not in _NAMES:
                raise _refusal(f"{name[:80]} among its tensors")
            return _Storage(key, _NAMES[name], numbers)
    raise TypeError


def _made(called: Any, arguments: Any) -> Any:
    match called, arguments:
        case _Global(name), () if name == _DICT:
            return {}
        case _Global(name), (_Storage() as storage, 0, tuple(shape), tuple(stride), _, _, *_) if (
            name == _TENSOR
        ):
            # Before anything that takes the longer the more there are.
            if len(shape) > _MAX_DIMENSIONS:
                raise _refusal(f"a tensor of {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
            sizes = all(type(size) is int and 0 <= size <= _MAX_NUMBERS for size in shape)
            if not sizes or math.prod(shape) != storage.numbers:
                raise _refusal("a tensor that shares its numbers with another")
            expected = tuple(_strides(shape))
            if any(size > 1 and a != b for size, a, b in zip(shape, stride, expected, strict=True)):
                raise _refusal("a tensor whose numbers are not in order: call contiguous() before saving")
            return Tensor(storage.key, storage.dtype, shape)
        case _Global(name), (Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
        case _Global(name), _ if name not in (_DICT, _TENSOR, _PARAMETER):
            raise _refusal(f"{name[:80]} in its pickle, which is not called")
    raise _refusal("a tensor that shares its numbers with another")


def _strides(shape: tuple[int, ...]) -> Iterator[int]:
    return (math.prod(shape[place + 1 :]) for place in range(len(shape)))


def read_state(data: bytes) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        InvalidArgument: the pickle says anything else.
    """
    try:
        found = _Machine().run(data)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, MemoryError):
        raise _refusal("a pickle that makes no sense") from None
    for name in _WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
            break
    if not isinstance(found, dict) or not 1 <= len(found) <= _MAX_TENSORS:
        raise _refusal("no dict of tensors")
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise _refusal(f"{name[:80]}, which is no tensor")
    keys = [tensor.key for tensor in found.values()]
    if len(set(keys)) != len(keys):
        raise _refusal("a tensor that shares its numbers with another")
    return found


def write_state(tensors: Mapping[str, Tensor]) -> bytes:
    """The pickle of a dict of tensors.

    Raises:
        InvalidArgument: a type that torch has no such storage for.
    """
    parts = [b"\x80\x02", *_called(_DICT, b")"), b"("]
    for name, tensor in tensors.items():
        if tensor.dtype not in TYPES:
            raise _refusal(f"a tensor of type {tensor.dtype}")
        numbers = math.prod(tensor.shape)
        storage = (TYPES[tensor.dtype][1], tensor.key, numbers)
        parts += [_unicode(name), _global(_TENSOR), b"(", *_storage_id(*storage), _integer(0)]
        parts += [*_integers(tensor.shape), *_integers(tuple(_strides(tensor.shape)))]
        # Needs no gradient, has no hooks.
        parts += [b"\x89", *_called(_DICT, b")"), b"tR"]
    return b"".join([*parts, b"u."])


def _storage_id(word: str, key: str, numbers: int) -> Iterator[bytes]:
    yield from (b"(", _unicode("storage"), _global(f"torch {word}Storage"), _unicode(key), _unicode("cpu"))
    yield from (_integer(numbers), b"tQ")


def _called(name: str, arguments: bytes) -> tuple[bytes, bytes, bytes]:
    return _global(name), arguments, b"R"


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode("ascii") + b"\n"


def _unicode(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _integers(values: tuple[int, ...]) -> Iterator[bytes]:
    return itertools.chain([b"("], map(_integer, values), [b"t"])


def _integer(value: int) -> bytes:
    # LONG1: its length in bytes, then a signed number.
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _refusal(got: str) -> InvalidArgument:
    allowed = "the state dict of a model, plain tensors by name, as torch.save writes it"
    return InvalidArgument(f"got {got}; allowed: {allowed}", reason="CONTENT_REFUSED")
