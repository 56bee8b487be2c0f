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


# First, for the groups are read by another of these.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may run at the same time: each file of unit tests, and beside them all that starts servers.

    Those keep to one process: they share servers, and what they see of time must not depend on each other.
    """
    unit = Path(__file__).parent / "unit"
    for item in items:
        group = str(item.path) if item.path.is_relative_to(unit) else "servers"
        item.add_marker(pytest.mark.xdist_group(group))
