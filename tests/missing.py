"""What a test needs from outside and does not find."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test, or fails it where CI is set: what is checked before a change lands checks this too."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
