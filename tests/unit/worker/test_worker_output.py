from __future__ import annotations

import hashlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.worker.job_log import JobLog
from services.trainer.worker.messages import MAX_LINE_CHARACTERS, readable
from services.trainer.worker.output_lines import LineSplitter


def split(*pieces: bytes) -> list[str]:
    found: list[str] = []
    splitter = LineSplitter(found.append)
    for piece in pieces:
        splitter.feed(piece)
    splitter.close()
    return found


def test_lines_are_put_together_from_pieces() -> None:
    assert split(b"one\ntw", b"o\n\nthree") == ["one", "two", "", "three"]


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    assert split(b"10 %\r50 %\r100 %\n", b"done\r\n") == ["100 %", "done"]


def test_what_is_not_text_is_shown_as_such() -> None:
    assert split(b"\xff\x00\xc3\xa9\n") == ["��é"]


def test_an_endless_line_is_cut() -> None:
    found = split(*[b"x" * 1000] * 100)
    assert sum(map(len, found)) >= MAX_LINE_CHARACTERS
    assert max(map(len, found)) == MAX_LINE_CHARACTERS


@given(st.binary(max_size=200), st.integers(1, 50))
def test_pieces_make_no_difference(data: bytes, size: int) -> None:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert split(*pieces) == split(data)


def test_a_job_log_is_cut_at_its_limit(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "log", 100)
    for number in range(10, 40):
        log.write(f"number {number}")
    described = log.close()
    content = log.path.read_bytes()
    assert content.decode().splitlines() == [
        *(f"number {number}" for number in range(10, 15)),
        "[20 lines are left out here: beside this line a log has at most 100 bytes]",
        *(f"number {number}" for number in range(35, 40)),
    ]
    assert (described.size_bytes, described.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    log.write("too late")
    assert log.close() == described
    assert log.path.read_bytes() == content


def test_a_line_that_no_log_could_hold_is_left_out(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "log", 100)
    for line in ("first", "x" * 1000, "last"):
        log.write(line)
    log.close()
    note = "[1 lines are left out here: beside this line a log has at most 100 bytes]"
    assert log.path.read_text().splitlines() == ["first", note, "last"]


def test_a_log_without_a_line_is_no_file(tmp_path: Path) -> None:
    log = JobLog(tmp_path / "log", 100)
    assert log.close().size_bytes == 0
    assert not log.path.exists()


def test_readable_text_can_be_stored() -> None:
    assert readable("a\0b\ud800c", 100) == "a�b?c"
    assert readable("abc", 2) == "ab"
