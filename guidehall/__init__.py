"""Guidehall: a scientific inference platform for research facilities."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`guidehall.fit`, imported when it is used: it needs the extra `science`."""
    if name != "fit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("guidehall.science.reflectometry.library").fit
