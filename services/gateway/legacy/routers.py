"""The old paths, one router a topic."""

from __future__ import annotations

from fastapi import APIRouter

from services.gateway.legacy import checkpoints, generate, jobs, queue

# A path goes to the first router that knows it.
ROUTERS: tuple[APIRouter, ...] = (
    generate.router,
    jobs.router,
    queue.router,
    checkpoints.router,
)
