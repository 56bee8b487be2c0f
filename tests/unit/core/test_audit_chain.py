"""The chain of the audit log without a database, and its check on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from guidehall.cli._app import run
from guidehall.core import audit_chain
from guidehall.core.audit_chain import START, Seal
from guidehall.core.errors import DataLoss, InvalidArgument

_TIME = "2026-08-01T06:00:00.000000+00:00"


def event(sequence: int) -> dict[str, object]:
    return {"sequence": sequence, "method": "/x/Y", "subject": "~1", "resource": "r", "time": _TIME}


def log(batches: Sequence[int], open_events: int = 0) -> tuple[list[str], list[Seal]]:
    """An export with so many events in each batch."""
    lines, seals, sequence, previous = [], [], 0, START
    for number, count in enumerate(batches, 1):
        events = [event(sequence + place) for place in range(1, count + 1)]
        digests = [audit_chain.digest(one) for one in events]
        seal = audit_chain.sealed(number, _TIME, previous, sequence + 1, digests)
        lines += [
            audit_chain.event_line(one, digest, {}) for one, digest in zip(events, digests, strict=True)
        ]
        lines.append(audit_chain.seal_line(seal))
        seals.append(seal)
        sequence, previous = sequence + count, seal.seal
    for _ in range(open_events):
        sequence += 1
        lines.append(audit_chain.event_line(event(sequence), audit_chain.digest(event(sequence)), {}))
    return [*lines, audit_chain.end_line()], seals


def test_a_whole_log_holds() -> None:
    lines, seals = log([3, 2], open_events=1)

    verdict = audit_chain.verify(lines, (1, seals[0].seal))

    assert (verdict.begins_after, verdict.seals, verdict.events, verdict.unsealed) == (0, 2, 6, 1)
    assert verdict.seal == seals[1]
    assert audit_chain.verify([audit_chain.end_line()]).seal is None


def test_what_is_left_of_a_log_follows_on_its_anchor() -> None:
    lines, seals = log([3, 2])
    part = [audit_chain.anchor_line(seals[0]), *lines[4:]]

    assert audit_chain.verify(part, whole=False).begins_after == 1
    with pytest.raises(DataLoss, match="begins after seal 1, and retention removed up to 0"):
        audit_chain.verify(part)


@pytest.mark.parametrize(
    ("line", "told"),
    [("{", "not one of an export"), ('{"type": "event"}', "not one of"), ('{"type": "x"}', "kind 'x'")],
)
def test_lines_of_other_things_are_no_log(line: str, told: str) -> None:
    with pytest.raises(DataLoss, match=told):
        audit_chain.verify([line])


@pytest.mark.parametrize("text", ["", "7", "7:xyz", "0:" + "00" * 32, "7:" + "00" * 31])
def test_other_texts_are_no_seals(text: str) -> None:
    with pytest.raises(InvalidArgument, match="NUMBER:SEAL"):
        audit_chain.parse_seal(text)


def test_files_are_checked_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, seals = log([3, 2])
    file = tmp_path / "audit.jsonl"
    file.write_text("\n".join(lines) + "\n")
    newest = f"2:{seals[1].seal.hex()}"

    assert run(["audit", "verify", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["newest_seal"] == newest
    file.write_text("\n".join([*log([3])[0][:-1], audit_chain.end_line()]) + "\n")
    assert run(["audit", "verify", str(file)]) == 0
    assert run(["audit", "verify", str(file), "--expect", newest]) != 0
    assert "ends at seal 1, before the expected seal 2" in capsys.readouterr().err
