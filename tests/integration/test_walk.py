"""Nobody reads or changes what is somebody else's: every rpc of every service, called with their names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guidehall.local.backing import BackingServers
from tests.processes import Server
from tests.rpcs import full_name, methods
from tests.walk import Finding, Things, call, table
from tests.world import MARKER, PLACES, World, walking, worlds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(
    backing: BackingServers, event_streams: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with worlds(backing, tmp_path_factory.mktemp("walk")) as made:
        yield made


@pytest.mark.parametrize("place", PLACES)
async def test_others_read_and_change_nothing(
    world: World, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    things: Things = getattr(world, place)
    # The audit log comes before its readers have called anything by a name that is in it then.
    called = sorted(methods(), key=lambda method: ("Audit" not in full_name(method), full_name(method)))
    findings: list[Finding] = []
    answers = {}
    async with walking(world, things) as walk:
        for other in world.others(place):
            found, answers[other.name] = await walk.as_caller(other, called)
            findings += found

    total = sum(map(len, answers.values()))
    with capsys.disabled():
        print(f"\n{place}: {len(findings)} of {total} calls ({len(called)} rpcs) read or changed something")
        print(table(answers))
    assert findings == []
    # No call broke the server on its way to a refusal, where it may hide what it would have done.
    broken = {
        (name, answer.details)
        for by_method in answers.values()
        for name, answer in by_method.items()
        if answer.code in ("INTERNAL", "UNKNOWN", "DATA_LOSS") and answer.details == "internal error"
    }
    assert broken == set()
    # Most of what names a thing is refused for the thing's sake, not because the request makes no sense.
    missing = [answer for answer in answers[f"scientist-{place}"].values() if answer.code == "NOT_FOUND"]
    assert len(missing) > len(called) / 4
    assert "OK" not in {answer.code for answer in answers["nobody"].values()}


READS = """
jobs.v1.JobsService: GetJob ListJobs WatchJob
datasets.v1.DatasetsService: GetDataset ListDatasets GetDatasetVersion DownloadDatasetVersion
models.v1.ModelsService: GetModel ListModels GetModelVersion ListModelVersions
results.v1.ResultsService: GetResult ListResults
identity.v1.PersonalDataService: ExportPersonalData
usage.v1.UsageService: GetUsage
"""


@pytest.mark.parametrize("place", PLACES)
async def test_the_same_calls_show_the_owner_everything(world: World, place: str) -> None:
    """Else the names in the requests might be wrong, and nobody would be told anything."""
    wanted = {
        f"/guidehall.{service}/{method}"
        for service, _, listed in (line.partition(":") for line in READS.split("\n") if line)
        for method in listed.split()
    } - {"/guidehall.jobs.v1.JobsService/WatchJob"}
    async with walking(world, getattr(world, place)) as walk:
        missed = []
        for method in methods():
            if full_name(method) in wanted:
                channel = walk.channels[method.containing_service.full_name]
                answer = await call(channel, method, walk.things.request(method), world.owner())
                if answer.code != "OK" or MARKER.encode() not in answer.content:
                    missed.append((full_name(method), answer.code))
    assert missed == []


async def test_a_policy_that_is_left_open_is_found(world: World) -> None:
    """Storage once more, beside the other, where anybody may list users."""
    site = world.facility.storage
    open_one = Server(
        "tests.open_policy", "serve", environ=site.environ, ready="guidehall.datasets.v1.DatasetsService"
    )
    try:
        open_one.wait_serving()
        called = [method for method in methods() if "IdentityService" in full_name(method)]
        async with walking(world, world.personal, storage=open_one.target) as walk:
            findings, _ = await walk.as_caller(world.caller("scientist"), called)
    finally:
        open_one.stop()

    assert findings == [Finding("scientist", "/guidehall.identity.v1.IdentityService/ListUsers", "read")]
