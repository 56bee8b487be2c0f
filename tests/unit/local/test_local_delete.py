from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from guidehall.cli._app import run
from guidehall.local import control, lock
from guidehall.local.errors import AlreadyRunning
from guidehall.local.files import write_json
from guidehall.local.lock import FolderLock


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of a stack that ran."""
    folder = tmp_path / "data"
    folder.mkdir()
    FolderLock(folder).release()
    for name in ("logs/nats.log", "secrets/nats-admin", "postgres/data/PG_VERSION", "schema-storage.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.fixture
def elsewhere(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the database of that stack is."""
    monkeypatch.setattr("guidehall.local.postgres._ELSEWHERE", (tmp_path,))
    home = tmp_path / "guidehall-x"
    home.mkdir()
    write_json(data / "postgres" / "elsewhere.json", {"home": str(home)})
    return home


def test_everything_is_deleted_also_what_is_elsewhere(data: Path, elsewhere: Path) -> None:
    assert control.folders(data) == [data, elsewhere]

    control.delete(data)

    assert not data.exists()
    assert not elsewhere.exists()
    assert control.folders(data) == []


def test_files_of_others_stay(data: Path) -> None:
    (data / "thesis.tex").touch()

    control.delete(data)

    assert [path.name for path in data.iterdir()] == ["thesis.tex"]


def test_a_folder_that_no_stack_made_is_not_taken_for_the_database(data: Path, tmp_path: Path) -> None:
    write_json(data / "postgres" / "elsewhere.json", {"home": str(tmp_path)})

    assert control.folders(data) == [data]


def test_a_running_stack_is_not_deleted(data: Path) -> None:
    with FolderLock(data), pytest.raises(AlreadyRunning):
        control.delete(data)

    assert (data / "logs").exists()


def test_a_supervisor_that_has_just_ended_counts_as_stopped(data: Path) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    held = FolderLock(data)
    (data / lock.NAME).write_text(str(process.pid))
    letting_go = threading.Timer(0.3, held.release)
    letting_go.start()

    assert control.down(data, seconds=0.0)
    letting_go.join()


@pytest.mark.parametrize(
    ("options", "answer", "code", "stays"),
    [([], "n", 1, True), ([], "y", 0, False), (["--yes"], "", 0, False)],
)
def test_down_asks_before_it_deletes(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    answer: str,
    code: int,
    stays: bool,
) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: answer)

    assert run(["down", "--data", str(data), "--delete-data", *options]) == code

    assert data.exists() is stays


def test_nothing_is_deleted_where_no_stack_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()

    assert run(["down", "--data", str(tmp_path), "--delete-data", "--yes"]) == 0

    assert "there is nothing to delete" in capsys.readouterr().out
    assert (tmp_path / "logs").exists()
