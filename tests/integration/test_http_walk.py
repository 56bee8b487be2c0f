"""Nobody reads or changes what is somebody else's: all of the gateway, called with their names."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx
import pytest
from google.protobuf import message_factory

from guidehall.core.auth import Role
from guidehall.local.backing import BackingServers
from services.gateway.settings import GatewaySettings
from tests.fixtures.gateway import Gateway
from tests.http_walk import HttpCaller, HttpThings, HttpWalk, Operation, call, operations
from tests.processes import Server
from tests.rpcs import full_name, methods
from tests.walk import Answer, Finding, Things, table
from tests.walk import call as call_rpc
from tests.world import (
    ARTIFACT,
    GROUP,
    MARKER,
    OWNER,
    OWNS,
    PLACES,
    STRANGE,
    World,
    digests,
    walking,
    worlds,
)

pytestmark = pytest.mark.slow

PROXY_SECRET = "known to the proxy"
# What somebody without a credential may have.
OPEN = """
GET /
GET /api/health
GET /api/v1/health
GET /auth/device
GET /auth/methods
GET /docs
GET /redoc
POST /auth/device
POST /auth/device/code
POST /auth/logout
"""
# In proxy mode the old web app's page does this without saying who it is; the job's id is the secret
# (docs/reference/old-web-app.md).
BY_ID = {
    Finding("guest", "GET /api/jobs/{job_id}", "read"),
    Finding("guest", "DELETE /api/jobs/{job_id}", "changed"),
    Finding("guest", "DELETE /api/jobs/{job_id}/delete", "changed"),
}


@dataclass
class Site:
    """The services, and two gateways before them."""

    world: World
    gateway: Gateway
    proxied: Gateway

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    def caller(self, name: str, *roles: Role, url: str = "", **claims: object) -> HttpCaller:
        token = self.world.token(name, *roles, **claims)
        return HttpCaller(name, url or self.url, {"Authorization": f"Bearer {token}"})

    def others(self, place: str) -> list[HttpCaller]:
        """Who is new in each place: the audit log tells everybody what they themselves have called."""
        proxied = f"http://127.0.0.1:{self.proxied.port}"
        pretended = {"X-User-ID": OWNER, "X-User-Groups": GROUP, "X-Guidehall-Proxy-Secret": "guessed"}
        secret = {"X-Guidehall-Proxy-Secret": PROXY_SECRET}
        return [
            HttpCaller("nobody", self.url),
            HttpCaller("nobody as ada", self.url, pretended),
            HttpCaller("nobody at the proxy's", proxied, pretended),
            self.caller(f"viewer-{place}", Role.VIEWER),
            self.caller(f"scientist-{place}"),
            self.caller(f"stranger-{place}", **STRANGE),
            # The last one, for a guest may end ada's run.
            HttpCaller("guest", proxied, secret),
        ]

    def things(self, place: str) -> HttpThings:
        """Ada's, and a new run of the old web app."""
        named: Things = getattr(self.world, place)
        return _things(named, _old_run(self))


def _gateway(world: World, program: str = "services.gateway", **settings: object) -> Gateway:
    targets = {
        "STORAGE__TARGET": world.facility.storage.target,
        "TRAINER__TARGET": world.facility.trainer.target,
        "INFERENCE__TARGET": world.inference.target,
        "AUTH__MODE": "token",
    }
    return Gateway(world.facility.storage.identity, program, **{**targets, **settings})


@pytest.fixture(scope="module")
def site(
    backing: BackingServers, event_streams: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with worlds(backing, tmp_path_factory.mktemp("walk")) as world:
        gateway = _gateway(world)
        proxied = _gateway(world, AUTH__MODE="proxy", AUTH__PROXY_SECRET=PROXY_SECRET)
        try:
            yield Site(world, gateway, proxied)
        finally:
            gateway.stop()
            proxied.stop()


def _old_run(site: Site) -> str:
    """Id of a job that ada submits as the old web app does."""
    ada = site.caller(OWNER, **OWNS)
    with httpx.Client(base_url=ada.url, headers=ada.headers, timeout=30) as http:
        answer = http.post("/api/jobs/submit", json=http.get("/api/defaults").json() | {"name": MARKER})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["job_id"])


def _things(named: Things, run: str) -> HttpThings:
    """The names that the walk over the rpcs has, as paths and bodies have them."""
    jobs, datasets, models, results, history, identity = (
        named.fields[f"guidehall.{service}Service"]
        for service in (
            "jobs.v1.Jobs", "datasets.v1.Datasets", "models.v1.Models", "results.v1.Results",
            "results.v1.History", "identity.v1.Identity",
        )
    )  # fmt: skip
    version = named.fields["guidehall.datasets.v1.DatasetsService/GetDatasetVersion"]["name"]
    key = named.fields["guidehall.identity.v1.IdentityService/RevokeApiKey"]["name"]
    pool = _last(named.fields["guidehall.workers.v1.PoolsService"]["name"])
    dataset, model, nothing = _last(datasets["name"]), _last(models["name"]), str(uuid.uuid4())
    assert identity["name"] == f"users/{OWNER}"
    robot = f"robot-{MARKER}"
    paths = {
        "job": _last(jobs["name"]),
        "job_id": run,
        "result": _last(results["name"]),
        "artifact": ARTIFACT,
        "dataset": dataset,
        "version": "1",
        "tag": "production",
        "model": model,
        "id": model,
        "kind": "nr_train",
        "user": OWNER,
        "key": _last(key),
        "group": GROUP,
        "pool": pool,
        "worker": "w1",
        "pipeline": "toy.line",
        "provider": "facility",
        **dict.fromkeys(("session", "credential", "invitation", "erasure", "identity"), nothing),
    }
    fields = {
        "pipeline": "toy.line",
        "inputs": {"points": version},
        "model": model,
        "dataset_id": dataset,
        "job": jobs["name"],
        "model_id": model,
        "user_id": OWNER,
        "user": OWNER,
        "hand_over_to": "scientist",
        "group_id": GROUP,
        "add": jobs["add"],
        "roles": ["ADMIN"],
        "role": "MANAGER",
        "disabled": True,
        "name": "taken over",
        "display_name": "taken over",
        "filename": "taken.txt",
        "filter": f'owner = "{OWNER}"',
        "password": "a long pass word",
        "subject": OWNER,
        "provider": "facility",
        "validate_only": True,
        "include_queued": True,
        "force": True,
        "hard": True,
        "threshold_seconds": 1,
        "offset": 0,
        "params": {},
    }
    upload = {"files": {"files": ("taken.npy", b"nothing")}, "data": {"roles": "nr_train"}}
    weights = {"files": {"file": ("taken.pth", b"nothing")}, "data": {"model_id": model}}
    job = {"pipeline": "toy.line", "pool": pool, "group": GROUP, "inputs": {"points": version}}
    tensor = {"datatype": "FP32", "shape": [1], "content": "AAAAAA=="}
    curve = {"q": [0.01, 0.02, 0.03], "r": [1.0, 0.1, 0.01]}
    return HttpThings(
        MARKER,
        (run, paths["job"]),
        paths,
        {
            "/api/history/": {"id": _last(history["name"])},
            "/api/checkpoints/": {"job_id": run},
            "/api/v1/service-accounts/": {"user": robot},
        },
        fields,
        {
            "POST /api/upload": upload,
            "POST /api/models/upload": weights,
            "POST /api/v1/jobs:batch": {"json": {"requests": [job], "validate_only": True}},
            "POST /api/v1/predict": {"json": {"model": model, "inputs": {"x": tensor}}},
            "POST /api/v1/analyze": {"json": {"model": model, "curve": curve}},
        },
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


@asynccontextmanager
async def _http_walking(site: Site, place: str) -> AsyncIterator[HttpWalk]:
    things = site.things(place)
    async with digests(site.world) as states:
        yield HttpWalk(things, states)


def _all() -> list[Operation]:
    """The audit log comes before its readers have called anything by a name that is in it then."""
    return sorted(operations(GatewaySettings()), key=lambda item: ("/audit" not in item.path, item.label))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("place", PLACES)
async def test_others_read_and_change_nothing(
    site: Site, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    called = _all()
    findings: list[Finding] = []
    answers = {}
    async with _http_walking(site, place) as walk:
        for other in site.others(place):
            found, answers[other.name] = await walk.as_caller(other, called)
            findings += found

    total = sum(map(len, answers.values()))
    with capsys.disabled():
        print(f"\n{place}: {len(findings)} of {total} requests ({len(called)} operations) found something")
        print(table(answers))
    assert set(findings) - BY_ID == set()
    # No request broke the gateway on its way to a refusal, where it may hide what it would have done.
    broken = {
        (caller, label, answer.content)
        for caller, by_operation in answers.items()
        for label, answer in by_operation.items()
        if answer.code in ("500", "502", "504") or b"internal error" in answer.content
    }
    assert broken == set()
    opened = set(OPEN.strip().splitlines())
    for name in ("nobody", "nobody as ada", "nobody at the proxy's"):
        got = {label for label, answer in answers[name].items() if answer.code < "400"}
        assert got <= opened, name
    # Much of what names a thing is refused for the thing's sake, not because the request makes no sense.
    refused = [answer for answer in answers[f"scientist-{place}"].values() if answer.code in ("403", "404")]
    assert len(refused) > len(called) / 3


SHOWN = """
GET /api/history
GET /api/jobs/{job_id}
GET /api/queue
GET /api/v1/audit
GET /api/v1/datasets
GET /api/v1/datasets/{dataset}
GET /api/v1/datasets/{dataset}/versions
GET /api/v1/datasets/{dataset}/versions/{version}
GET /api/v1/datasets/{dataset}/versions/{version}/content
GET /api/v1/groups
GET /api/v1/groups/{group}
GET /api/v1/groups/{group}/members
GET /api/v1/groups/{group}/service-accounts
GET /api/v1/jobs
GET /api/v1/jobs/{job}
GET /api/v1/models
GET /api/v1/models/{model}
GET /api/v1/models/{model}/versions
GET /api/v1/models/{model}/versions/{version}
GET /api/v1/results
GET /api/v1/results/{result}
GET /api/v1/results/{result}/artifacts/{artifact}
GET /api/v1/results/{result}/bundle
GET /api/v1/users/{user}
GET /api/v1/users/{user}/keys
GET /api/v1/users/{user}:export
GET /api/v1/whoami
GET /api/history/{id}
"""


async def test_the_same_requests_show_the_owner_everything(site: Site) -> None:
    """Else the names in the requests might be wrong, and nobody would be told anything."""
    ada, things, shown = site.caller(OWNER, **OWNS), site.things("personal"), set()
    async with httpx.AsyncClient(base_url=ada.url, headers=ada.headers, timeout=5) as http:
        for operation in _all():
            # The events of a job that waits go on; they have no names in them.
            if operation.method == "GET" and not operation.path.endswith("/events"):
                for request in things.requests(operation):
                    answer = await call(http, request)
                    if answer.code == "200" and things.tells(operation, request, answer):
                        shown.add(operation.label)
    assert set(SHOWN.strip().splitlines()) - shown == set()


async def test_a_policy_that_is_left_open_is_found(site: Site) -> None:
    """A gateway before a storage where anybody may list users."""
    stored = site.world.facility.storage
    open_one = Server(
        "tests.open_policy", "serve", environ=stored.environ, ready="guidehall.datasets.v1.DatasetsService"
    )
    try:
        open_one.wait_serving()
        gateway = _gateway(site.world, STORAGE__TARGET=open_one.target)
        try:
            findings = await _found(site, gateway, "/api/v1/users")
        finally:
            gateway.stop()
    finally:
        open_one.stop()
    assert set(findings) == {Finding("scientist", "GET /api/v1/users", "read")}


async def test_a_look_that_the_gateway_leaves_out_is_found(site: Site) -> None:
    """On an old path, where it calls in the platform's own name."""
    gateway = _gateway(site.world, "tests.open_gateway")
    try:
        findings = await _found(site, gateway, "/api/jobs/{job_id}", "GET")
    finally:
        gateway.stop()
    assert set(findings) == {Finding("scientist", "GET /api/jobs/{job_id}", "read")}


async def _found(site: Site, gateway: Gateway, beginning: str, *only: str) -> list[Finding]:
    called = [
        operation
        for operation in _all()
        if operation.path.startswith(beginning) and operation.method in (only or (operation.method,))
    ]
    async with _http_walking(site, "personal") as walk:
        caller = site.caller("scientist", url=f"http://127.0.0.1:{gateway.port}")
        findings, _ = await walk.as_caller(caller, called)
    return findings


def test_a_path_with_a_name_that_the_walk_does_not_know_is_refused() -> None:
    unknown = Operation("GET", "/api/v1/beams/{beam}", [{"in": "path", "name": "beam"}], {}, {})
    with pytest.raises(AssertionError, match="beam"):
        list(HttpThings(MARKER, (), {"job": "1"}, {}, {}, {}).requests(unknown))


def test_what_a_request_named_tells_nobody_anything_but_the_rest_does() -> None:
    things = HttpThings("mark", ("1234",), {"job": "1234", "id": "x-mark"}, {}, {}, {})
    job, queue, model = (
        Operation("GET", path, [{"in": "path", "name": name}] if name else [], {}, {})
        for path, name in (("/jobs/{job}", "job"), ("/queue", ""), ("/models/{id}", "id"))
    )

    def told(operation: Operation, code: str, content: bytes) -> bool:
        (request,) = things.requests(operation)
        return things.tells(operation, request, Answer(code, content))

    assert not told(job, "404", b"jobs/1234 does not exist")
    assert not told(model, "403", b"model x-mark is somebody else's")
    assert told(model, "403", b"model x-mark is ada-mark's")
    assert told(model, "200", b"x-mark")
    assert told(job, "200", b'{"name": "jobs/1234", "owner": "ada-mark"}')
    assert told(queue, "200", b'{"job_ids": ["1234"]}')


@pytest.mark.parametrize("place", PLACES)
async def test_an_address_of_an_object_is_given_to_its_owner_alone(site: Site, place: str) -> None:
    """And is good for what it was made for, as it was made."""
    things: Things = getattr(site.world, place)
    makers = [method for method in methods() if method.name.endswith("Url")]
    assert len(makers) == 3
    async with walking(site.world, things) as walk:
        for method in makers:
            channel: grpc.aio.Channel = walk.channels[method.containing_service.full_name]
            request = things.request(method)
            own = await call_rpc(channel, method, request, site.world.owner())
            assert own.code == "OK", full_name(method)
            for other in site.world.others(place):
                answer = await call_rpc(channel, method, request, other)
                refused = "UNAUTHENTICATED", "NOT_FOUND", "PERMISSION_DENIED"
                assert (answer.code in refused, answer.content) == (True, b""), (
                    full_name(method),
                    other.name,
                )
            if method.name == "CreateArtifactUrl":
                made = message_factory.GetMessageClass(method.output_type).FromString(own.content)
    assert await asyncio.to_thread(_got, made.url) == (200, True)
    bare, _, signed = made.url.partition("?")
    for address in (bare, f"{bare}x?{signed}", made.url.replace("X-Amz-Signature=", "X-Amz-Signature=0")):
        code, told = await asyncio.to_thread(_got, address)
        # Servers differ in whether a request without a signature is wrong or forbidden.
        assert code in (400, 403), address
        assert not told, address


def _got(address: str) -> tuple[int, bool]:
    answer = httpx.get(address)
    return answer.status_code, MARKER in answer.text
