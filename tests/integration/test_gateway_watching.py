"""Many readers of one job at the gateway: one stream from the trainer, and nobody waits for another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from prometheus_client import REGISTRY

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.auth import KeyPair, TokenIssuer
from guidehall.core.channels import ServiceTokens, credentials_interceptors
from guidehall.core.settings import AuthSettings, ChannelSettings
from services.gateway.backends import Backends
from services.gateway.settings import GatewaySettings
from services.gateway.watching import Reader, Watching
from tests.fixtures.gateway import Gateway
from tests.fixtures.trainer import Cast, TrainerSite, log_line

# More than are kept of a job.
MANY = 1200
READERS = 5


def calls(purpose: str) -> float:
    """How many streams this process has asked the trainer for."""
    return REGISTRY.get_sample_value("guidehall_gateway_watch_calls_total", {"purpose": purpose}) or 0.0


@pytest.fixture
async def watching(trainer: TrainerSite) -> AsyncIterator[Watching]:
    settings = GatewaySettings(
        auth=AuthSettings(mode="token", trust_file=trainer.identity.trust_file),
        trainer=ChannelSettings(target=trainer.target),
    )
    issuer = TokenIssuer("gateway", KeyPair.load(trainer.identity.key_file("gateway")))
    backends = Backends(settings, credentials_interceptors(ServiceTokens(issuer), delegate=True))
    yield Watching(backends.jobs)
    await backends.close()


async def take(reader: Reader, count: int = 0) -> list[int]:
    """Numbers of the next `count` events, or of all that come."""
    seqs: list[int] = []
    async for event in reader.events():
        assert event is not None
        seqs.append(event.seq)
        if len(seqs) == count:
            break
    return seqs


async def test_one_that_stops_reading_holds_up_nobody_and_misses_nothing(
    cast: Cast, watching: Watching
) -> None:
    owner, worker = cast.owner(), await cast.worker()
    job = await owner.submit()
    before, caught_up = calls("follow"), calls("catch_up")
    still, *others = (watching.reader(job, 0, 60) for _ in range(READERS))
    assert await take(still, 1) == [1]
    reading = [asyncio.create_task(take(reader)) for reader in others]
    lease = await worker.must_lease()
    async with worker.session(lease) as session:
        await session.start()
        for first in range(1, MANY, 100):
            await session.report(first, [log_line(f"line {first + k}") for k in range(100)])
    await owner.cancel(job.name)
    await worker.release(lease)
    last = (await owner.wait(job.name, "CANCELLED")).last_seq
    assert last > MANY

    # To the end, while one has taken a single event.
    assert await asyncio.gather(*reading) == [list(range(1, last + 1))] * (READERS - 1)
    assert calls("follow") - before == 1
    # It goes on from where it stood, with what was kept nowhere in between.
    assert await take(still) == list(range(2, last + 1))
    assert calls("catch_up") > caught_up
    for reader in (still, *others):
        reader.close()
    assert watching.is_idle


async def test_a_stream_ends_with_its_last_reader_and_begins_anew(cast: Cast, watching: Watching) -> None:
    owner = cast.owner()
    job = await owner.submit()
    before = calls("follow")
    for _ in range(2):
        one, other = watching.reader(job, 0, 60), watching.reader(job, job.last_seq, 0.05)
        assert await take(one, 1) == [1]
        assert [event async for event in _first(other)] == [None]
        one.close()
        assert not watching.is_idle
        other.close()
        assert watching.is_idle
    assert calls("follow") - before == 2


async def _first(reader: Reader) -> AsyncIterator[jobs_pb2.JobEvent | None]:
    async for event in reader.events():
        yield event
        return


@pytest.fixture
def measured(trainer: TrainerSite) -> Iterator[tuple[Gateway, str]]:
    """A gateway, and where its metrics are."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    gateway = Gateway(trainer.identity, AUTH__MODE="token", TRAINER__TARGET=trainer.target, OPS__PORT=port)
    yield gateway, f"http://127.0.0.1:{port}/metrics"
    gateway.stop()


async def test_readers_over_http_share_a_stream_and_each_is_let_in_by_itself(
    cast: Cast, measured: tuple[Gateway, str]
) -> None:
    gateway, metrics = measured
    owner = cast.owner()
    job = await owner.submit()
    path = f"/api/v1/jobs/{job.name.rpartition('/')[2]}/events"
    begun = asyncio.Semaphore(0)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=30) as client:

        async def read(after: int) -> list[int]:
            headers = {"Authorization": f"Bearer {cast.site.token('ada')}", "Last-Event-ID": str(after)}
            seqs = []
            async with client.stream("GET", path, headers=headers) as stream:
                assert stream.status_code == 200
                begun.release()
                async for line in stream.aiter_lines():
                    if line.startswith("id: "):
                        seqs.append(int(line.removeprefix("id: ")))
            return seqs

        reading = [asyncio.create_task(read(k % 2)) for k in range(READERS)]
        for _ in reading:
            await begun.acquire()
        stranger = {"Authorization": f"Bearer {cast.site.token('eve')}"}
        refused = await client.get(path, headers=stranger)
        await owner.cancel(job.name)
        ended = await owner.wait(job.name, "CANCELLED")
        told = await asyncio.gather(*reading)
        measures = (await client.get(metrics)).text

    assert refused.status_code == 404
    assert told == [list(range(1 + k % 2, ended.last_seq + 1)) for k in range(READERS)]
    assert 'guidehall_gateway_watch_calls_total{purpose="follow"} 1.0' in measures
    assert "guidehall_gateway_watch_readers 0.0" in measures
