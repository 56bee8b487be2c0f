"""A platform where people have credentials."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guidehall.local.control import down, up_detached
from guidehall.local.stack import Options
from tests.fixtures.platform import SETTINGS


@pytest.fixture
def token_platform(tmp_path: Path) -> Iterator[Path]:
    """The folder of its data."""
    variables = os.environ | SETTINGS | {"GUIDEHALL_STORAGE__ACCOUNTS__REGISTRATION": "on"}
    folder = tmp_path / "platform"
    try:
        up_detached(Options(folder, workers=1, auth_mode="token", environment=variables))
        yield folder
    finally:
        down(folder)
