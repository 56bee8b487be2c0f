"""The generated stubs: fresh, and importable under both protobuf generations that clients use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.packages import Pip

ROOT = Path(__file__).parents[2]
IMPORT_ALL = """
import google.protobuf, importlib, pkgutil, guidehall.contracts as contracts
names = [m.name for m in pkgutil.walk_packages(contracts.__path__, "guidehall.contracts.")]
for name in names:
    importlib.import_module(name)
print(google.protobuf.__version__.split(".")[0], len([n for n in names if n.endswith("_pb2")]))
"""


def _import_all(site: Path | None) -> tuple[str, int]:
    """Imports every stub in a fresh interpreter, `site` in front; gives protobuf's major version and the
    count."""
    path = os.pathsep.join(filter(None, [str(site) if site else "", str(ROOT)]))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", IMPORT_ALL]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    major, count = done.stdout.split()
    return major, int(count)


def test_generated_code_is_what_the_protos_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_stubs_import_under_the_installed_protobuf_6() -> None:
    major, count = _import_all(None)
    assert major == "6"
    assert count == len(list((ROOT / "protos").rglob("*.proto")))


@pytest.mark.slow
def test_stubs_import_under_protobuf_7(pip: Pip, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--target", tmp_path, "protobuf>=7,<8")
    major, count = _import_all(tmp_path)
    assert major == "7"
    assert count == len(list((ROOT / "protos").rglob("*.proto")))
