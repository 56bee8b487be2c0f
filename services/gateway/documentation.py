"""What the gateway says about itself: `/openapi.json`, which `/docs` and `/redoc` draw.

The routes' own bodies and the protos' messages are known here. What a pipeline takes the trainer knows: it is
asked, and while it is away the description shows what it said last, or no pipelines.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import grpc
from fastapi import FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from google.protobuf.descriptor import Descriptor
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from guidehall import __version__
from guidehall.contracts.jobs.v1 import jobs_pb2
from services.gateway.api.common import DOCUMENTED
from services.gateway.api.inference import SIMULATION
from services.gateway.backends import Backends
from services.gateway.messages import Json, schema, struct_json

DESCRIPTION = "Measured curves in, physics out. Errors are problem details (RFC 9457)."
PATH = "/openapi.json"
_SCHEMAS = "#/components/schemas/"
_FILES = "/static-offline-docs"
_WRITTEN_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
# A page about the interface neither waits long for the trainer nor asks it again for every reader.
_ASK_SECONDS = 2.0
_KEEP_SECONDS = 60.0


def documented(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]) -> FastAPI:
    """An app whose documentation pages carry their own scripts and whose schema knows the protos' messages
    and the parameters of the pipelines."""
    app = FastAPIOffline(
        title="Guidehall",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=PATH,
        static_url=_FILES,
        docs_url=None,
        redoc_url=None,
    )
    app.add_api_route("/docs", _docs, include_in_schema=False)
    app.add_api_route("/redoc", _redoc, include_in_schema=False)
    app.openapi = lambda: _own(app)  # type: ignore[method-assign]
    # Before FastAPI's own route, which cannot wait for the trainer.
    app.router.routes.insert(0, Route(PATH, _Served(app).answer, include_in_schema=False))
    return app


async def _docs(request: Request) -> HTMLResponse:
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=root + PATH,
        title="Guidehall: HTTP interface",
        swagger_js_url=f"{root}{_FILES}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_FILES}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_FILES}/favicon.png",
    )
    return _held_to_its_own(page)


async def _redoc(request: Request) -> HTMLResponse:
    root = request.scope.get("root_path", "")
    page = get_redoc_html(
        openapi_url=root + PATH,
        title="Guidehall: HTTP interface",
        redoc_js_url=f"{root}{_FILES}/redoc.standalone.js",
        redoc_favicon_url=f"{root}{_FILES}/favicon.png",
        with_google_fonts=False,
    )
    return _held_to_its_own(page)


def _held_to_its_own(page: HTMLResponse) -> HTMLResponse:
    """A page that runs nothing but our files and the scripts that are written in it, and asks nobody else.

    Both libraries write styles into the page as they draw, and one searches in a worker that it makes of its
    own text. The address of a logo elsewhere, which is in the other's files, leads nowhere.
    """
    written = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        for script in _WRITTEN_SCRIPT.findall(bytes(page.body).decode())
    )
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in written)])
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page


class _Served:
    """The description with the pipelines that the trainer has."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._pipelines: list[jobs_pb2.Pipeline] = []
        self._ask_at = 0.0

    async def answer(self, request: Request) -> JSONResponse:
        if time.monotonic() >= self._ask_at:
            try:
                self._pipelines = await _pipelines(request.app.state.backends)
                self._ask_at = time.monotonic() + _KEEP_SECONDS
            except grpc.aio.AioRpcError:
                pass
        return JSONResponse(_with_pipelines(self._app.openapi(), self._pipelines))


async def _pipelines(backends: Backends) -> list[jobs_pb2.Pipeline]:
    found: list[jobs_pb2.Pipeline] = []
    token = ""
    while True:
        request = jobs_pb2.ListPipelinesRequest(page_token=token)
        page = await backends.jobs.ListPipelines(request, timeout=_ASK_SECONDS)
        found.extend(page.pipelines)
        token = page.next_page_token
        if not token:
            return found


def _with_pipelines(document: Json, pipelines: list[jobs_pb2.Pipeline]) -> Json:
    """The description with a schema of each pipeline's parameters, under its name, where bodies take them."""
    if not pipelines:
        return document
    document = copy.deepcopy(document)
    schemas = document["components"]["schemas"]
    for pipeline in pipelines:
        own = f"{_SCHEMAS}{pipeline.name}/"
        schemas[pipeline.name] = _placed(struct_json(pipeline.params_schema), own) | {"title": pipeline.name}
    choices = [{"$ref": _SCHEMAS + pipeline.name} for pipeline in pipelines]
    # Not of the template of a sweep, whose axes may give what is required.
    schemas["SubmitJob"]["properties"]["params"]["anyOf"] = choices
    if SIMULATION in schemas:
        schemas["SimulateBody"]["properties"]["params"] = {"$ref": _SCHEMAS + SIMULATION}
    return document


def _placed(node: Any, own: str) -> Any:
    """A schema whose definitions are found from the whole document, its properties in their own order."""
    if isinstance(node, list):
        return [_placed(item, own) for item in node]
    if not isinstance(node, dict):
        return node
    placed = {key: _placed(item, own) for key, item in node.items() if key != "propertyOrder"}
    reference = placed.get("$ref")
    if isinstance(reference, str):
        placed["$ref"] = own + reference.removeprefix("#/")
    order = node.get("propertyOrder")
    if isinstance(order, list):
        placed["properties"] = {name: placed["properties"][name] for name in order}
    return placed


def _own(app: FastAPI) -> Json:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = document.setdefault("components", {}).setdefault("schemas", {})
        for message in sorted(DOCUMENTED, key=lambda message: message.DESCRIPTOR.name):
            schema(cast(Descriptor, message.DESCRIPTOR), components)
        _document_problems(document)
        app.openapi_schema = document
    return app.openapi_schema


def _document_problems(document: dict[str, Any]) -> None:
    """Every operation fails in one shape."""
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    text, violation = {"type": "string"}, {"$ref": "#/components/schemas/FieldViolation"}
    schemas["Problem"] = {
        "type": "object",
        "title": "Problem",
        "description": "RFC 9457. `reason` is for programs, `detail` for people.",
        "required": ["type", "title", "status"],
        "properties": {
            **dict.fromkeys(("type", "title", "detail", "instance", "reason", "trace_id"), text),
            "status": {"type": "integer"},
            "metadata": {"type": "object", "additionalProperties": text},
            "violations": {"type": "array", "items": violation},
        },
    }
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "What went wrong", "content": problem}
