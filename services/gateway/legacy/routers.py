"""The old paths, one router a topic."""

from __future__ import annotations

from fastapi import APIRouter

# A path goes to the first router that knows it.
ROUTERS: tuple[APIRouter, ...] = ()
