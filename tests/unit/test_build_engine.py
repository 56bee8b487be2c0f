"""The build hook compiles the engine, and the engine's number keeps a library of another version out."""

from __future__ import annotations

import ctypes
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from guidehall.science.reflectometry import engine
from hatch_build import EngineHook
from tests.missing import missing

ROOT = Path(__file__).parents[2]
NATIVE = Path("guidehall/science/reflectometry/native")

needs_compiler = pytest.mark.usefixtures("compiler")


@pytest.fixture
def compiler() -> None:
    if shutil.which("cc") is None:
        missing("there is no C compiler")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The sources of the engine without a library."""
    (tmp_path / NATIVE).mkdir(parents=True)
    for source in (*(ROOT / NATIVE).glob("*.c"), *(ROOT / NATIVE).glob("*.h")):
        shutil.copy(source, tmp_path / NATIVE)
    return tmp_path


def build(checkout: Path, version: str) -> dict[str, Any]:
    data: dict[str, Any] = {"pure_python": True, "force_include": {}}
    hook = EngineHook(str(checkout), {}, None, None, str(checkout / "dist"), "wheel")  # type: ignore[arg-type]
    hook.initialize(version, data)
    return data


@needs_compiler
def test_an_editable_installation_has_the_library_beside_its_source(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc")
    before = checkout / NATIVE / "engine.so"
    before.write_bytes(b"old")
    held = checkout / "held"
    held.hardlink_to(before)
    data = build(checkout, "editable")
    library = engine._load(checkout / NATIVE / "engine.so")
    assert library is not None
    assert library.guidehall_instructions() in (b"any", b"avx2", b"avx512")
    # Whoever has the old one keeps it.
    assert held.read_bytes() == b"old"
    assert data["force_include"] == {}
    assert data["pure_python"] is False
    assert {path.name for path in (checkout / NATIVE).iterdir()} == {"engine.c", "lanes.h", "engine.so"}


@needs_compiler
def test_a_library_of_another_version_is_not_used(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "cc")
    source = checkout / NATIVE / "engine.c"
    text = source.read_text()
    assert f"#define ABI {engine._ABI}\n" in text
    source.write_text(text.replace(f"#define ABI {engine._ABI}\n", "#define ABI 999\n"))
    data = build(checkout, "standard")
    assert data["tag"].startswith("py3-none-")
    ((path, place),) = data["force_include"].items()
    assert place == str(NATIVE / "engine.so")
    assert ctypes.CDLL(path).guidehall_abi() == 999
    with caplog.at_level(logging.WARNING):
        assert engine._load(Path(path)) is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert "ABI 999" in line
    assert "torch calculates instead" in line


@needs_compiler
def test_a_library_from_before_there_were_numbers_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source, path = tmp_path / NATIVE / "engine.c", tmp_path / NATIVE / "engine.so"
    source.parent.mkdir(parents=True)
    source.write_text('const char *guidehall_instructions(void) { return "any"; }\n')
    monkeypatch.setenv("CC", "cc -fvisibility=default")
    build(tmp_path, "editable")
    assert path.exists()
    with caplog.at_level(logging.WARNING):
        assert engine._load(path) is None
    assert "ABI none" in caplog.text


@pytest.mark.parametrize("version", ["editable", "standard"])
@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_the_installation_goes_on(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, version: str, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert build(checkout, version) == {"pure_python": True, "force_include": {}}
    assert not list((checkout / NATIVE).glob("*.so"))


def test_it_can_be_left_out(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEHALL_ENGINE", "none")
    assert build(checkout, "editable") == {"pure_python": True, "force_include": {}}
    assert not list((checkout / NATIVE).glob("*.so"))


def test_without_a_library_torch_serves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert engine._load(tmp_path / "engine.so") is None
    assert "not installed" in caplog.text
