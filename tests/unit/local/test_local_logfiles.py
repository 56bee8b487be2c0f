from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.local.logfiles import RotatingLog, backup, follow, last_lines


def test_the_files_stay_within_their_bound(tmp_path: Path) -> None:
    path = tmp_path / "nats.log"
    log = RotatingLog(path, max_bytes=1000, backups=2)

    for number in range(1000):
        log.write(f"line {number:05d}\n".encode())
    log.close()

    files = sorted(tmp_path.iterdir())
    assert files == [path, backup(path, 1), backup(path, 2)]
    assert sum(file.stat().st_size for file in files) <= 3 * (1000 + len("line 00000\n"))
    assert last_lines(path, 1) == ["line 00999"]


def test_a_line_is_not_torn_by_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "nats.log"
    log = RotatingLog(path, max_bytes=10, backups=1)

    for piece in (b"first line, ", b"second half\nsecond line\n"):
        log.write(piece)
    log.close()

    assert backup(path, 1).read_text() == "first line, second half\n"
    assert path.read_text() == "second line\n"


def test_appending_goes_on_where_an_earlier_log_stopped(tmp_path: Path) -> None:
    path = tmp_path / "nats.log"
    for text in (b"one\n", b"two\n"):
        log = RotatingLog(path)
        log.write(text)
        log.close()

    assert last_lines(path, 10) == ["one", "two"]


def test_recent_lines_are_those_of_this_run(tmp_path: Path) -> None:
    path = tmp_path / "nats.log"
    for run in ("earlier", "this"):
        log = RotatingLog(path, max_bytes=10, backups=1)
        for piece in (f"{run} one\n", f"{run} tw", "o\n"):
            log.write(piece.encode())
        log.close()

    assert log.recent_lines(10) == ["this one", "this two"]
    assert log.recent_lines(1) == ["this two"]


def test_the_last_lines_reach_back_into_older_files(tmp_path: Path) -> None:
    path = tmp_path / "nats.log"
    log = RotatingLog(path, max_bytes=8, backups=3)
    for number in range(6):
        log.write(f"line {number}\n".encode())
    log.close()

    assert last_lines(path, 3) == ["line 3", "line 4", "line 5"]
    assert last_lines(path, 0) == []


@given(st.lists(st.integers(0, 6), max_size=12))
def test_following_sees_every_line_once_whatever_is_rotated(
    tmp_path_factory: pytest.TempPathFactory, bursts: list[int]
) -> None:
    # So many files are kept that none is lost between two waits.
    folder = tmp_path_factory.mktemp("log")
    path = folder / "nats.log"
    log = RotatingLog(path, max_bytes=16, backups=10)
    log.write(b"before\n")
    remaining = iter(bursts)
    written: list[str] = []

    def write_more() -> bool:
        burst = next(remaining, None)
        for _ in range(burst or 0):
            written.append(f"line {len(written)}\n")
            log.write(written[-1].encode())
        return burst is not None

    seen = "".join(follow(path, write_more))
    log.close()

    assert seen == "".join(written)


def test_following_may_begin_before_the_log_exists(tmp_path: Path) -> None:
    path = tmp_path / "later.log"
    steps: list[Callable[[], object]] = [lambda: None, lambda: path.write_text("hello\n")]

    def wait() -> bool:
        if steps:
            steps.pop(0)()
        return bool(steps)

    assert "".join(follow(path, wait)) == "hello\n"
