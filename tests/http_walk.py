"""Calls every HTTP operation with the names of somebody's things, as others, and finds out what they got."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from guidehall.core.auth import Authenticator
from services.gateway.app import create_app
from services.gateway.identity import HttpIdentity
from services.gateway.settings import GatewaySettings
from tests.walk import Answer, Finding

_SECONDS = 10
_MOST_BYTES = 1 << 20
_METHODS = ("get", "post", "put", "patch", "delete")
_JSON, _FORM = "application/json", "application/x-www-form-urlencoded"
# Refusals repeat what a request named; so does this answer, which is 200 also where there is nothing.
_ECHOES = {"GET /api/models/{id}/info"}


@dataclass(frozen=True)
class HttpCaller:
    """Somebody who calls a gateway, by what the requests carry."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A method of a path.

    Attributes:
        parameters: as OpenAPI describes them.
        bodies: schemas of the body by its media type.
        schemas: those that others refer to.
    """

    method: str
    path: str
    parameters: Sequence[Mapping[str, Any]]
    bodies: Mapping[str, Any]
    schemas: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class HttpThings:
    """Names of what somebody has, by the parameters and fields that take them, and a text that is in all.

    Attributes:
        ids: of things, which are told to nobody who has not named them.
        paths: by the names of path parameters; under an operation's beginning, where it is another there.
        fields: of bodies and queries, at any depth.
        bodies: what is sent by label, where the fields do not make a body that means something.
    """

    marker: str
    ids: Sequence[str]
    paths: Mapping[str, str]
    paths_of: Mapping[str, Mapping[str, str]]
    fields: Mapping[str, Any]
    bodies: Mapping[str, Mapping[str, Any]]

    def requests(self, operation: Operation) -> Iterator[dict[str, Any]]:
        """What `httpx` is to send: with the queries that must be, and with all that are known.

        Raises:
            AssertionError: a path has a parameter that is unknown here.
        """
        known = dict(self.paths)
        for beginning, others in self.paths_of.items():
            if operation.path.startswith(beginning):
                known.update(others)
        path, queries, needed = operation.path, {}, {}
        for parameter in operation.parameters:
            name = parameter["name"]
            if parameter["in"] == "path":
                assert name in known, f"{operation.label}: whose {name!r} is to be named? Tell the walk"
                path = path.replace(f"{{{name}}}", quote(known[name], safe=""))
            elif parameter["in"] == "query":
                if name in self.fields:
                    queries[name] = self.fields[name]
                if parameter.get("required"):
                    needed[name] = self.fields.get(name, "a")
        assert "{" not in path, f"{operation.label}: a part of the path is not described"
        sent = {"method": operation.method, "url": path, **self._body(operation)}
        yield sent | {"params": needed}
        if queries != needed:
            yield sent | {"params": queries}

    def tells(self, operation: Operation, request: Mapping[str, Any], answer: Answer) -> bool:
        """Whether an answer has more of them in it than was asked for."""
        content = unnamed = answer.content
        for text in sorted(_texts(request), key=len, reverse=True):
            unnamed = unnamed.replace(text.encode(), b"")
        if int(answer.code) >= 400 or operation.label in _ECHOES:
            content = unnamed
        return self.marker.encode() in content or any(id.encode() in unnamed for id in self.ids)

    def _body(self, operation: Operation) -> dict[str, Any]:
        if operation.label in self.bodies:
            return dict(self.bodies[operation.label])
        if _JSON in operation.bodies:
            return {"json": self._value(operation, "", operation.bodies[_JSON])}
        if _FORM in operation.bodies:
            return {"data": self._value(operation, "", operation.bodies[_FORM])}
        if operation.bodies:
            return {"content": b"taken over", "headers": {"Content-Type": next(iter(operation.bodies))}}
        return {}

    def _value(self, operation: Operation, name: str, schema: Mapping[str, Any]) -> Any:
        """A known value, or the smallest that may be."""
        if name in self.fields:
            return self.fields[name]
        if "$ref" in schema:
            schema = operation.schemas[schema["$ref"].rpartition("/")[2]]
        for choices in ("anyOf", "oneOf", "allOf"):
            if choices in schema:
                return self._value(operation, name, schema[choices][0])
        if "enum" in schema or "const" in schema:
            return schema["enum"][0] if "enum" in schema else schema["const"]
        match schema.get("type", "object"):
            case "object":
                required = schema.get("required", ())
                return {
                    part: self._value(operation, part, described)
                    for part, described in schema.get("properties", {}).items()
                    if part in self.fields or part in required
                }
            case "array":
                count = max(1, schema.get("minItems", 1))
                return [self._value(operation, "", schema.get("items", {"type": "number"}))] * count
            case "string":
                return "a"
            case "boolean":
                return True
            case _:
                return schema.get("minimum", 1)


def operations(settings: GatewaySettings) -> list[Operation]:
    """All that a gateway answers, also what its own description leaves out."""
    app: FastAPI = create_app(
        settings, HttpIdentity(settings.auth, Authenticator(settings.auth, "walk")), _none
    )
    routes = list(iter_route_contexts(app.routes))
    for route in routes:
        # Of this list alone; the context itself cannot be changed.
        object.__setattr__(route, "include_in_schema", True)
    document = get_openapi(title="", version="", routes=routes)
    schemas = document["components"]["schemas"]
    return [
        Operation(
            method.upper(),
            path,
            described.get("parameters", ()),
            {
                kind: body["schema"]
                for kind, body in described.get("requestBody", {}).get("content", {}).items()
            },
            schemas,
        )
        for path, item in document["paths"].items()
        for method, described in item.items()
        if method in _METHODS
    ]


@dataclass
class HttpWalk:
    """All requests of all callers.

    Args:
        things: whose names go into the requests.
        states: digests of all that is stored.
    """

    things: HttpThings
    states: Sequence[Any]

    async def as_caller(
        self, caller: HttpCaller, called: Sequence[Operation]
    ) -> tuple[list[Finding], dict[str, Answer]]:
        """What somebody who may see none of it got and changed, and all answers by operation.

        A request beside the first of an operation has a number.
        """
        findings, answers = [], {}
        before = await self._state()
        async with httpx.AsyncClient(base_url=caller.url, headers=caller.headers, timeout=_SECONDS) as http:
            for operation in called:
                for number, request in enumerate(self.things.requests(operation)):
                    label = f"{operation.label}{f' #{number + 1}' if number else ''}"
                    answer = answers[label] = await call(http, request)
                    if self.things.tells(operation, request, answer):
                        findings.append(Finding(caller.name, operation.label, "read"))
                    after = await self._state()
                    if after != before:
                        findings.append(Finding(caller.name, operation.label, "changed"))
                        before = after
        return findings, answers

    async def _state(self) -> list[str]:
        return list(await asyncio.gather(*(state() for state in self.states)))


async def call(http: httpx.AsyncClient, request: Mapping[str, Any]) -> Answer:
    """Calls, and gives what came of it, headers too; of a stream that goes on, its beginning."""
    async with http.stream(**request) as answer:
        received = bytearray(repr(answer.headers.multi_items()).encode())
        try:
            async for piece in answer.aiter_bytes():
                received += piece
                if len(received) > _MOST_BYTES:
                    break
        except httpx.ReadTimeout:
            # Nothing more to tell.
            pass
        return Answer(str(answer.status_code), bytes(received))


def _texts(request: Any) -> set[str]:
    """All texts in a request that name something; parts of its path, too."""
    if isinstance(request, str):
        parts = {part for piece in request.split("/") for part in piece.split(":")}
        return {text for text in (request, json.dumps(request)[1:-1], *parts) if text}
    if isinstance(request, Mapping):
        return set().union(*map(_texts, request.values()))
    if isinstance(request, (list, tuple)):
        return set().union(*map(_texts, request))
    return set()


def _none() -> Any:
    raise AssertionError("this app is there to be described, not to serve")
