from __future__ import annotations

import json
from datetime import datetime

import pytest

from guidehall.local.loglines import brief, readable

_ENTRY = {
    "ts": datetime(2030, 1, 2, 3, 4, 5, 678_000).astimezone().isoformat(timespec="milliseconds"),
    "level": "ERROR",
    "service": "trainer",
    "logger": "services.trainer.relay",
    "msg": "no luck",
    "job_id": "17",
    "about": "two words",
    "color_message": "\x1b[31mno luck",
    "exception": "Traceback:\n  File ...\nValueError: too small",
}


def test_an_entry_is_told_with_its_fields_and_its_traceback() -> None:
    assert readable(json.dumps(_ENTRY)).splitlines() == [
        '03:04:05.678 ERROR   services.trainer.relay: no luck job_id=17 about="two words"',
        "    Traceback:",
        "      File ...",
        "    ValueError: too small",
    ]


def test_an_entry_in_brief_is_how_it_ended() -> None:
    assert brief(json.dumps(_ENTRY)) == "ERROR   no luck (ValueError: too small)"


@pytest.mark.parametrize("line", ["", "plain text", "{half", "[1]", '{"no": "message"}', "{1: 2}"])
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert readable(line) == line
    assert brief(line) == line


def test_an_entry_without_a_time_is_told_too() -> None:
    assert readable('{"msg": "hello", "ts": 7}') == "--:--:--.---         : hello"
