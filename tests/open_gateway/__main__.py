"""`python -m tests.open_gateway serve`: anybody who is logged in may look at the runs of the old web app."""

from __future__ import annotations

from services.gateway.__main__ import main
from services.gateway.legacy import jobs

jobs.require_not_another = lambda _: None
main()
