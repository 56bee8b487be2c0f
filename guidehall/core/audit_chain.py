"""The audit log's hash chain: how events and batches are hashed, and the check of a log or of its export.

An event's digest is the SHA-256 of its canonical JSON: keys sorted, no spaces, ASCII. A batch is closed by a
seal, the SHA-256 of the canonical JSON of its number, its first and last sequence number, its time, the seal
before it, and the SHA-256 of its events' digests one after another. Whoever changes an event has to change
its digest, the seal of its batch and every seal after that, and so also the newest, which others have seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from guidehall.core.errors import DataLoss, InvalidArgument

# What stands before the first batch.
START = bytes(32)
# By retention: its event says how far the beginning of the log was removed.
RETENTION_METHOD = "/guidehall.identity.v1.AuditService/Retention"
BROKEN = "AUDIT_LOG_BROKEN"


@dataclass(frozen=True)
class Seal:
    """The end of a batch: events `first` to `last`, both included."""

    number: int
    first: int
    last: int
    time: str
    previous: bytes
    content: bytes
    seal: bytes


@dataclass(frozen=True)
class Verdict:
    """What a log that holds consists of.

    Attributes:
        begins_after: number of the last batch that retention removed; 0 when nothing was.
        seal: the newest; None in a log without any.
        unsealed: events after it, for which nothing speaks yet.
    """

    begins_after: int
    seals: int
    events: int
    unsealed: int
    seal: Seal | None

    def __str__(self) -> str:
        whole = "from its beginning" if not self.begins_after else f"from after seal {self.begins_after}"
        newest = "" if self.seal is None else f"; newest seal {self.seal.number}:{self.seal.seal.hex()}"
        return (
            f"the audit log holds {whole}: {self.events} events under {self.seals} seals, "
            f"{self.unsealed} not sealed yet{newest}"
        )


def timestamp(time: datetime) -> str:
    """A time as it is hashed: UTC, to the microsecond."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def digest(event: Mapping[str, Any]) -> bytes:
    """The digest of an event, its sequence number included."""
    return hashlib.sha256(_canonical(event)).digest()


def sealed(number: int, time: str, previous: bytes, first: int, digests: Sequence[bytes]) -> Seal:
    """Closes the batch of the events that have these digests, from the sequence number `first` on."""
    content = hashlib.sha256(b"".join(digests)).digest()
    last = first + len(digests) - 1
    return Seal(
        number, first, last, time, previous, content, _seal(number, first, last, time, previous, content)
    )


def _seal(number: int, first: int, last: int, time: str, previous: bytes, content: bytes) -> bytes:
    return hashlib.sha256(_canonical([number, first, last, time, previous.hex(), content.hex()])).digest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# Lines of an export -------------------------------------------------------------------------------------


def anchor_line(seal: Seal) -> str:
    """The line that an export begins with whose first batches are not in it."""
    return json.dumps({"type": "anchor", **_encoded(seal)})


def seal_line(seal: Seal) -> str:
    """The line that closes a batch."""
    return json.dumps({"type": "seal", **_encoded(seal)})


def event_line(event: Mapping[str, Any], stored_digest: bytes, names: Mapping[str, str]) -> str:
    """One event; `names` are those that its pseudonyms stand for, which nothing is sealed of."""
    return json.dumps({"type": "event", "event": event, "digest": stored_digest.hex(), "names": names})


def end_line() -> str:
    """The last line: without it an export was cut off."""
    return json.dumps({"type": "end"})


def _encoded(seal: Seal) -> dict[str, Any]:
    hashes = {"previous": seal.previous.hex(), "content": seal.content.hex(), "seal": seal.seal.hex()}
    return {"number": seal.number, "first": seal.first, "last": seal.last, "time": seal.time, **hashes}


def parse_seal(text: str) -> tuple[int, bytes]:
    """A seal that somebody noted, as `NUMBER:HEXADECIMAL DIGITS`.

    Raises:
        InvalidArgument: something else.
    """
    number, _, digits = text.strip().partition(":")
    try:
        parsed = int(number), bytes.fromhex(digits)
    except ValueError:
        parsed = 0, b""
    if parsed[0] < 1 or len(parsed[1]) != len(START):
        raise InvalidArgument.field("expect", text, "NUMBER:SEAL as an earlier check printed it")
    return parsed


class Verifier:
    """Reads a log line by line, in order, and stops at the first that does not hold.

    Args:
        expect: a seal that was noted earlier: the log must still have it, or have removed it by retention.
    """

    def __init__(self, expect: tuple[int, bytes] | None = None) -> None:
        self._expect = expect
        self._met = expect is None
        self._begins_after = 0
        self._last = 0
        self._seal: Seal | None = None
        self._digests: list[bytes] = []
        self._events = self._seals = 0
        self._removed = 0
        self._ended = False

    def read(self, line: str) -> None:
        """Takes the next line.

        Raises:
            DataLoss: the log is broken here; the message names the event or the batch.
        """
        try:
            entry = json.loads(line)
            kind = entry["type"]
            if self._ended:
                raise _broken("there is something after its end")
            if kind == "event":
                self._event(entry["event"], bytes.fromhex(entry["digest"]))
            elif kind in ("seal", "anchor"):
                hashes = (bytes.fromhex(entry[name]) for name in ("previous", "content", "seal"))
                seal = Seal(entry["number"], entry["first"], entry["last"], entry["time"], *hashes)
                if kind == "anchor":
                    self._anchor(seal)
                else:
                    self._close(seal)
            elif kind == "end":
                self._ended = True
            else:
                raise _broken(f"there is no line of the kind {kind!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise _broken(f"a line after event {self._last} is not one of an export") from error

    def _event(self, event: Mapping[str, Any], stored: bytes) -> None:
        sequence = event["sequence"]
        if sequence > self._last + 1:
            raise _broken(f"event {self._last + 1} is missing (batch {self._number + 1})")
        if sequence <= self._last:
            raise _broken(f"event {sequence} was put in, or is not in its place (batch {self._number + 1})")
        if digest(event) != stored:
            raise _broken(f"event {sequence} is not what was written down (batch {self._number + 1})")
        if event["method"] == RETENTION_METHOD:
            self._removed = max(self._removed, int(str(event["resource"]).rpartition("/")[2]))
        self._last = sequence
        self._events += 1
        self._digests.append(stored)

    def _anchor(self, seal: Seal) -> None:
        if self._last or self._seal is not None:
            raise _broken(f"seal {seal.number} is told of as removed, and events stand before it")
        if _recomputed(seal) != seal.seal:
            raise _broken(f"seal {seal.number}, after which the log begins, does not hold")
        self._begins_after, self._last = seal.number, seal.last
        self._take(seal)

    def _close(self, seal: Seal) -> None:
        previous = START if self._seal is None else self._seal.seal
        if seal.number > self._number + 1:
            raise _broken(f"seal {self._number + 1} is missing")
        first = self._last - len(self._digests) + 1
        if seal.number != self._number + 1 or seal.previous != previous:
            raise _broken(f"batch {seal.number} does not follow on batch {self._number}")
        if seal.first != first or seal.last != self._last or not self._digests:
            raise _broken(
                f"batch {seal.number} has the events {first} to {self._last}, not {seal.first} to {seal.last}"
            )
        if hashlib.sha256(b"".join(self._digests)).digest() != seal.content:
            raise _broken(
                f"batch {seal.number} is not what was sealed: an event in it and its digest changed"
            )
        if _recomputed(seal) != seal.seal:
            raise _broken(f"seal {seal.number} was changed")
        self._digests.clear()
        self._seals += 1
        self._take(seal)

    def _take(self, seal: Seal) -> None:
        self._seal = seal
        if self._expect is not None and self._expect[0] == seal.number:
            if self._expect[1] != seal.seal:
                raise _broken(f"seal {seal.number} is not the expected one: the log was written anew")
            self._met = True

    @property
    def _number(self) -> int:
        return 0 if self._seal is None else self._seal.number

    def finish(self, *, whole: bool = True) -> Verdict:
        """What the log consists of.

        Args:
            whole: it is to have its beginning, but for what retention says that it removed.

        Raises:
            DataLoss: something is missing at its beginning or its end.
        """
        if not self._ended:
            raise _broken(f"it is cut off after event {self._last}")
        if whole and self._begins_after != self._removed:
            raise _broken(
                f"it begins after seal {self._begins_after}, and retention removed up to {self._removed}"
            )
        if not self._met and self._expect is not None and self._expect[0] > self._begins_after:
            raise _broken(f"it ends at seal {self._number}, before the expected seal {self._expect[0]}")
        return Verdict(self._begins_after, self._seals, self._events, len(self._digests), self._seal)


def verify(lines: Iterable[str], expect: tuple[int, bytes] | None = None, *, whole: bool = True) -> Verdict:
    """Checks an export.

    Raises:
        DataLoss: it is broken; the message says where first.
    """
    verifier = Verifier(expect)
    for line in lines:
        if line.strip():
            verifier.read(line)
    return verifier.finish(whole=whole)


async def verify_stream(
    parts: AsyncIterable[Sequence[str]], expect: tuple[int, bytes] | None = None
) -> Verdict:
    """Checks a whole log as it is read, some lines at a time.

    Raises:
        DataLoss: it is broken; the message says where first.
    """
    verifier = Verifier(expect)
    async for lines in parts:
        for line in lines:
            verifier.read(line)
    return verifier.finish()


def _recomputed(seal: Seal) -> bytes:
    return _seal(seal.number, seal.first, seal.last, seal.time, seal.previous, seal.content)


def _broken(where: str) -> DataLoss:
    return DataLoss(f"the audit log is broken: {where}", reason=BROKEN)
