from __future__ import annotations

from pathlib import Path

import pytest

from guidehall.local.errors import StackError
from guidehall.local.stack import Options, Stack


def test_the_data_folder_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUIDEHALL_DATA", str(tmp_path))
    named = Options().data
    monkeypatch.delenv("GUIDEHALL_DATA")

    assert named == tmp_path
    assert Options().data == Path.home() / ".local/share/guidehall"


@pytest.mark.parametrize("options", [{"workers": -1}, {"auth_mode": "open"}])
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(StackError, match="got"):
        Options(tmp_path, **options)  # type: ignore[arg-type]


def test_a_file_cannot_be_the_data_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    with pytest.raises(StackError, match="cannot be the data folder"):
        Stack(Options(file)).start()
