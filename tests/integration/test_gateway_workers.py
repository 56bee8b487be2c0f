"""Pools, workers and their credentials over HTTP and by the client, with the trainer behind them."""

from __future__ import annotations

import httpx
import pytest

from guidehall.client import AsyncClient
from guidehall.client.errors import NotFound, PermissionDenied
from guidehall.core.auth import Role
from tests.fixtures.trainer import Cast
from tests.integration.test_gateway_events import http

__all__ = ["http"]


def _operator(cast: Cast) -> dict[str, str]:
    return {"Authorization": f"Bearer {cast.site.token('olga', Role.OPERATOR)}"}


def _client(cast: Cast, *roles: Role) -> AsyncClient:
    return AsyncClient({"trainer": cast.site.target}, cast.site.token("olga", *roles))


async def test_a_worker_is_drained_and_reinstated_over_http(cast: Cast, http: httpx.AsyncClient) -> None:
    worker = await cast.worker()
    path = f"/workers/{cast.pool}/{worker.name.rpartition('/')[2]}"
    assert (await http.post(f"{path}:drain")).status_code == 403

    http.headers = httpx.Headers(_operator(cast))
    pool = (await http.get(f"/pools/{cast.pool}")).json()
    assert (pool["name"], pool["live_workers"]) == (f"pools/{cast.pool}", 1)
    assert (await http.get("/pools/no-such-pool")).status_code == 404
    for _ in range(2):
        drained = await http.post(f"{path}:drain", json={"release_job": True})
        assert (drained.status_code, drained.json()["state"]) == (200, "DRAINING")
    assert (await http.post(f"{path}:reinstate")).json()["state"] == "IDLE"
    assert (await http.post(f"/workers/{cast.pool}/nobody:drain")).status_code == 404


async def test_credentials_are_made_listed_and_revoked_over_http(cast: Cast, http: httpx.AsyncClient) -> None:
    http.headers = httpx.Headers(_operator(cast))
    path = f"/pools/{cast.pool}/credentials"
    made = await http.post(path, json={"note": "beamline 7", "ttl": "90d"})
    assert made.status_code == 201, made.text
    worker = await cast.worker(credential=made.json()["token"])
    assert worker.name.startswith(f"pools/{cast.pool}/")
    name = made.json()["credential"]["name"]
    listed = (await http.get(path)).json()["credentials"]
    assert [(item["name"], item["note"]) for item in listed] == [(name, "beamline 7")]
    assert name in [item["name"] for item in (await http.get("/pools/-/credentials")).json()["credentials"]]

    revoked = await http.post(f"{path}/{name.rpartition('/')[2]}:revoke")

    assert revoked.json()["revoke_time"]


async def test_the_client_does_the_same_by_short_ids(cast: Cast) -> None:
    worker = await cast.worker()
    async with _client(cast, Role.OPERATOR) as client:
        assert (await client.pool(cast.pool)).live_workers == 1
        identity = worker.name.rpartition("/")[2]
        assert (await client.drain(identity[:8], release_job=True)).state == "DRAINING"
        assert (await client.reinstate(identity)).state == "IDLE"
        with pytest.raises(NotFound):
            await client.drain("ffffffff")
        made = await client.create_worker_credential(cast.pool, note="n", ttl="1h")
        assert made.token not in repr(made)
        credential = made.credential
        assert credential in await client.worker_credentials(cast.pool)
        assert (await client.revoke_worker_credential(credential.id[:12])).revoke_time is not None
    async with _client(cast, Role.SCIENTIST) as client:
        with pytest.raises(PermissionDenied):
            await client.reinstate(worker.name)
