"""One hurt platform for all tests of this folder, and the report on what was done to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.report import Report
from tests.chaos.site import Site, running_site


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A platform with three workers and leases of seconds, which every test leaves well."""
    with running_site() as site:
        yield site


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """What the tests did and found; printed at the end."""
    report = Report()
    yield report
    report.finish()
