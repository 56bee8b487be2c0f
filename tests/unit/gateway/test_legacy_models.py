"""Names of what is kept for a model of the old app."""

from __future__ import annotations
