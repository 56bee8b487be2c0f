"""The HTTP application without services behind it: documentation, errors, limits, who gets in."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
from fastapi import FastAPI, Request
from grpc_health.v1 import health_pb2, health_pb2_grpc

from guidehall.contracts.prediction.v1 import prediction_pb2
from guidehall.core.auth import Authenticator, KeyPair, Kind, Role, TokenIssuer, TrustStore
from guidehall.core.channels import ServiceTokens, credentials_interceptors
from guidehall.core.settings import AuthSettings, ChannelSettings
from services.gateway import problems
from services.gateway.api import common
from services.gateway.app import create_app
from services.gateway.backends import Backends
from services.gateway.identity import HttpIdentity
from services.gateway.settings import GatewaySettings, HttpSettings
from tests.http_walk import HttpThings, call, operations

DESCRIPTION = Path(__file__).parents[3] / "docs/reference/openapi.json"
NOBODY = {"target": "127.0.0.1:1"}


def _settings(http: HttpSettings = HttpSettings(), **auth: object) -> GatewaySettings:  # noqa: B008 (frozen)
    return GatewaySettings(
        http=http,
        auth=AuthSettings.model_validate(auth),
        trainer=NOBODY,  # type: ignore[arg-type]
        storage=NOBODY,  # type: ignore[arg-type]
        inference=NOBODY,  # type: ignore[arg-type]
    )


def _app(settings: GatewaySettings) -> FastAPI:
    tokens = ServiceTokens(TokenIssuer("gateway", KeyPair.generate()))
    identity = HttpIdentity(settings.auth, Authenticator(settings.auth, "gateway"))
    return create_app(settings, identity, lambda: Backends(settings, credentials_interceptors(tokens)))


async def _client(settings: GatewaySettings, host: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    async for client in _client_of(_app(settings), host):
        yield client


async def _client_of(app: FastAPI, host: str = "127.0.0.1") -> AsyncIterator[httpx.AsyncClient]:
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(host, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async for opened in _client(_settings()):
        yield opened


async def test_documentation_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    for page in ("/docs", "/redoc"):
        text = (await client.get(page)).text
        sources = [part.split('"')[0] for part in text.replace("href=", "src=").split('src="')[1:]]
        assert sources
        for source in sources:
            assert source.startswith("/"), f"{page} loads {source}"
            assert (await client.get(source)).status_code == 200


async def test_a_page_runs_only_its_own_scripts_and_asks_only_the_gateway(client: httpx.AsyncClient) -> None:
    for page in ("/docs", "/redoc"):
        answer = await client.get(page)
        policy = dict(part.split(maxsplit=1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        allowed = policy["script-src"].split()
        written = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in written]
        assert allowed == ["'self'", *(f"'sha256-{digest}'" for digest in hashes)]
        assert "unsafe-eval" not in answer.headers["content-security-policy"]
        assert not re.search(r"\son[a-z]+=", answer.text)
        assert "http" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/openapi.json", "/api/v1/health", "/api/v1/nothing", "/static-offline-docs/redoc.standalone.js"]
)
async def test_what_is_no_page_loads_nothing_as_one(client: httpx.AsyncClient, path: str) -> None:
    policy = (await client.get(path)).headers["content-security-policy"]
    assert policy == "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def test_the_description_in_the_documentation_is_current() -> None:
    kept = json.loads(DESCRIPTION.read_text())
    assert kept == _app(_settings()).openapi(), "run ./run openapi"


async def test_the_front_page_leads_to_the_documentation(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (200, "/docs")


async def test_every_operation_says_what_it_answers_and_how_it_fails(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert len(document["paths"]) >= 40
    for path, described in document["paths"].items():
        for method, operation in described.items():
            assert "default" in operation["responses"], f"{method} {path}"
            assert operation["summary"], f"{method} {path}"
    health = document["paths"]["/api/v1/health"]["get"]["responses"]["200"]
    assert health["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Health"}


async def test_a_service_that_is_away_is_a_503_problem(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/jobs")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == 503
    assert problem["instance"] == "/api/v1/jobs"
    assert len(problem["trace_id"]) == 32


async def test_health_names_the_services_that_are_away(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/health")
    assert answer.json()["status"] == "degraded"
    assert answer.json()["services"] == {"trainer": False, "storage": False, "inference": False}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "pipeline"),
        ({"pipeline": "a", "surprise": 1}, "surprise"),
        ({"pipeline": "a", "seed": -1}, "seed"),
        ({"pipeline": "a", "priority": "URGENT"}, "priority"),
    ],
)
async def test_a_bad_body_is_a_400_that_names_the_field(
    client: httpx.AsyncClient, body: dict[str, object], field: str
) -> None:
    answer = await client.post("/api/v1/jobs", json=body)
    assert answer.status_code == 400
    assert [violation["field"] for violation in answer.json()["violations"]] == [field]


JOB = '{"pipeline": "p", '
SWEEP = '{"sweep": {"template": {"pipeline": "p"}, "axes": [{"path": "a", "values": %s}]}}'
TENSOR = '{"model": "m", "inputs": {"a": {"datatype": "FP64", "shape": [%s], "content": "%s"}}}'


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("jobs", JOB + '"params": {"x": "\\ud800"}}', "params.x"),
        ("jobs", JOB + '"params": {"x": ' + "9" * 400 + "}}", "params.x"),
        ("jobs", JOB + '"params": ' + '{"a":' * 60 + "1" + "}" * 61, "params"),
        ("jobs", JOB + '"display_name": "\\ud800"}', "display_name"),
        ("jobs", JOB + '"labels": {"a": "\\ud800"}}', "labels.a"),
        ("jobs", JOB + '"priority": "\\ud800"}', "priority"),
        ("jobs", JOB + '"\\ud800": 1}', "body"),
        ("jobs", JOB + '"params": {"\\ud800": 1}}', "params.?"),
        ("jobs", JOB + '"timeout": 9223372036854775808}', "timeout"),
        ("jobs", JOB + '"timeout": "soon"}', "timeout"),
        ("jobs", JOB + '"timeout": null}', "timeout"),
        ("jobs", JOB + '"timeout": -1}', "timeout"),
        ("jobs", JOB + '"notifications": [{}]}', "notifications[0]"),
        ("jobs:batch", '{"requests": [' + JOB + '"params": {"x": "\\ud800"}}]}', "requests[0].params.x"),
        ("jobs:batch", '{"requests": [' + JOB + '"priority": "URGENT"}]}', "requests[0].priority"),
        ("jobs:batch", '{"sweep": {"template": {"pipeline": "p"}, "axes": []}}', "sweep.axes"),
        ("jobs:batch", SWEEP % '["\\ud800"]', "sweep.axes[0].values[0]"),
        ("jobs:batch", SWEEP % "[]", "sweep.axes[0].values"),
        ("jobs/a:retry", '{"param_changes": {"x": "\\ud800"}}', "param_changes.x"),
        ("jobs/a:retry", '{"timeout": "30 weeks"}', "timeout"),
        ("jobs:purge", '{"states": []}', "states"),
        ("workers/cpu/w:drain", '{"now": true}', "now"),
        ("pools/cpu/credentials", '{"ttl": "-1d"}', "ttl"),
        ("datasets", '{"description": "\\ud800"}', "description"),
        ("simulate", '{"params": {"a": [NaN]}}', "params.a[0]"),
        ("predict", TENSOR % (1, "é"), "inputs.a.content"),
        ("predict", TENSOR % (2**63, ""), "inputs.a.shape[0]"),
        ("predict", '{"model": "m", "version": 9223372036854775808, "inputs": {}}', "version"),
        ("analyze", '{"curve": {"q": ["a", "b"], "r": [1, 1]}}', "curve.q[0]"),
        ("analyze", '{"curve": {"q": [1, 2], "r": [1, 1]}, "samples": 5001}', "samples"),
        ("analyze", '{"curve": {"q": [1, 2], "r": [1, 1]}, "samples": 2.5}', "samples"),
        ("analyze", '{"curve": {"q": [1, 2], "r": [1, 1]}, "seed": 9007199254740992}', "seed"),
    ],
)
async def test_a_value_that_no_message_holds_is_a_400_that_names_it(
    client: httpx.AsyncClient, path: str, body: str, field: str
) -> None:
    answer = await client.post(
        f"/api/v1/{path}", content=body.encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert [violation["field"] for violation in answer.json()["violations"]] == [field]


@pytest.mark.parametrize(
    ("body", "violation"),
    [
        ('{"pipeline": "a", "seed": -1}', ("seed", "got -1; Input should be greater than or equal to 0")),
        (
            "{",
            ("body", "JSON decode error at character 1: Expecting property name enclosed in double quotes"),
        ),
    ],
)
async def test_a_refusal_says_the_value_and_the_place(
    client: httpx.AsyncClient, body: str, violation: tuple[str, str]
) -> None:
    headers = {"content-type": "application/json"}
    answer = await client.post("/api/v1/jobs", content=body, headers=headers)
    found = answer.json()["violations"]
    assert [(item["field"], item["description"]) for item in found] == [violation]


@pytest.mark.parametrize("body", [{}, {"display_name": None}, {"priority": "URGENT"}, {"state": "PAUSED"}])
async def test_a_change_of_nothing_or_of_what_is_fixed_is_a_400(
    client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    for kind in ("jobs", "models", "datasets"):
        answer = await client.patch(f"/api/v1/{kind}/a", json=body)
        assert answer.status_code == 400
        assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        *[
            ("POST", f"jobs/a:{verb}", None)
            for verb in ("cancel", "pause", "resume", "stop", "claim", "retry")
        ],
        ("POST", "jobs", {"pipeline": "p", "timeout": "30m", "notifications": [{"email_address": "a@b"}]}),
        ("POST", "jobs:purge", {"filter": "", "force": True}),
        ("POST", "jobs:batch", {"requests": [{"pipeline": "p", "timeout": 90}]}),
        ("PATCH", "models/a", {"display_name": "Film", "labels": {"tag": "x"}, "etag": "3"}),
        ("PATCH", "datasets/a", {"description": ""}),
        ("GET", "usage", None),
        ("PATCH", "jobs/a", {"display_name": "", "labels": {}, "priority": "low"}),
        ("DELETE", "jobs/a?etag=e", None),
        ("GET", "jobs/a/attempts", None),
        ("GET", "pools/cpu", None),
        ("POST", "workers/cpu/w:drain", None),
        ("POST", "workers/cpu/w:reinstate", None),
        ("GET", "pools/-/credentials", None),
        ("POST", "pools/cpu/credentials", {"ttl": "90d"}),
        ("POST", "pools/cpu/credentials/c:revoke", None),
    ],
)
async def test_what_is_well_formed_reaches_the_service(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    answer = await client.request(method, f"/api/v1/{path}", json=body)
    # There is none.
    assert answer.status_code == 503, answer.text


@pytest.mark.parametrize("path", ["jobs/a/events?after_seq", "datasets/a/versions/1/content?offset"])
async def test_a_number_beyond_64_bits_in_a_query_is_a_400(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(f"/api/v1/{path}={2**63}")
    assert answer.status_code == 400
    assert answer.json()["violations"]


@pytest.mark.parametrize("depth", [990, 10_000])
async def test_json_that_is_too_deep_to_parse_is_a_400_and_no_line_in_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, depth: int
) -> None:
    body = JOB + '"params": {"a": ' + "[" * depth + "]" * depth + "}}"
    answer = await client.post("/api/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert not caplog.records


async def test_a_body_over_the_limit_is_refused_declared_or_not() -> None:
    large = b'{"pipeline": "' + b"a" * 4096 + b'"}'

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 512):
            yield large[start : start + 512]

    async for client in _client(_settings(HttpSettings(max_body_bytes=2048))):
        for content in (large, pieces()):
            answer = await client.post(
                "/api/v1/jobs", content=content, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 413
            assert "2048 bytes" in answer.json()["detail"]


async def test_parameters_have_a_smaller_limit_than_arrays(client: httpx.AsyncClient) -> None:
    large = b'{"a": "' + b"a" * (1 << 20) + b'"}'
    for path, status in (("jobs", 413), ("simulate", 413), ("analyze", 400), ("predict", 400)):
        answer = await client.post(
            f"/api/v1/{path}", content=large, headers={"content-type": "application/json"}
        )
        assert answer.status_code == status, path


@pytest.mark.parametrize("item", ["[]", "{}", '{"a": 1}'])
async def test_a_body_that_is_mostly_structure_is_refused(client: httpx.AsyncClient, item: str) -> None:
    body = '{"model": "m", "inputs": {}, "outputs": [' + ",".join([item] * 30_000) + "]}"
    answer = await client.post("/api/v1/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "arrays, objects and names" in answer.json()["detail"]


async def test_a_large_answer_is_converted_while_others_are_served() -> None:
    large = prediction_pb2.PredictResponse()
    large.outputs["y"].content = bytes(1 << 20)
    converted = asyncio.create_task(common.answer(large))
    turns = 0
    while not converted.done():
        await asyncio.sleep(0)
        turns += 1
    assert len((await converted).body) > 1 << 20
    assert turns > 1


async def test_unknown_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    large = {"content": b"a" * (1 << 20), "headers": {"content-type": "application/json"}}
    for answer, status, reason in (
        (await client.get("/api/v1/nothing"), 404, "NOT_FOUND"),
        (await client.put("/api/v1/jobs"), 405, "METHOD_NOT_ALLOWED"),
        (await client.post("/api/v1/jobs", **large), 413, "BODY_TOO_LARGE"),
        (await client.get("/", headers={"Host": "evil.example"}), 400, "INVALID_ARGUMENT"),
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["reason"] == reason
        assert len(answer.json()["trace_id"]) == 32


@pytest.mark.parametrize(
    ("code", "details", "status", "reason"),
    [
        ("RESOURCE_EXHAUSTED", "CLIENT: Sent message larger than max (9 vs. 4)", 413, "BODY_TOO_LARGE"),
        ("RESOURCE_EXHAUSTED", "the queue is full", 429, "RESOURCE_EXHAUSTED"),
        ("INTERNAL", "Internal error from Core", 503, "UNAVAILABLE"),
        ("INTERNAL", "a fault", 500, "INTERNAL"),
    ],
)
async def test_what_the_transport_says_is_told_from_what_a_service_says(
    code: str, details: str, status: int, reason: str
) -> None:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def call() -> None:
        raise grpc.aio.AioRpcError(
            grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), details=details
        )

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


async def test_a_path_segment_that_is_no_name_does_not_exist(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/jobs/..%2f..")).status_code == 404
    assert (await client.get("/api/v1/models/a%20b")).status_code == 404


async def test_single_mode_trusts_this_machine_only() -> None:
    async for far in _client(_settings(), host="192.0.2.7"):
        assert (await far.get("/api/v1/jobs")).status_code == 401


async def test_single_mode_refuses_a_host_name_that_was_rebound_here(client: httpx.AsyncClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "localhost@evil.example", "evil.example:80", ""):
        assert (await client.get("/api/v1/health", headers={"Host": host})).status_code == 400, host
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert (await client.get("/api/v1/health", headers={"Host": host})).status_code == 200, host


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
        # Another program's page on this machine is another site.
        {"Origin": "http://localhost:9999", "Sec-Fetch-Site": "same-site"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_page_of_another_site_writes_nothing(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    headers = headers | {"Content-Type": "text/plain"}
    for method, path in (
        ("POST", "datasets/csrf/versions?filename=a.txt"),
        ("POST", "jobs/a:cancel"),
        ("POST", "jobs:purge"),
        ("PATCH", "jobs/a"),
        ("DELETE", "jobs/a"),
        ("DELETE", "datasets/a"),
    ):
        answer = await client.request(method, f"/api/v1/{path}", content=b"1 2\n", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["reason"] == "CROSS_SITE"
    assert (await client.get("/api/v1/jobs", headers=headers)).status_code == 503


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://localhost:8000"},
        {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://localhost:8000", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ],
    ids=["a program", "our page", "a listed page", "our page behind TLS", "the address bar"],
)
async def test_programs_and_our_own_pages_write(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.post("/api/v1/jobs/a:cancel", headers=headers)).status_code == 503


async def test_proxy_mode_counts_the_user_header_only_with_the_secret(tmp_path: Path) -> None:
    async for client in _client(_settings(mode="proxy", proxy_secret="known")):
        alone = await client.get("/api/v1/jobs", headers={"X-User-ID": "ann"})
        wrong = await client.get(
            "/api/v1/jobs", headers={"X-User-ID": "ann", "X-Guidehall-Proxy-Secret": "guess"}
        )
        right = await client.get(
            "/api/v1/jobs", headers={"X-User-ID": "ann", "X-Guidehall-Proxy-Secret": "known"}
        )
        assert (alone.status_code, wrong.status_code) == (401, 401)
        assert right.status_code == 503


@pytest.mark.parametrize("mode", ["single", "proxy", "token"])
async def test_the_credential_of_a_service_a_worker_or_a_job_is_refused(tmp_path: Path, mode: str) -> None:
    issuer = TokenIssuer("trainer", KeyPair.generate())
    kinds: tuple[Kind, ...] = ("user", "service", "worker", "job")
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(TrustStore.entry(issuer.key, "trainer", kinds)))
    answers = {}
    async for client in _client(_settings(mode=mode, trust_file=trust, proxy_secret="known")):
        for kind in kinds:
            token = issuer.mint("trainer", kind, ttl_seconds=60, roles=[Role.SCIENTIST], pool="cpu")
            answers[kind] = await client.get("/api/v1/datasets", headers={"Authorization": f"Bearer {token}"})
    # No service is there to answer the one who gets in.
    assert {kind: answer.status_code for kind, answer in answers.items()} == {
        "user": 503, "service": 403, "worker": 403, "job": 403,
    }  # fmt: skip
    assert answers["worker"].json()["reason"] == "WRONG_KIND"


async def test_answers_carry_the_request_id_and_guarding_headers(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/nothing", headers={"X-Request-ID": "abc"})
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_fault_of_ours_is_answered_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    app = _app(_settings())

    @app.get("/api/v1/faulty")
    async def faulty() -> None:
        raise KeyError("a secret")

    headers = {"X-Request-ID": "abc", "Origin": "http://localhost:3000"}
    async for client in _client_of(app):
        answer = await client.get("/api/v1/faulty", headers=headers)

    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert answer.json()["metadata"]["error_id"] in record.getMessage()


async def test_who_leaves_during_an_upload_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    app = _app(_settings())

    @app.post("/api/v1/read")
    async def read(request: Request) -> None:
        async for _ in request.stream():
            pass

    scope = {"type": "http", "method": "POST", "path": "/api/v1/read", "query_string": b"", "scheme": "http"}
    scope |= {"headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 4711), "http_version": "1.1"}
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)

    assert sent[0]["status"] == 499
    assert not [record for record in caplog.records if record.exc_info]


class _CountingHealth(health_pb2_grpc.HealthServicer):
    checks = 0

    async def Check(self, request: Any, _: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
        assert not request.service
        self.checks += 1
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def test_many_who_ask_for_health_ask_the_services_once() -> None:
    health, server = _CountingHealth(), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    there = {"target": f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"}
    await server.start()
    settings = _settings().model_copy(update={"trainer": ChannelSettings(**there)})
    async for client in _client(settings):
        answers = await asyncio.gather(*(client.get("/api/v1/health") for _ in range(20)))
    await server.stop(None)

    services = {"trainer": True, "storage": False, "inference": False}
    assert [answer.json()["services"] for answer in answers] == [services] * 20
    assert health.checks == 1


async def test_a_page_of_this_machine_is_another_site_where_callers_must_be_known() -> None:
    async for client in _client(_settings(mode="token")):
        answer = await client.get("/api/v1/health", headers={"Origin": "http://localhost:3000"})
    assert "access-control-allow-origin" not in answer.headers


async def test_errors_carry_cors_headers_for_listed_origins_only(client: httpx.AsyncClient) -> None:
    listed = await client.get("/api/v1/jobs", headers={"Origin": "http://localhost:3000"})
    other = await client.get("/api/v1/jobs", headers={"Origin": "http://evil.example"})
    assert listed.status_code == 503
    assert listed.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "access-control-allow-origin" not in other.headers


async def test_a_provider_of_any_name_is_refused_and_adds_nothing_to_the_cookie(
    client: httpx.AsyncClient,
) -> None:
    for name in ("\N{SNOWMAN}", "x; Domain=elsewhere.example", "a b"):
        answer = await client.get(f"/auth/oidc/{quote(name, safe='')}/callback", params={"error": "refused"})
        assert answer.status_code == 403
        (attributes,) = answer.headers.get_list("set-cookie")
        assert f"Path=/auth/oidc/{quote(name, safe='')}" in attributes.split("; ")
        assert "Domain" not in [part.partition("=")[0] for part in attributes.split("; ")]


# Of all paths, the old ones too, those that answer somebody without a credential: pages, the way in, health.
OPEN = {
    *("GET /", "GET /docs", "GET /redoc", "GET /api/health", "GET /api/v1/health"),
    *("POST /auth/logout", "POST /auth/device"),
}


async def test_who_has_no_credential_is_let_in_by_no_path_but_the_open_ones() -> None:
    described = operations(GatewaySettings())
    names = {part["name"] for item in described for part in item.parameters if part["in"] == "path"}
    things = HttpThings("", (), dict.fromkeys(names, "1"), {}, {}, {})
    let_in, answers = set(), Counter[str]()
    async for client in _client(_settings(mode="token")):
        for operation in described:
            for request in things.requests(operation):
                answer = await call(client, request)
                answers[answer.code] += 1
                if answer.code < "400":
                    let_in.add(operation.label)
    assert let_in == OPEN
    # The rest of the way in asks storage, which is away.
    assert answers["401"] > len(described) * 0.8
