"""The old paths, one router a topic."""

from __future__ import annotations

from fastapi import APIRouter

from services.gateway.legacy import (
    about,
    checkpoints,
    generate,
    history,
    jobs,
    model_upload,
    models,
    queue,
    upload,
)

# A path goes to the first router that knows it.
ROUTERS: tuple[APIRouter, ...] = (
    about.open_router,
    about.router,
    generate.router,
    jobs.router,
    queue.router,
    checkpoints.router,
    upload.router,
    history.router,
    model_upload.router,
    models.router,
)
