"""Who the callers are, and what is written down about what they do."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import audit_pb2, identity_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from tests.fixtures.storage import People, Stubs, dataset_name
from tests.fixtures.trainer import refused

ADMIN, OPERATOR, SCIENTIST, VIEWER = (
    identity_pb2.ROLE_ADMIN,
    identity_pb2.ROLE_OPERATOR,
    identity_pb2.ROLE_SCIENTIST,
    identity_pb2.ROLE_VIEWER,
)


async def introspect(stubs: Stubs, secret: str) -> identity_pb2.IntrospectApiKeyResponse:
    return await stubs.identity.IntrospectApiKey(identity_pb2.IntrospectApiKeyRequest(secret=secret))


async def create_key(stubs: Stubs, user: str, **key: Any) -> identity_pb2.CreateApiKeyResponse:
    request = identity_pb2.CreateApiKeyRequest(parent=f"users/{user}", api_key=identity_pb2.ApiKey(**key))
    return await stubs.identity.CreateApiKey(request)


async def test_everybody_is_told_who_they_are(people: People) -> None:
    request = identity_pb2.WhoAmIRequest()
    job = str(uuid.uuid4())

    ada = await people.user("ada", Role.SCIENTIST, Role.OPERATOR).identity.WhoAmI(request)
    service = await people.service("gateway").identity.WhoAmI(request)
    token = await people.job(job, 1).identity.WhoAmI(request)

    assert (ada.subject, ada.kind) == (people.name("ada"), identity_pb2.PRINCIPAL_KIND_USER)
    assert list(ada.roles) == [SCIENTIST, OPERATOR]
    assert ada.default_project == "projects/default"
    assert (service.subject, service.kind) == ("gateway", identity_pb2.PRINCIPAL_KIND_SERVICE)
    assert (token.subject, token.kind) == (f"jobs/{job}", identity_pb2.PRINCIPAL_KIND_JOB)


async def test_an_administrator_keeps_users(people: People) -> None:
    admin, name = people.user("root", Role.ADMIN), people.name("eve")
    wanted = identity_pb2.User(
        display_name="Eve", email="eve@example.org", roles=[SCIENTIST], groups=["films", "films"]
    )

    created = await admin.identity.CreateUser(identity_pb2.CreateUserRequest(user_id=name, user=wanted))
    async with refused(AlreadyExists):
        await admin.identity.CreateUser(identity_pb2.CreateUserRequest(user_id=name, user=wanted))
    changed = identity_pb2.User(name=created.name, roles=[VIEWER], disabled=True, etag=created.etag)
    updated = await admin.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=changed))
    async with refused(Aborted):
        await admin.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=changed))
    listed = await admin.identity.ListUsers(identity_pb2.ListUsersRequest(page_size=1))

    assert list(created.groups) == ["films"]
    assert (list(updated.roles), updated.disabled, updated.email) == ([VIEWER], True, "")
    assert listed.users[0] == updated
    eve = people.user("eve")
    assert await eve.identity.GetUser(identity_pb2.GetUserRequest(name=created.name)) == updated
    for wrong in ({"roles": [9]}, {"email": "x" * 400}, {"display_name": "a\x00"}):
        async with refused(InvalidArgument):
            bad = identity_pb2.User(name=created.name, **wrong)
            await admin.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=bad))


async def test_a_user_sees_nobody_else_and_changes_no_roles(people: People) -> None:
    admin, bob = people.user("root", Role.ADMIN), people.user("bob")
    created = await admin.identity.CreateUser(identity_pb2.CreateUserRequest(user_id=people.name("eve")))

    async with refused(NotFound):
        await bob.identity.GetUser(identity_pb2.GetUserRequest(name=created.name))
    async with refused(PermissionDenied):
        await bob.identity.ListUsers(identity_pb2.ListUsersRequest())
    async with refused(PermissionDenied):
        myself = identity_pb2.User(name=f"users/{people.name('bob')}", roles=[ADMIN])
        await bob.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=myself))
    async with refused(PermissionDenied):
        await bob.identity.CreateUser(identity_pb2.CreateUserRequest(user_id="x"))


async def test_a_key_speaks_for_its_user_until_it_is_revoked(people: People) -> None:
    ada, user, gateway = people.user(), people.name("ada"), people.service("gateway")

    made = await create_key(ada, user, display_name="beamline")
    good = await introspect(gateway, made.secret)
    listed = await ada.identity.ListApiKeys(identity_pb2.ListApiKeysRequest(parent=f"users/{user}"))
    revoked = await ada.identity.RevokeApiKey(identity_pb2.RevokeApiKeyRequest(name=made.api_key.name))
    again = await ada.identity.RevokeApiKey(identity_pb2.RevokeApiKeyRequest(name=made.api_key.name))

    assert made.secret.startswith("gh_")
    assert len(made.secret) == 46
    assert made.secret.startswith(made.api_key.prefix)
    assert good.active
    assert (good.principal.subject, list(good.principal.roles)) == (user, [SCIENTIST])
    assert good.api_key == made.api_key.name
    (shown,) = listed.api_keys
    assert shown.HasField("last_use_time")
    assert made.secret not in str(listed)
    assert revoked.HasField("revoke_time")
    assert again == revoked
    for secret in (made.secret, made.secret[:-1], "gh_", "", "x" * 60):
        assert not (await introspect(gateway, secret)).active
    stored = await people.site.fetch(
        "SELECT k::text AS row FROM identity.api_keys k WHERE user_id = $1", user
    )
    assert made.secret not in stored[0]["row"]


async def test_a_key_ends_with_its_time_and_with_its_user(people: People) -> None:
    admin, gateway, user = people.user("root", Role.ADMIN), people.service("gateway"), people.name("eve")
    created = await admin.identity.CreateUser(
        identity_pb2.CreateUserRequest(user_id=user, user=identity_pb2.User(roles=[OPERATOR]))
    )
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(seconds=1))
    short = await create_key(admin, user, expire_time=soon)
    lasting = await create_key(admin, user, roles=[OPERATOR])

    before = [(await introspect(gateway, key.secret)).active for key in (short, lasting)]
    await people.site.fetch(
        "UPDATE identity.api_keys SET expire_time = now() WHERE id = $1",
        short.api_key.name.rpartition("/")[2],
    )
    expired = (await introspect(gateway, short.secret)).active
    lower = identity_pb2.User(name=created.name, roles=[VIEWER])
    await admin.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=lower))
    demoted = await introspect(gateway, lasting.secret)
    lower.disabled = True
    await admin.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=lower))
    disabled = (await introspect(gateway, lasting.secret)).active

    assert before == [True, True]
    assert not expired
    assert demoted.active
    assert not demoted.principal.roles
    assert not disabled


async def test_a_key_gives_no_more_than_its_maker_has(people: People) -> None:
    ada, bob, user = people.user("ada"), people.user("bob"), people.name("ada")

    async with refused(PermissionDenied):
        await create_key(ada, user, roles=[ADMIN])
    async with refused(NotFound):
        await create_key(bob, user)
    async with refused(PermissionDenied):
        await create_key(people.service("gateway"), user)
    async with refused(NotFound):
        await create_key(people.user("root", Role.ADMIN), people.name("nobody"))
    async with refused(InvalidArgument):
        await create_key(ada, user, expire_time=Timestamp(seconds=1))
    for beyond_any_clock in (2**62, -(2**62), 253_402_300_800):
        async with refused(InvalidArgument) as refusal:
            await create_key(ada, user, expire_time=Timestamp(seconds=beyond_any_clock))
        assert refusal[0].violations[0].field == "api_key.expire_time"
    mine = await create_key(ada, user, roles=[VIEWER])
    async with refused(NotFound):
        await bob.identity.RevokeApiKey(identity_pb2.RevokeApiKeyRequest(name=mine.api_key.name))
    async with refused(NotFound):
        await bob.identity.ListApiKeys(identity_pb2.ListApiKeysRequest(parent=f"users/{user}"))
    async with refused(PermissionDenied):
        await introspect(ada, mine.secret)
    assert list((await introspect(people.service("gateway"), mine.secret)).principal.roles) == [VIEWER]


def event(**fields: Any) -> audit_pb2.AuditEvent:
    known = {
        "event_id": str(uuid.uuid4()),
        "service": "trainer",
        "subject": "ada",
        "kind": identity_pb2.PRINCIPAL_KIND_USER,
        "method": "/guidehall.jobs.v1.JobsService/SubmitJob",
        "resource": "projects/default/jobs/1",
        "outcome": "OK",
        "count": 1,
        "time": Timestamp(seconds=1_700_000_000),
    }
    return audit_pb2.AuditEvent(**(known | fields))


async def audited(stubs: Stubs, filter_text: str, **request: Any) -> list[audit_pb2.AuditEvent]:
    answer = await stubs.audit.ListAuditEvents(
        audit_pb2.ListAuditEventsRequest(filter=filter_text, **request)
    )
    return list(answer.events)


async def test_mutations_are_written_down_and_failures_are_not(people: People) -> None:
    ada, olga, name = people.user(), people.user("olga", Role.OPERATOR), people.name("d")
    created = await ada.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset_id=name))
    async with refused(AlreadyExists):
        await ada.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset_id=name))
    deleted = await ada.datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name=created.name))

    newest, oldest = await audited(olga, f'resource = "{dataset_name(name)}"')

    assert oldest.method == "/guidehall.datasets.v1.DatasetsService/CreateDataset"
    assert (oldest.subject, oldest.service, oldest.outcome) == (people.name("ada"), "storage", "OK")
    assert oldest.kind == identity_pb2.PRINCIPAL_KIND_USER
    assert len(oldest.trace_id) == 32
    assert (newest.etag_before, newest.etag_after) == (created.etag, deleted.etag)
    assert newest.sequence > oldest.sequence
    assert await audited(ada, f'resource = "{dataset_name(name)}"') == [newest, oldest]


async def test_services_report_each_event_once(people: People) -> None:
    trainer, olga, resource = (
        people.service("trainer"),
        people.user("olga", Role.OPERATOR),
        people.name("jobs"),
    )
    events = [event(resource=resource) for _ in range(3)]

    first = await trainer.audit.AppendAuditEvents(audit_pb2.AppendAuditEventsRequest(events=events[:2]))
    again = await trainer.audit.AppendAuditEvents(
        audit_pb2.AppendAuditEventsRequest(events=[*events, events[2]])
    )

    found = await audited(olga, f'resource = "{resource}"')
    assert [item.event_id for item in found] == [item.event_id for item in reversed(events)]
    assert again.last_sequence > first.last_sequence
    assert found[0].time == events[2].time
    for wrong in (
        {"service": "gateway"},
        {"event_id": "x"},
        {"count": 0},
        {"subject": "a\x00"},
        {"kind": 0},
    ):
        async with refused(InvalidArgument):
            await trainer.audit.AppendAuditEvents(audit_pb2.AppendAuditEventsRequest(events=[event(**wrong)]))
    async with refused(PermissionDenied):
        await people.user().audit.AppendAuditEvents(audit_pb2.AppendAuditEventsRequest(events=events))
