"""Fixtures for every test: real backing servers and the real services, one file each in tests/fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest

# They import each other, and one that came before its turn could not be rewritten any more.
pytest.register_assert_rewrite("tests.fixtures")

_FIXTURES = Path(__file__).parent / "fixtures"

pytest_plugins = [
    f"tests.fixtures.{path.stem}" for path in sorted(_FIXTURES.glob("*.py")) if path.stem != "__init__"
]
