from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guidehall.local import lock
from guidehall.local.errors import AlreadyRunning
from guidehall.local.lock import FolderLock

_HOLD = """
import sys, time
from pathlib import Path
from guidehall.local.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(AlreadyRunning, match=rf"already running as process {os.getpid()}\b"),
    ):
        FolderLock(tmp_path)


def test_the_holder_is_known_until_it_lets_go(tmp_path: Path) -> None:
    before = lock.holder(tmp_path)
    with FolderLock(tmp_path):
        during = lock.holder(tmp_path)
    after = lock.holder(tmp_path)

    assert (before, during, after) == (None, os.getpid(), None)


def test_the_number_that_a_killed_holder_left_does_not_count(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert lock.holder(tmp_path) == process.pid
        process.send_signal(signal.SIGKILL)

    assert (tmp_path / "lock").read_text().strip() == str(process.pid)
    assert lock.holder(tmp_path) is None
    with FolderLock(tmp_path):
        assert lock.holder(tmp_path) == os.getpid()
