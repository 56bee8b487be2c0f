"""What each user keeps: history and upload roles."""

from __future__ import annotations

import re
import uuid
from typing import Any

from google.protobuf import json_format

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.results.v1 import history_pb2
from guidehall.core.errors import Aborted, InvalidArgument, NotFound
from tests.fixtures.storage import People, Stubs, dataset_name, model_name
from tests.fixtures.trainer import refused

RESULT = {
    "model_id": "film",
    "metrics": {"mse": 0.5},
    "nr": {"q": [0.1] * 400},
    "short": [1, 2, 3],
    "rows": [[0.5] * 50, [1]],
}


async def create(stubs: Stubs, user: str, name: str = "", **more: Any) -> history_pb2.HistoryEntry:
    request = history_pb2.CreateHistoryEntryRequest(parent=f"users/{user}", **more)
    request.entry.display_name = name
    request.entry.params.update({"layers": [{"name": "air"}]})
    request.entry.result.update(RESULT)
    return await stubs.history.CreateHistoryEntry(request)


async def test_a_run_is_kept_listed_renamed_and_forgotten(people: People) -> None:
    ada, user = people.user(), people.name("ada")

    first = await create(ada, user, "First film")
    second = await create(ada, user)
    listed = await ada.history.ListHistoryEntries(
        history_pb2.ListHistoryEntriesRequest(parent=f"users/{user}")
    )
    whole = await ada.history.GetHistoryEntry(history_pb2.GetHistoryEntryRequest(name=first.name))

    assert re.fullmatch(rf"users/{user}/history/[0-9a-f]{{24}}", first.name)
    assert whole == first
    assert json_format.MessageToDict(whole.result) == RESULT
    assert [entry.name for entry in listed.entries] == [second.name, first.name]
    summary = json_format.MessageToDict(listed.entries[0].result)
    assert summary == {"model_id": "film", "metrics": {"mse": 0.5}, "short": [1, 2, 3], "rows": [[1]]}

    renamed = await ada.history.UpdateHistoryEntry(
        history_pb2.UpdateHistoryEntryRequest(name=first.name, display_name="Å film")
    )
    found = await ada.history.ListHistoryEntries(
        history_pb2.ListHistoryEntriesRequest(parent=f"users/{user}", filter='display_name : "FILM"')
    )
    await ada.history.DeleteHistoryEntry(history_pb2.DeleteHistoryEntryRequest(name=second.name))

    assert renamed.display_name == "Å film"
    assert renamed.update_time.ToNanoseconds() > first.update_time.ToNanoseconds()
    assert [entry.name for entry in found.entries] == [first.name]
    for call, request in (
        (ada.history.GetHistoryEntry, history_pb2.GetHistoryEntryRequest(name=second.name)),
        (ada.history.DeleteHistoryEntry, history_pb2.DeleteHistoryEntryRequest(name=second.name)),
        (ada.history.UpdateHistoryEntry, history_pb2.UpdateHistoryEntryRequest(name=second.name)),
        (ada.history.GetHistoryEntry, history_pb2.GetHistoryEntryRequest(name=f"users/{user}/history/abc")),
    ):
        async with refused(NotFound):
            await call(request)


async def test_names_have_eighty_characters_at_most(people: People) -> None:
    ada, user = people.user(), people.name("ada")

    entry = await create(ada, user, "x" * 80)
    async with refused(InvalidArgument):
        await create(ada, user, "x" * 81)
    async with refused(InvalidArgument):
        await ada.history.UpdateHistoryEntry(
            history_pb2.UpdateHistoryEntryRequest(name=entry.name, display_name="x" * 81)
        )


async def test_another_users_history_is_not_there(people: People) -> None:
    ada, bob, user = people.user("ada"), people.user("bob"), people.name("ada")
    entry = await create(ada, user)

    async with refused(NotFound):
        await create(bob, user)
    for call, request in (
        (bob.history.GetHistoryEntry, history_pb2.GetHistoryEntryRequest(name=entry.name)),
        (bob.history.DeleteHistoryEntry, history_pb2.DeleteHistoryEntryRequest(name=entry.name)),
        (bob.history.UpdateHistoryEntry, history_pb2.UpdateHistoryEntryRequest(name=entry.name)),
        (bob.history.ListHistoryEntries, history_pb2.ListHistoryEntriesRequest(parent=f"users/{user}")),
    ):
        async with refused(NotFound):
            await call(request)
    assert (await ada.history.GetHistoryEntry(history_pb2.GetHistoryEntryRequest(name=entry.name))) == entry


async def test_a_repeated_request_keeps_one_run(people: People) -> None:
    ada, user, request_id = people.user(), people.name("ada"), str(uuid.uuid4())

    first = await create(ada, user, request_id=request_id)
    again = await create(ada, user, request_id=request_id)
    async with refused(InvalidArgument):
        await create(ada, user, "other", request_id=request_id)

    assert again == first
    listed = await ada.history.ListHistoryEntries(
        history_pb2.ListHistoryEntriesRequest(parent=f"users/{user}")
    )
    assert len(listed.entries) == 1


async def test_upload_roles_are_replaced_as_a_whole(people: People) -> None:
    ada, name = people.user(), f"users/{people.name('ada')}/uploadRoles"
    empty = await ada.upload_roles.GetUploadRoles(datasets_pb2.GetUploadRolesRequest(name=name))
    wanted = datasets_pb2.UploadRoles(
        name=name,
        dataset_versions={"nr_train": f"{dataset_name('d')}/versions/1"},
        model_versions={"nr_sld_model": f"{model_name('m')}/versions/latest"},
    )
    wanted.settings.update({"normalize": True})

    first = await ada.upload_roles.UpdateUploadRoles(
        datasets_pb2.UpdateUploadRolesRequest(upload_roles=wanted)
    )
    wanted.etag = first.etag
    wanted.ClearField("model_versions")
    second = await ada.upload_roles.UpdateUploadRoles(
        datasets_pb2.UpdateUploadRolesRequest(upload_roles=wanted)
    )
    async with refused(Aborted):
        await ada.upload_roles.UpdateUploadRoles(datasets_pb2.UpdateUploadRolesRequest(upload_roles=wanted))

    assert (empty.etag, dict(empty.dataset_versions), empty.HasField("update_time")) == ("", {}, False)
    assert dict(first.model_versions)
    assert dict(second.dataset_versions) == dict(wanted.dataset_versions)
    assert not second.model_versions
    assert json_format.MessageToDict(second.settings) == {"normalize": True}
    assert await ada.upload_roles.GetUploadRoles(datasets_pb2.GetUploadRolesRequest(name=name)) == second


async def test_upload_roles_belong_to_their_user(people: People) -> None:
    bob, name = people.user("bob"), f"users/{people.name('ada')}/uploadRoles"

    async with refused(NotFound):
        await bob.upload_roles.GetUploadRoles(datasets_pb2.GetUploadRolesRequest(name=name))
    async with refused(NotFound):
        await bob.upload_roles.UpdateUploadRoles(
            datasets_pb2.UpdateUploadRolesRequest(upload_roles=datasets_pb2.UploadRoles(name=name))
        )
    mine = datasets_pb2.UploadRoles(name=f"users/{people.name('bob')}/uploadRoles")
    for versions in ({"nr_train": "datasets/1"}, {"Bad Role": f"{dataset_name('d')}/versions/1"}):
        mine.ClearField("dataset_versions")
        mine.dataset_versions.update(versions)
        async with refused(InvalidArgument):
            await bob.upload_roles.UpdateUploadRoles(datasets_pb2.UpdateUploadRolesRequest(upload_roles=mine))
