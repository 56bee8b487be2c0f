"""What the old paths share: who calls, the shape of failures, limits."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel

from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.core.auth import (
    Authenticator,
    KeyPair,
    Principal,
    Role,
    TokenIssuer,
    TrustStore,
    current_principal,
    set_principal,
)
from guidehall.core.channels import ServiceTokens, credentials_interceptors
from guidehall.core.errors import Unauthenticated
from guidehall.core.settings import AuthSettings, ChannelSettings, SettingsError
from services.gateway.app import create_app
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.identity import HttpIdentity
from services.gateway.legacy.common import OldRouter, require_admin, user
from services.gateway.legacy.limits import allowed
from services.gateway.legacy.routers import ROUTERS
from services.gateway.legacy.runs import Memory
from services.gateway.legacy.shape import is_old
from services.gateway.settings import GatewaySettings, HttpSettings, LegacySettings

NOBODY = ChannelSettings(target="127.0.0.1:1")
SECRET = {"X-Guidehall-Proxy-Secret": "s3cret"}


class _Body(BaseModel):
    number: float


def _router() -> OldRouter:
    """Routes of the test's own among the old ones."""
    router = OldRouter()

    @router.post("/test/echo")
    async def echo(body: _Body) -> dict[str, Any]:
        return {"number": body.number, "user": current_principal().subject, "kind": current_principal().kind}

    @router.get("/test/user")
    async def needs_user() -> str:
        return user().subject

    @router.get("/test/admin")
    async def needs_admin(request: Request) -> str:
        require_admin(request)
        return "admin"

    @router.get("/test/fault")
    async def fault() -> str:
        raise RuntimeError("/secret/path")

    return router


@asynccontextmanager
async def _client(
    legacy: LegacySettings = LegacySettings(),  # noqa: B008 (frozen)
    http: HttpSettings = HttpSettings(),  # noqa: B008 (frozen)
    peer: str = "127.0.0.1",
    **auth: object,
) -> AsyncIterator[httpx.AsyncClient]:
    settings = GatewaySettings(
        http=http,
        legacy=legacy,
        auth=AuthSettings.model_validate(auth),
        trainer=NOBODY,
        storage=NOBODY,
        inference=NOBODY,
    )
    tokens = ServiceTokens(TokenIssuer("gateway", KeyPair.generate()))
    identity = HttpIdentity(settings.auth, Authenticator(settings.auth, "gateway"))
    app: FastAPI = create_app(
        settings, identity, lambda: Backends(settings, credentials_interceptors(tokens, delegate=True))
    )
    app.include_router(_router())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(peer, 4711))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client,
    ):
        yield client


async def _echo(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/api/test/echo", json={"number": 1}, headers=headers)


@pytest.mark.parametrize(
    ("path", "old"),
    [
        ("/api/queue", True),
        ("/api/v1", False),
        ("/api/v1/jobs", False),
        ("/api/v10", True),
        ("/api", False),
        ("/docs", False),
    ],
)
def test_old_paths_are_those_under_api_that_are_not_of_the_new_version(path: str, old: bool) -> None:
    assert is_old(path) is old


async def test_in_single_mode_the_header_names_the_user_and_without_it_a_guest_calls() -> None:
    async with _client() as client:
        assert (await _echo(client, **{"X-User-Id": "ada"})).json() == {
            "number": 1,
            "user": "ada",
            "kind": "user",
        }
        assert (await _echo(client)).json()["kind"] == "guest"
        # The new paths are as they were.
        assert (await client.get("/api/v1/whoami", headers={"X-User-ID": "ada"})).status_code in (200, 503)


async def test_from_another_machine_the_header_counts_nothing_in_single_mode() -> None:
    async with _client(peer="192.0.2.1") as client:
        refused = await _echo(client, **{"X-User-ID": "ada"})
        assert refused.status_code == 401
        assert list(refused.json()) == ["detail"]


async def test_behind_a_proxy_the_header_counts_with_the_secret_alone() -> None:
    async with _client(mode="proxy", proxy_secret="s3cret") as client:
        # Storage, which says whether a user is disabled, is not there.
        assert (await _echo(client, **SECRET, **{"X-User-ID": "ada"})).status_code == 503
        assert (await _echo(client, **SECRET)).json()["kind"] == "guest"
        assert (await _echo(client, **{"X-User-ID": "ada"})).status_code == 401


async def test_with_tokens_the_header_counts_nothing(tmp_path: Path) -> None:
    key = KeyPair.generate()
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(TrustStore.entry(key, "storage", ["user"])))
    token = TokenIssuer("storage", key).mint("grace", "user", roles=[Role.SCIENTIST], ttl_seconds=60)
    async with _client(mode="token", trust_file=trust) as client:
        named = {"Authorization": f"Bearer {token}", "X-User-ID": "ada"}
        assert (await _echo(client, **named)).json()["user"] == "grace"
        assert (await _echo(client, **{"X-User-ID": "ada"})).status_code == 401


async def test_a_body_of_the_wrong_shape_is_told_before_a_caller_who_is_not_known() -> None:
    async with _client(mode="token") as client:
        refused = await client.post("/api/test/echo", json={"number": "x"})
        assert refused.status_code == 422
        (error,) = refused.json()["detail"]
        assert error["loc"] == ["body", "number"]
        assert error["input"] == "x"
        assert {"type", "loc", "msg", "input"} <= set(error)
        assert (await _echo(client)).status_code == 401
        form = await client.post("/api/test/echo", files={"files": b"x"})
        assert form.status_code == 401


async def test_no_old_path_does_anything_for_somebody_unknown() -> None:
    async with _client(mode="token") as client:
        for router in ROUTERS:
            for route in router.routes:
                assert isinstance(route, APIRoute)
                path = re.sub(r"\{\w+\}", "x", route.path)
                for method in route.methods - {"HEAD"}:
                    answer = await client.request(method, path, json={})
                    if path != "/api/health":
                        # Nothing behind this gateway answers: what asks is a 503.
                        assert answer.status_code in (401, 422), (method, path, answer.text)


async def test_health_is_told_from_memory_whoever_asks_how_often() -> None:
    worker = workers_pb2.Worker(state=workers_pb2.WORKER_STATE_DRAINING)
    worker.pipelines.add(name="reflectometry.pyreflect_cnn")

    async def workers() -> list[workers_pb2.Worker]:
        return [worker]

    async with _client() as client:
        # Nobody answers behind this gateway.
        assert (await client.get("/api/health")).json()["pyreflect_available"] is False
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        memory: Memory = transport.app.state.old_jobs  # type: ignore[attr-defined]
        memory.changed()
        await memory.as_of_late("workers", 60, workers)
        for _ in range(3):
            assert (await client.get("/api/health")).json()["pyreflect_available"] is True


async def test_what_was_sent_is_told_even_where_it_is_no_json() -> None:
    async with _client() as client:
        refused = await client.post(
            "/api/test/echo",
            content=b'{"number": [NaN, "\\ud800"]}',
            headers={"Content-Type": "application/json"},
        )
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["input"][0] == "nan"


async def test_what_was_sent_is_told_only_where_it_is_little() -> None:
    async with _client() as client:
        for body, told in (
            ({"name": "film"}, {"name": "film"}),
            ({"number": {"deep": ["x"] * 2000}}, None),
            ({"number": "x" * 5000}, "x" * 1000 + "…"),
            ({"more": "x" * 100_000}, None),
            ({"more": {"deep": [["x"] * 2000]}}, None),
        ):
            refused = await client.post("/api/test/echo", json=body)
            assert refused.status_code == 422
            (error,) = refused.json()["detail"]
            assert error["input"] == told
            assert len(refused.content) < 5000


async def test_every_failure_has_a_detail_and_the_headers_that_another_origin_needs() -> None:
    origin = {"Origin": "http://localhost:3000"}
    async with _client() as client:
        failures = [
            (await client.get("/api/no-such-path", headers=origin), 404),
            (await client.put("/api/test/echo", headers=origin), 405),
            (await client.get("/api/test/user", headers=origin), 401),
            (await client.get("/api/test/fault", headers=origin), 500),
            (await client.post("/api/test/echo", json={}, headers=origin), 422),
            (
                await client.post("/api/test/echo", json={"number": 1}, headers=origin | {"X-User-ID": "/"}),
                400,
            ),
        ]
        for answer, status in failures:
            assert answer.status_code == status
            assert list(answer.json()) == ["detail"]
            assert "secret" not in answer.text
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
            assert answer.headers["access-control-allow-credentials"] == "true"


async def test_preflights_are_answered_and_refused_by_origin() -> None:
    asks = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "x-user-id"}
    http = HttpSettings(cors_origins=(), cors_origin_regex=re.compile(r"https://.*\.lab\.example"))
    async with _client(http=http) as client:
        granted = await client.options("/api/test/echo", headers=asks | {"Origin": "https://a.lab.example"})
        assert (granted.status_code, granted.headers["access-control-max-age"]) == (200, "600")
        foreign = await client.options("/api/test/echo", headers=asks | {"Origin": "https://evil.example"})
        assert foreign.status_code == 400
        ours, theirs = [
            await client.post("/api/test/echo", json={"number": 1}, headers={"Origin": origin})
            for origin in ("https://a.lab.example", "https://a.lab.example.evil.example")
        ]
        assert (ours.status_code, theirs.status_code) == (200, 403)


def test_an_origin_pattern_that_is_none_stops_the_start_by_its_name() -> None:
    variable = "GUIDEHALL_GATEWAY__HTTP__CORS_ORIGIN_REGEX"
    with pytest.raises(SettingsError, match=f"{variable}: .*regular expression"):
        GatewaySettings.load({variable: "https://("})


async def test_administration_is_open_outside_production_and_else_by_token() -> None:
    async with _client() as client:
        assert (await client.get("/api/test/admin")).status_code == 200
    async with _client(mode="proxy", proxy_secret="s3cret") as client:
        assert (await client.get("/api/test/admin", headers=SECRET)).status_code == 503
    legacy = LegacySettings.model_validate({"admin_token": "t0ken"})
    async with _client(legacy, mode="proxy", proxy_secret="s3cret") as client:
        assert (await client.get("/api/test/admin", headers=SECRET)).status_code == 401
        assert (
            await client.get("/api/test/admin", headers=SECRET | {"X-Admin-Token": "other"})
        ).status_code == 401
        assert (
            await client.get("/api/test/admin", headers=SECRET | {"X-Admin-Token": "t0ken"})
        ).status_code == 200


def test_limits_follow_production_and_the_whitelist() -> None:
    ada, guest = Principal("ada", "user"), Principal("guest", "guest")
    local = allowed(GatewaySettings(), guest)
    assert (local.granted, local.source, local.limits.max_curves) == (True, "local_dev", 100_000)
    shared = GatewaySettings(
        auth=AuthSettings(mode="proxy"), legacy=LegacySettings(limits_whitelist_user_ids=("ada", "guest"))
    )
    assert allowed(shared, ada).source == "whitelist"
    tight = allowed(shared, guest)
    assert (tight.granted, tight.source, tight.limits.max_curves) == (False, "production", 5000)


async def test_in_the_platforms_name_nobody_is_the_caller_and_afterwards_the_caller_is_again() -> None:
    ada = Principal("ada", "user")
    set_principal(ada)
    with as_platform(), pytest.raises(Unauthenticated):
        current_principal()
    assert current_principal() == ada
