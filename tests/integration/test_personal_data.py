"""All that is kept about a person: told in one piece, and erased, whatever dies meanwhile."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import audit_pb2, groups_pb2, identity_pb2, personal_data_pb2
from guidehall.contracts.identity.v1.groups_pb2_grpc import GroupsServiceStub
from guidehall.contracts.identity.v1.personal_data_pb2_grpc import PersonalDataServiceStub
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import history_pb2, staging_pb2
from guidehall.core import audit_chain
from guidehall.core.auth import Role
from guidehall.core.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from services.storage import job_logs
from tests.fixtures.storage import (
    StorageSite,
    Stubs,
    dataset_name,
    eventually,
    job_name,
    model_name,
    upload,
    weights,
)
from tests.fixtures.trainer import refused

pytestmark = pytest.mark.slow

_SETTINGS = {"ACCOUNTS__ERASE_AFTER_SECONDS": 0.1, "AUDIT__SEAL_SECONDS": 0.2}
_STEPS = ("history", "datasets", "models", "results", "requests", "name")


def stub(stubs: Stubs) -> Any:
    return PersonalDataServiceStub(stubs.channel)


async def make_things(site: StorageSite, user: str) -> None:
    """An account with a key, data, a model and a notebook."""
    async with site.user("root", Role.ADMIN) as root:
        profile = identity_pb2.User(
            display_name="Ada L.", email=f"{user}@example.org", roles=[identity_pb2.ROLE_SCIENTIST]
        )
        await root.identity.CreateUser(identity_pb2.CreateUserRequest(user_id=user, user=profile))
    async with site.user(user) as person:
        await person.identity.CreateApiKey(identity_pb2.CreateApiKeyRequest(parent=f"users/{user}"))
        await person.upload(f"{user}-data", b"1 2 3\n" * 4)
        await person.publish(f"{user}-model", weights())
        entry = history_pb2.HistoryEntry(display_name="first run")
        request = history_pb2.CreateHistoryEntryRequest(parent=f"users/{user}", entry=entry)
        await person.history.CreateHistoryEntry(request)
    # And the log of a job that failed.
    job = str(uuid.uuid4())
    async with site.job(job, 1) as attempt, site.service("trainer") as trainer:
        await attempt.stage(job, 1, "log", job_logs.NAME, b"it broke\n")
        ended = staging_pb2.DiscardRequest(job=job_name(job), job_ended=True, log_owner=user)
        await trainer.staging.Discard(ended)


async def exported(stubs: Stubs, user: str) -> list[dict[str, Any]]:
    request = personal_data_pb2.ExportPersonalDataRequest(name=f"users/{user}")
    return [
        json.loads(line) async for answer in stub(stubs).ExportPersonalData(request) for line in answer.lines
    ]


async def erase(stubs: Stubs, user: str, heir: str = "") -> personal_data_pb2.Erasure:
    request = personal_data_pb2.ErasePersonRequest(
        name=f"users/{user}", hand_over_to=f"users/{heir}" if heir else ""
    )
    return await stub(stubs).ErasePerson(request)


async def trainers_part(site: StorageSite, name: str) -> None:
    """What the trainer says when its step is done, once its turn has come."""
    async with site.service("trainer") as trainer:
        waiting = personal_data_pb2.ListErasuresRequest(waiting_for_caller=True)

        async def its_turn() -> bool:
            listed = await stub(trainer).ListErasures(waiting)
            return name in [one.name for one in listed.erasures]

        await eventually(its_turn)
        request = personal_data_pb2.CompleteErasureStepRequest(name=name)
        first = await stub(trainer).CompleteErasureStep(request)
        again = await stub(trainer).CompleteErasureStep(request)
        assert "jobs" in first.steps_done
        assert set(first.steps_done) <= set(again.steps_done)


async def done(site: StorageSite, name: str) -> personal_data_pb2.Erasure:
    async with site.user("root", Role.ADMIN) as root:
        found = personal_data_pb2.Erasure()

        async def is_done() -> bool:
            nonlocal found
            found = await stub(root).GetErasure(personal_data_pb2.GetErasureRequest(name=name))
            return found.HasField("done_time")

        await eventually(is_done, lambda: str(found), seconds=60)
        return found


async def traces(site: StorageSite, text: str) -> list[str]:
    """The columns of all tables that hold a text."""
    columns = await site.fetch(
        "SELECT table_schema AS s, table_name AS t FROM information_schema.tables"
        " WHERE table_schema IN ('storage', 'identity', 'audit') AND table_type = 'BASE TABLE'"
    )
    found = []
    for row in columns:
        table = f"{row['s']}.{row['t']}"
        sql = f"SELECT count(*) AS n FROM {table} AS r WHERE to_jsonb(r)::text LIKE $1"  # noqa: S608
        if (await site.fetch(sql, f"%{text}%"))[0]["n"]:
            found.append(table)
    return found


async def chain_holds(site: StorageSite) -> None:
    async with site.user("olga", Role.OPERATOR) as olga:
        call = olga.audit.ExportAuditEvents(audit_pb2.ExportAuditEventsRequest())
        audit_chain.verify([line async for answer in call for line in answer.lines])


async def test_a_person_is_told_everything_and_nothing_secret(storage: StorageSite) -> None:
    user = f"ada{uuid.uuid4().hex[:8]}"
    await make_things(storage, user)
    async with storage.user(user) as ada, storage.user("root", Role.ADMIN) as root:
        told = await exported(ada, user)
        assert [line["type"] for line in await exported(root, user)] == [line["type"] for line in told]
        by_type = {line["type"]: line for line in told}
        assert {"account", "api_key", "dataset", "model", "model_version", "history_entry"} <= set(by_type)
        assert by_type["job_log"]["size_bytes"] == len(b"it broke\n")
        assert by_type["account"]["email"] == f"{user}@example.org"
        assert by_type["dataset"]["versions"][0]["filename"] == "curves.txt"
        assert by_type["audit_event"]["subject"] == user
        for secret in ("secret_sha256", "hash", "object_key"):
            assert not any(secret in line for line in told)
    async with storage.user("eve") as eve, storage.user("olga", Role.OPERATOR) as olga:
        for other in (eve, olga):
            async with refused(NotFound):
                await exported(other, user)
        async with refused(PermissionDenied):
            await erase(olga, user)


async def test_what_was_theirs_is_deleted_and_the_chain_holds(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage(**_SETTINGS)
    site.start()
    user = f"ada{uuid.uuid4().hex[:8]}"
    await make_things(site, user)
    async with site.user("root", Role.ADMIN) as root:
        for wrong, heir, kind in (
            ("nobody", "", NotFound),
            ("root", "", FailedPrecondition),
            (user, "nobody", InvalidArgument),
            (user, user, InvalidArgument),
        ):
            async with refused(kind):
                await erase(root, wrong, heir)
        begun = await erase(root, user)
        assert (await erase(root, user)).name == begun.name
        assert begun.steps_done[:1] == ["account"]
        # Not by a call: it would be counted, and so named in the log when its minute is over.
        account = "SELECT disabled, email, display_name FROM identity.users WHERE id = $1"
        assert [tuple(row.values()) for row in await site.fetch(account, user)] == [(True, "", "")]
        await trainers_part(site, begun.name)
        ended = await done(site, begun.name)

        assert (ended.user, list(ended.steps_left)) == ("", [])
        assert await site.fetch(account, user) == []
        assert await traces(site, f"{user}@") == []
        # The name of what was told to the bus is told and then forgotten, too.
        assert set(await traces(site, f'"{user}"')) == set()
        about = f'subject = "{ended.pseudonym}"'
        listed = await root.audit.ListAuditEvents(audit_pb2.ListAuditEventsRequest(filter=about))
        assert len(listed.events) >= 4
        assert {event.subject for event in listed.events} == {ended.pseudonym}
    await chain_holds(site)
    await site.without_leaks()


async def test_what_was_theirs_goes_to_somebody_else(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**_SETTINGS)
    site.start()
    user, heir = (f"{name}{uuid.uuid4().hex[:8]}" for name in ("ada", "bob"))
    await make_things(site, user)
    async with site.user("root", Role.ADMIN) as root, site.user(heir) as bob:
        await root.identity.CreateUser(identity_pb2.CreateUserRequest(user_id=heir))
        begun = await erase(root, user, heir)
        for refused_one in (user, heir):
            async with refused(FailedPrecondition):
                await erase(root, refused_one)
        await trainers_part(site, begun.name)
        await done(site, begun.name)

        data = datasets_pb2.GetDatasetRequest(name=dataset_name(f"{user}-data"))
        model = models_pb2.GetModelRequest(name=model_name(f"{user}-model"))
        assert (await bob.datasets.GetDataset(data)).owner == heir
        assert (await bob.models.GetModel(model)).owner == heir
        logs = await site.fetch("SELECT owner FROM storage.job_logs WHERE owner = ANY($1)", [user, heir])
        assert [row["owner"] for row in logs] == [heir]
        assert await traces(site, f'"{user}"') == []


async def test_what_is_a_groups_stays_and_nothing_is_shared_with_the_name_any_more(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage(**_SETTINGS)
    site.start()
    user, group = f"ada{uuid.uuid4().hex[:8]}", f"film{uuid.uuid4().hex[:8]}"
    await make_things(site, user)
    async with (
        site.user("root", Role.ADMIN) as root,
        site.user(user, groups=[group], writable_groups=[group]) as ada,
        site.user("bob", groups=[group], writable_groups=[group]) as bob,
    ):
        groups = GroupsServiceStub(root.channel)
        await groups.CreateGroup(groups_pb2.CreateGroupRequest(group_id=group))
        member = groups_pb2.GroupMember(user=f"users/{user}", role=identity_pb2.GROUP_ROLE_MEMBER)
        await groups.SetGroupMember(groups_pb2.SetGroupMemberRequest(parent=f"groups/{group}", member=member))
        theirs = f"projects/group.{group}/datasets/common"
        await ada.datasets.UploadDatasetVersion(upload("common", b"1 2 3\n", parent=theirs))
        await bob.upload(f"{group}-data", b"1 2 3\n")
        shared = datasets_pb2.ShareDatasetRequest(
            name=dataset_name(f"{group}-data"), add=[f"user:{user}", "user:carol"]
        )
        await bob.datasets.ShareDataset(shared)
        told = [line for line in await exported(ada, user) if line["type"] == "membership"]
        assert told == [{"type": "membership", "group": group, "role": "MEMBER"}]

        begun = await erase(root, user)
        listed = groups_pb2.ListGroupMembersRequest(parent=f"groups/{group}")
        assert list((await groups.ListGroupMembers(listed)).members) == []
        await trainers_part(site, begun.name)
        ended = await done(site, begun.name)

        kept = await bob.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=theirs))
        assert kept.owner == ended.pseudonym
        mine = await bob.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=shared.name))
        assert list(mine.readers) == ["user:carol"]
        assert await traces(site, f'"{user}"') == []


async def test_killed_after_each_step_it_goes_on(
    own_storage: Callable[..., StorageSite], tmp_path: Path
) -> None:
    faults = tmp_path / "faults"
    (faults / "armed").mkdir(parents=True)
    faults.chmod(0o700)
    site = own_storage(**_SETTINGS)
    site.environ["GUIDEHALL_FAULTS"] = str(faults)
    site.start()
    user = f"ada{uuid.uuid4().hex[:8]}"
    await make_things(site, user)
    async with site.user("root", Role.ADMIN) as root:
        begun = await erase(root, user)
    # In the middle of each step's transaction: the first that a process comes to, then always the second.
    armed = faults / "armed" / "storage.erasure.stepped"
    armed.write_text("kill 1")
    await trainers_part(site, begun.name)
    for left in range(len(_STEPS), 0, -1):
        assert site.processes.pop().wait() == -9
        if left > 1:
            armed.write_text("kill 2")
        site.start()
    await done(site, begun.name)

    assert await traces(site, f'"{user}"') == []
    await chain_holds(site)
