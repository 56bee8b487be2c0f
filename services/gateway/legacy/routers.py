"""The old paths, one router a topic."""

from __future__ import annotations

from fastapi import APIRouter

from services.gateway.legacy import about, history, model_upload, models, upload

# A path goes to the first router that knows it.
ROUTERS: tuple[APIRouter, ...] = (
    about.open_router,
    about.router,
    history.router,
    model_upload.router,
    models.router,
    upload.router,
)
