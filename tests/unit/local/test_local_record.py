from __future__ import annotations

import subprocess
from pathlib import Path

from guidehall.local import record
from guidehall.local.descendants import identity
from guidehall.local.files import write_json


def _left_behind(folder: Path, process: subprocess.Popen[bytes], process_identity: str | None) -> None:
    service = {
        "name": "s3",
        "state": "ready",
        "probe": "s3://127.0.0.1:1",
        "pid": process.pid,
        "process_identity": process_identity,
    }
    write_json(folder / "stack.json", {"stage": "ready", "supervisor": 1, "services": [service]})


def test_what_a_killed_supervisor_left_running_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
        _left_behind(tmp_path, process, identity(process.pid))

        found = record.end_leftovers(tmp_path, patience_seconds=0.1)

        assert found
        assert process.wait(timeout=5) == -9
    assert not record.end_leftovers(tmp_path)


def test_somebody_elses_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
        _left_behind(tmp_path, process, f"another-boot:{process.pid}:1")

        record.end_leftovers(tmp_path, patience_seconds=0.1)
        left_alone = process.poll() is None
        process.kill()

    assert left_alone


def test_a_record_of_another_version_counts_as_none(tmp_path: Path) -> None:
    write_json(tmp_path / "stack.json", {"stage": "ready", "services": [{"label": "s3"}]})

    assert record.read(tmp_path).stage == "stopped"
    assert record.read(tmp_path / "missing").services == ()
