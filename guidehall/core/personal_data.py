"""Lines of an export of what is kept about a person: those that are added to what storage tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def job_line(job: Mapping[str, Any]) -> str:
    """One job, as it travels."""
    return json.dumps({"type": "job", **job})


def end_line() -> str:
    """The last line: without it an export was cut off."""
    return json.dumps({"type": "end"})
