"""A platform where people have credentials."""

from __future__ import annotations

import json
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
    accounts = {"REGISTRATION": "on", "PROVIDERS": json.dumps({"facility": {}})}
    accounts = {f"GUIDEHALL_STORAGE__ACCOUNTS__{name}": value for name, value in accounts.items()}
    variables = os.environ | SETTINGS | accounts
    folder = tmp_path / "platform"
    try:
        up_detached(Options(folder, workers=1, auth_mode="token", environment=variables))
        yield folder
    finally:
        down(folder)
