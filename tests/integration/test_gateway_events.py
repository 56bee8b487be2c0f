"""The gateway with the trainer behind it: server-sent events, and what it says about itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from guidehall.core.auth import Authenticator, KeyPair, TokenIssuer
from guidehall.core.channels import ServiceTokens, credentials_interceptors
from guidehall.core.settings import AuthSettings, ChannelSettings
from guidehall.science import registry
from services.gateway.app import create_app
from services.gateway.backends import Backends
from services.gateway.identity import HttpIdentity
from services.gateway.settings import GatewaySettings
from tests.fixtures.gateway import Gateway
from tests.fixtures.trainer import Cast, TrainerSite, progress


@pytest.fixture
async def http(trainer: TrainerSite) -> AsyncIterator[httpx.AsyncClient]:
    identity = trainer.identity
    settings = GatewaySettings(
        auth=AuthSettings(mode="token", trust_file=identity.trust_file),
        trainer=ChannelSettings(target=trainer.target),
    )
    tokens = ServiceTokens(TokenIssuer("gateway", KeyPair.load(identity.key_file("gateway"))))
    app = create_app(
        settings,
        HttpIdentity(settings.auth, Authenticator(settings.auth, "gateway")),
        lambda: Backends(settings, credentials_interceptors(tokens, delegate=True)),
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {trainer.token('ada')}"}
    base = "http://localhost/api/v1"
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client,
    ):
        yield client


async def test_a_number_beyond_the_newest_event_is_refused(cast: Cast, http: httpx.AsyncClient) -> None:
    job = await cast.owner().submit()
    events = f"/jobs/{job.name.rpartition('/')[2]}/events"
    by_query = await http.get(events, params={"after_seq": job.last_seq + 1})
    by_header = await http.get(events, headers={"Last-Event-ID": str(job.last_seq + 1)})
    for answer, field in ((by_query, "after_seq"), (by_header, "Last-Event-ID")):
        assert answer.status_code == 400
        assert [violation["field"] for violation in answer.json()["violations"]] == [field]
        assert f"at most {job.last_seq}" in answer.json()["detail"]


async def test_who_has_seen_the_last_event_of_a_job_is_told_not_to_come_again(
    cast: Cast, http: httpx.AsyncClient
) -> None:
    owner = cast.owner()
    job = await owner.submit()
    await owner.cancel(job.name)
    ended = await owner.wait(job.name, "CANCELLED")
    events = f"/jobs/{job.name.rpartition('/')[2]}/events"
    before = await http.get(events, headers={"Last-Event-ID": str(ended.last_seq - 1)})
    after = await http.get(events, headers={"Last-Event-ID": str(ended.last_seq)})
    assert (before.status_code, after.status_code) == (200, 204)
    assert f"id: {ended.last_seq}\n" in before.text
    assert after.content == b""


async def test_a_job_whose_numbers_are_not_finite_is_answered(cast: Cast, http: httpx.AsyncClient) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.report(1, [progress(1, loss=float("nan"), rate=0.5)])
    answer = await http.get(f"/jobs/{job.name.rpartition('/')[2]}")
    assert answer.status_code == 200
    assert answer.json()["progress"]["metrics"] == {"loss": None, "rate": 0.5}


async def test_a_reader_that_comes_too_late_gets_the_job_as_it_stands(
    cast: Cast, http: httpx.AsyncClient
) -> None:
    owner = cast.owner()
    job = await owner.submit()
    await owner.cancel(job.name)
    ended = await owner.wait(job.name, "CANCELLED")
    job_id = job.name.rpartition("/")[2]
    await cast.site.fetch("UPDATE trainer.jobs SET first_seq = last_seq WHERE id = $1", job_id)
    await cast.site.fetch(
        "DELETE FROM trainer.job_events WHERE job_id = $1 AND seq < $2", job_id, ended.last_seq
    )

    answer = await http.get(f"/jobs/{job_id}/events")

    told = [
        dict(line.split(": ", 1) for line in part.split("\n")) for part in answer.text.strip().split("\n\n")
    ]
    assert [(event["event"], int(event["id"])) for event in told] == [
        ("snapshot", ended.last_seq - 1),
        ("state_change", ended.last_seq),
    ]
    assert json.loads(told[0]["data"])["state"] == "CANCELLED"


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _references(item)


async def test_the_description_shows_the_fields_of_every_pipeline(http: httpx.AsyncClient) -> None:
    # Who only reads it needs no token.
    del http.headers["Authorization"]
    document = (await http.get("http://localhost/openapi.json")).json()

    schemas = document["components"]["schemas"]
    for name in registry.pipelines():
        params = registry.json_schema(name)
        assert list(schemas[name]["properties"]) == list(params["properties"])
    thickness = schemas["reflectometry.simulate"]["$defs"]["Layer"]["properties"]["thickness"]
    assert (thickness["unit"], thickness["maximum"]) == ("angstrom", 20000)
    submitted = schemas["SubmitJob"]["properties"]["params"]["anyOf"]
    assert {"$ref": "#/components/schemas/toy.line"} in submitted
    simulated = schemas["SimulateBody"]["properties"]["params"]
    assert simulated == {"$ref": "#/components/schemas/reflectometry.simulate"}
    for reference in set(_references(document)):
        found = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


@pytest.fixture
def impatient(trainer: TrainerSite) -> Iterator[Gateway]:
    """A process whose streams are silent for a tenth of a second at most."""
    gateway = Gateway(
        trainer.identity, AUTH__MODE="token", TRAINER__TARGET=trainer.target, HTTP__COMMENT_SECONDS=0.1
    )
    yield gateway
    gateway.stop()


async def test_a_silent_stream_carries_comments_and_loses_no_event(cast: Cast, impatient: Gateway) -> None:
    owner = cast.owner()
    job = await owner.submit()
    url = f"http://127.0.0.1:{impatient.port}/api/v1/jobs/{job.name.rpartition('/')[2]}/events"
    headers = {"Authorization": f"Bearer {cast.site.token('ada')}", "Last-Event-ID": str(job.last_seq)}
    told: list[str] = []
    async with (
        httpx.AsyncClient(headers=headers, timeout=10) as client,
        client.stream("GET", url) as stream,
    ):
        async for line in stream.aiter_lines():
            told += [line] if line else []
            if told == [": silence"] * 3:
                await owner.cancel(job.name)
    assert told[:3] == [": silence"] * 3
    (number,) = (line for line in told if line.startswith("id: "))
    assert number == f"id: {(await owner.get(job.name)).last_seq}"
