"""Telling pickles that begin with no mark of their own, those of protocol 0 and 1, from text and other data.

Nothing is unpickled: the operations are followed with the kinds of what they would put on the stack. A file
whose first character is a digit, a sign, white space or a comment's mark fails at its first operation.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from typing import Any

# Followed until something shows; whoever has much to hide can hide it behind more.
_MAX_OPERATIONS = 1000
# So many that take from the stack, one after the other, are no chance.
_ENOUGH = 8
_SCALARS = {"int", "int_or_bool", "bool", "float", "None", "str", "bytes", "bytes_or_str", "bytearray"}
# What an unpickler refuses unless it was made for it.
_FOREIGN = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
# Kinds of the arguments with which something imported is called.
_CALLS: dict[str, tuple[set[str], ...]] = {
    "REDUCE": ({"tuple"},),
    "NEWOBJ": ({"tuple"},),
    "NEWOBJ_EX": ({"tuple"}, {"dict"}),
    "BUILD": ({"dict", "tuple"},),
}


class _NoPickleError(Exception):
    """An unpickler would fail here, and would have run nothing before."""


class _Machine:
    """An unpickler that keeps only kinds.

    Attributes:
        taken: how many operations found on the stack what they need.
        named: a list or the like was given a number to be found by, as picklers do at once.
    """

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._memo: dict[int, str] = {}
        self.taken = 0
        self.named = False

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> bool:
        """Does one operation; tells whether it would call something.

        Raises:
            _NoPickleError: it cannot be done.
        """
        name = opcode.name
        if name in _FOREIGN:
            raise _NoPickleError
        if name in ("GLOBAL", "INST") and not _is_import(argument):
            raise _NoPickleError
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            kind = self._top()
            self._memo[len(self._memo) if argument is None else argument] = kind
            self.named |= kind not in _SCALARS
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if argument not in self._memo:
                raise _NoPickleError
            self._stack.append(self._memo[argument])
        elif name == "DUP":
            self._stack.append(self._top())
        elif name == "POP" and self._stack[-1:] == ["mark"]:
            self._stack.pop()
        else:
            return self._apply(opcode)
        return False

    def _apply(self, opcode: pickletools.OpcodeInfo) -> bool:
        needed = [kind.name for kind in opcode.stack_before]
        above: list[str] = []
        if "mark" in needed:
            above = self._above_mark()
            if needed[-2] == "any":
                # The class of OBJ, which comes first.
                if above[:1] != ["any"]:
                    raise _NoPickleError
                above = above[1:]
            needed = needed[: needed.index("mark")]
        found = self._take(len(needed))
        if opcode.name in _CALLS:
            right = found[0] == "any" and all(map(_in, found[1:], _CALLS[opcode.name]))
        else:
            right = all(
                want in ("any", kind) or kind == "any" for want, kind in zip(needed, found, strict=True)
            )
        if not right:
            raise _NoPickleError
        self.taken += bool(opcode.stack_before)
        self._stack += [kind.name for kind in opcode.stack_after]
        return opcode.name in _CALLS or (opcode.name in ("INST", "OBJ") and bool(above))

    def result(self) -> str:
        """The kind of all that is left.

        Raises:
            _NoPickleError: not just one thing.
        """
        if len(self._stack) != 1:
            raise _NoPickleError
        return self._top()

    def _top(self) -> str:
        return self._take(1, keep=True)[0]

    def _take(self, count: int, *, keep: bool = False) -> list[str]:
        found = self._stack[len(self._stack) - count :] if count <= len(self._stack) else ["mark"]
        if "mark" in found:
            raise _NoPickleError
        if not keep:
            del self._stack[len(self._stack) - count :]
        return found

    def _above_mark(self) -> list[str]:
        if "mark" not in self._stack:
            raise _NoPickleError
        at = len(self._stack) - 1 - self._stack[::-1].index("mark")
        above = self._stack[at + 1 :]
        del self._stack[at:]
        return above


def is_pickle(head: bytes, *, complete: bool) -> bool:
    """Whether unpickling would succeed, or call something before it fails.

    A pickle of a single number or text counts as none: it runs nothing, and a text may look like it.

    Args:
        head: how the content begins.
        complete: nothing follows.
    """
    machine, stream = _Machine(), io.BytesIO(head)
    try:
        # Any text may hold what Python warns of as a bad escape.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                if opcode.name == "STOP":
                    return machine.result() not in _SCALARS and not head[stream.tell() :].strip()
                if machine.step(opcode, argument):
                    return True
                if count == _MAX_OPERATIONS:
                    break
    except _NoPickleError:
        return False
    except ValueError:
        # An operation that is none, or one that is cut off.
        if complete or stream.tell() < len(head):
            return False
    return machine.named or machine.taken >= _ENOUGH


def _is_import(argument: str) -> bool:
    module, _, name = argument.partition(" ")
    return all(part.isidentifier() for part in f"{module}.{name}".split("."))


def _in(kind: str, allowed: set[str]) -> bool:
    return kind in allowed
