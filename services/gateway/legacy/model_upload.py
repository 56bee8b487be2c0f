"""POST /api/models/upload: weights from a worker elsewhere, put down under the id of their model."""

from __future__ import annotations

import hmac
import re

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from guidehall.core.auth import Principal, Role, set_principal
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import DATASET, DEFAULT_PROJECT, USER
from services.gateway.api.common import BackendsDep
from services.gateway.backends import Backends
from services.gateway.legacy import roles
from services.gateway.legacy.common import OldRouter, legacy_settings
from services.gateway.legacy.forms import (
    CLOSE,
    Form,
    MultipartParseError,
    NotAFormError,
    malformed,
    missing,
    open_form,
)
from services.gateway.legacy.imports import are_complete, submit_import
from services.gateway.legacy.models import dataset_of
from services.gateway.legacy.received import Intake, ReceivedFile, blaming
from services.gateway.legacy.roles import STATISTICS_ROLE, base_name

router = OldRouter()

TOKEN_HEADER = "x-model-upload-token"  # noqa: S105 (a header's name)
# What becomes a model's name; weights are named after it, too.
_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,55}")
_MIB = 1 << 20


@router.post("/models/upload")
async def upload_model(request: Request, backends: BackendsDep) -> Response:
    """Keeps weights, and has them become a model where statistics for them are known."""
    _require_token(request)
    try:
        form = open_form(request)
    except NotAFormError:
        return missing("file", "model_id")
    intake = Intake(backends, "", request.app.state.settings.http.max_upload_bytes)
    try:
        return await _take(form, intake, backends)
    except MultipartParseError as error:
        raise malformed(error) from None
    finally:
        intake.cancel()


def _require_token(request: Request) -> None:
    """Lets those pass who know the token.

    Raises:
        HTTPException: 503 without a token in the settings, 401 for a wrong one.
    """
    token = legacy_settings(request).model_upload_token
    if token is None:
        raise HTTPException(503, "uploads of models are closed: no token is set", CLOSE)
    given = request.headers.get(TOKEN_HEADER, "")
    if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
        raise HTTPException(401, "X-Model-Upload-Token: missing or wrong", CLOSE)


async def _take(form: Form, intake: Intake, backends: Backends) -> Response:
    texts: dict[str, str] = {}
    weights: ReceivedFile | None = None
    statistics: ReceivedFile | None = None
    async for part in form.parts():
        if part.name in ("model_id", "user_id") and part.filename is None:
            if intake.files:
                raise HTTPException(400, f"{part.name}: got after a file; allowed: before all files", CLOSE)
            texts[part.name] = (await part.text()).strip()
        elif part.name in ("file", "statistics") and part.filename is not None:
            if not intake.files:
                _speak_for(texts)
            with blaming(part.filename):
                filename = base_name(part.filename) or "model.pth"
                if part.name == "statistics":
                    statistics = await intake.take(filename, part.body)
                elif weights is None:
                    name = DATASET.format(project=DEFAULT_PROJECT, dataset=dataset_of(texts["model_id"]))
                    weights = await intake.take_weights(filename, part.body, name)
    if weights is None:
        return missing("file", *([] if texts.get("model_id") else ["model_id"]))
    return await _keep(backends, texts, weights, statistics)


def _speak_for(texts: dict[str, str]) -> None:
    """What follows is done for the user that the form names, or by the platform itself.

    Raises:
        HTTPException: 400, what the form says cannot be.
    """
    model, user = texts.get("model_id", ""), texts.get("user_id", "")
    if not _MODEL_ID.fullmatch(model):
        allowed = "1 to 56 of a-z, 0-9 and -, before the file in the form"
        raise HTTPException(400, f"model_id: got {model[:80]!r}; allowed: {allowed}", CLOSE)
    if user:
        try:
            USER.parse(USER.format(user=user), "user_id")
        except InvalidArgument as error:
            raise HTTPException(400, error.message, CLOSE) from None
    set_principal(Principal(user, "user", frozenset({Role.SCIENTIST})) if user else None)


async def _keep(
    backends: Backends, texts: dict[str, str], weights: ReceivedFile, statistics: ReceivedFile | None
) -> Response:
    model = texts["model_id"]
    assert weights.upload is not None  # noqa: S101 (for the type checker)
    with blaming(weights.filename):
        version = (await weights.upload.finish()).name
    known = ""
    if statistics is not None and statistics.upload is not None:
        with blaming(statistics.filename):
            known = (await statistics.upload.finish()).name
    elif user := texts.get("user_id"):
        known = (await roles.read(backends, user)).versions().get(STATISTICS_ROLE, "")
    if known and await are_complete(backends, known):
        await submit_import(backends, model, version, known, f"import model {model}")
    answer = {
        "status": "stored",
        "model_id": model,
        "size_mb": round(weights.upload.size_bytes / _MIB, 2),
        "evicted": [],
    }
    return JSONResponse(answer)
