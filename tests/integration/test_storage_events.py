"""What storage tells the bus, whether the bus is there or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats
import pytest

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.events.v1 import events_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.core.bus import EventBus
from guidehall.core.settings import NatsSettings
from guidehall.local.backing import BackingServers
from tests.fixtures.storage import StorageSite, eventually, model_name, sha256, weights

pytestmark = pytest.mark.slow


@pytest.fixture
async def provisioned(backing: BackingServers) -> None:
    """The streams, as the trainer makes them."""
    settings = NatsSettings(
        url=backing.nats.url,
        user="trainer",
        password=backing.nats.password("trainer"),  # type: ignore[arg-type]
    )
    bus = await EventBus.connect(settings, "test", owns_streams=True)
    try:
        await bus.provision()
    finally:
        await bus.close()


@asynccontextmanager
async def heard(backing: BackingServers, subject: str) -> AsyncIterator[list[tuple[str, events_pb2.Event]]]:
    """What passes on a subject while the block runs."""
    events: list[tuple[str, events_pb2.Event]] = []

    async def note(message: Any) -> None:
        events.append((message.subject, events_pb2.Event.FromString(message.data)))

    client = await nats.connect(
        backing.nats.url, user=backing.nats.user, password=backing.nats.password(backing.nats.user)
    )
    try:
        await client.subscribe(subject, cb=note)
        await client.flush()
        yield events
    finally:
        await client.close()


async def waiting(site: StorageSite) -> int:
    return int((await site.fetch("SELECT count(*) AS n FROM storage.outbox"))[0]["n"])


@pytest.mark.usefixtures("provisioned")
async def test_changes_are_announced(
    backing: BackingServers, own_storage: Callable[..., StorageSite]
) -> None:
    site = own_storage()
    site.start()
    async with heard(backing, "*.>") as events, site.user("ada") as ada:
        version = await ada.publish("film", weights())
        await ada.models.DeleteModel(models_pb2.DeleteModelRequest(name=model_name("film")))
        await ada.models.DeleteModel(models_pb2.DeleteModelRequest(name=model_name("film")))
        await ada.models.UndeleteModel(models_pb2.UndeleteModelRequest(name=model_name("film")))
        tag = models_pb2.SetModelTagRequest(name=model_name("film"), tag="production", version=1)
        await ada.models.SetModelTag(tag)
        await ada.models.SetModelTag(tag)
        dataset = await ada.upload("d", b"data")

        def told() -> list[tuple[str, events_pb2.Event]]:
            return [(s, e) for s, e in events if s.partition(".")[0] in ("model", "dataset")]

        async def all_told() -> bool:
            return len(told()) >= 5

        await eventually(all_told, lambda: str(events))

    (s1, published), (s2, deleted), (s3, undeleted), (s4, changed), (s5, created) = told()
    assert (s1, s2, s3, s4, s5) == (
        "model.published", "model.deleted", "model.undeleted", "model.changed", "dataset.version_created",
    )  # fmt: skip
    assert published.model_published.model_version == version.name
    assert published.model_published.architecture == "toy.line/1"
    assert published.model_published.weights_sha256 == sha256(weights())
    assert (deleted.model_visibility_changed.model, deleted.model_visibility_changed.deleted) == (
        model_name("film"),
        True,
    )
    assert not undeleted.model_visibility_changed.deleted
    assert changed.model_changed.model == model_name("film")
    assert created.dataset_version_created.dataset_version == dataset.name
    assert {event.source for _, event in told()} == {"storage"}
    assert len({event.event_id for _, event in told()}) == 5
    assert await waiting(site) == 0


@pytest.mark.usefixtures("provisioned")
async def test_without_the_bus_everything_works_and_is_announced_later(
    backing: BackingServers, own_storage: Callable[..., StorageSite]
) -> None:
    site = own_storage()
    process = site.start()
    backing.kill("nats")
    try:
        async with site.user("ada") as ada:
            for number in range(3):
                await ada.upload("d", b"data %d" % number)
            assert await waiting(site) == 3
            process.wait_serving()
    finally:
        backing.restart("nats")

    async def caught_up() -> bool:
        return await waiting(site) == 0

    await eventually(caught_up, seconds=20)


@pytest.mark.usefixtures("provisioned")
async def test_what_a_killed_process_left_is_announced_by_another(
    backing: BackingServers, own_storage: Callable[..., StorageSite]
) -> None:
    site = own_storage()
    # It never looks by itself.
    site.start(NATS__URL="nats://127.0.0.1:1")
    async with site.user("ada") as ada:
        await ada.upload("d", b"data")
    site.processes.pop().stop(9)
    assert await waiting(site) == 1

    async with heard(backing, "dataset.>") as events:
        site.start()

        async def told() -> bool:
            return bool(events)

        await eventually(told)
    assert [event.dataset_version_created.dataset_version for _, event in events] == [
        "projects/default/datasets/d/versions/1"
    ]


async def test_without_any_bus_configured_it_serves(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    for name in ("URL", "USER", "PASSWORD"):
        del site.environ[f"GUIDEHALL_STORAGE__NATS__{name}"]
    site.start(UPKEEP__ANNOUNCEMENT_MAX_AGE_SECONDS=0.2, UPKEEP__SWEEP_SECONDS=0.1)
    async with site.user("ada") as ada:
        await ada.upload("d", b"data")
        listed = await ada.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest())

    async def forgotten() -> bool:
        return await waiting(site) == 0

    assert len(listed.datasets) == 1
    await eventually(forgotten)
