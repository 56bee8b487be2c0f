"""Random messages of any type: names of things that are there, bounds of numbers, texts against parsers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_TEXTS = (
    "",
    " ",
    "a",
    "-",
    "projects/default",
    "projects/default/jobs/..",
    "../../etc/passwd",
    "' or 1=1 --",
    "%s%n{0}",
    "a\x00b",
    "\u202e\ufffe\U0001f4a3",
    "line\r\nbreak",
    "state=RUNNING",
    'owner="ada" AND',
    "(" * 300,
    "a" * 70_000,
    "-1",
    "1e999",
    "NaN",
    "00000000-0000-4000-8000-000000000000",
)
_INTEGERS = (0, 1, 2, 3, 100, 1001, 2**31 - 1, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
_FLOATS = (0.0, -0.0, 1.0, 0.05, -1.0, 1e308, 5e-324, math.nan, math.inf, -math.inf)
_MOST_DEEP = 5
_BOUNDS = {
    **dict.fromkeys((FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM), (-(2**31), 2**31 - 1)),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


class Maker:
    """Makes messages.

    Args:
        seed: the same one makes the same messages in the same order.
        names: resource names and ids of things that are there.
    """

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self._random = random.Random(seed)
        self._names = names

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message of one type, each field filled or not."""
        made: Message = GetMessageClass(descriptor)()
        for field in descriptor.fields:
            if self._random.random() < 0.3 or (depth == _MOST_DEEP and field.message_type is not None):
                continue
            if field.is_repeated:
                self._fill(getattr(made, field.name), field, depth)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(self.message(field.message_type, depth + 1))
            else:
                setattr(made, field.name, self._value(field))
        return made

    def damaged(self, content: bytes) -> bytes:
        """The same bytes with some changed, left out or put in."""
        changed = bytearray(content)
        for _ in range(self._random.randint(1, 4)):
            place = self._random.randint(0, len(changed))
            match self._random.randrange(3):
                case 0:
                    changed[place : place + 1] = self._random.randbytes(1)
                case 1:
                    del changed[place : place + self._random.randint(1, 8)]
                case 2:
                    changed[place:place] = self._random.randbytes(self._random.randint(1, 8))
        return bytes(changed)

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of them."""
        return self._random.choice(choices)

    def _fill(self, container: Any, field: FieldDescriptor, depth: int) -> None:
        for _ in range(self._random.choice((0, 1, 1, 2, 5))):
            if field.message_type is None:
                container.append(self._value(field))
            elif not field.message_type.GetOptions().map_entry:
                container.append(self.message(field.message_type, depth + 1))
            else:
                key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
                if value.message_type is None:
                    container[self._value(key)] = self._value(value)
                else:
                    container[self._value(key)].CopyFrom(self.message(value.message_type, depth + 1))

    def _value(self, field: FieldDescriptor) -> Any:
        chance = self._random.random()
        match field.cpp_type:
            case _ if field.type == FieldDescriptor.TYPE_BYTES:
                return self._random.randbytes(self._random.choice((0, 1, 16, 5000)))
            case FieldDescriptor.CPPTYPE_STRING:
                return self._random.choice(self._names if chance < 0.6 else _TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return chance < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE:
                return self._random.choice(_FLOATS)
            case FieldDescriptor.CPPTYPE_FLOAT:
                return self._random.choice((0.0, 1.0, -1.0, 3e38, math.nan, math.inf))
            case FieldDescriptor.CPPTYPE_ENUM if chance < 0.8:
                return self._random.choice(field.enum_type.values).number
        least, most = _BOUNDS[field.cpp_type]
        return self._random.choice([value for value in _INTEGERS if least <= value <= most])
