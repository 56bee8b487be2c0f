"""Local accounts: logging in and out, sessions, passwords, registration, and who may do what to whom."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest

from guidehall.contracts.identity.v1 import accounts_pb2, accounts_pb2_grpc, audit_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.core.auth import Role
from guidehall.core.channels import credentials_interceptors
from guidehall.core.errors import (
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    from_rpc_error,
)
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, StartFacility, facilities
from tests.fixtures.storage import eventually
from tests.fixtures.trainer import refused

PASSWORD = "correct horse battery"
CSRF = {"X-Guidehall-CSRF": "1"}
SETTINGS = {
    "ACCOUNTS__REGISTRATION": "invite",
    # Every test comes from one address.
    "ACCOUNTS__MAX_ADDRESS_ATTEMPTS": 10_000,
    "ACCOUNTS__MAX_ACCOUNT_ATTEMPTS": 3,
    "ACCOUNTS__REFRESH_GRACE_SECONDS": 0,
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("facility")) as start:
        yield start(storage=SETTINGS)


@pytest.fixture
async def admin(facility: Facility) -> AsyncIterator[httpx.AsyncClient]:
    async with facility.admin() as client:
        yield client


@pytest.fixture
async def anybody(facility: Facility) -> AsyncIterator[httpx.AsyncClient]:
    async with facility.http() as client:
        yield client


async def account(admin: httpx.AsyncClient, role: str = "SCIENTIST", **more: Any) -> str:
    """A user with the usual password; the name."""
    user = f"ada-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
    body = {"user_id": user, "roles": [role], **more}
    made = await admin.post("/api/v1/users", json=body)
    assert made.status_code == 201, made.text
    done = await admin.post(f"/api/v1/users/{user}:set-password", json={"password": PASSWORD})
    assert done.status_code == 200, done.text
    return user


async def log_in(client: httpx.AsyncClient, user: str, password: str = PASSWORD) -> httpx.Response:
    return await client.post("/auth/login", json={"user": user, "password": password})


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/auth/refresh", json={"refresh_token": token})


@dataclass
class Told:
    """A refusal without what differs between two calls."""

    status: int
    body: dict[str, Any]

    @classmethod
    def by(cls, answer: httpx.Response) -> Told:
        return cls(answer.status_code, answer.json() | {"trace_id": ""})


@asynccontextmanager
async def calling(target: str, credential: str) -> AsyncIterator[grpc.aio.Channel]:
    carry = credentials_interceptors(lambda: credential)
    async with grpc.aio.insecure_channel(target, interceptors=carry) as channel:
        yield channel


async def audited(facility: Facility, filter_text: str) -> list[audit_pb2.AuditEvent]:
    async with facility.storage.user("root", Role.OPERATOR) as olga:
        request = audit_pb2.ListAuditEventsRequest(filter=filter_text)
        return list((await olga.audit.ListAuditEvents(request)).events)


async def test_a_session_counts_at_every_door_until_it_ends(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user = await account(admin, groups=["films"])

    answer = await log_in(anybody, user)

    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    assert "set-cookie" not in answer.headers
    body = answer.json()
    assert body["session"]["method"] == "password"
    assert body["session"]["address"] == "127.0.0.1"
    access = body["access_token"]
    async with facility.http(access) as http:
        who = (await http.get("/api/v1/whoami")).json()
        session = (await http.get("/auth/session")).json()
        listed = (await http.get(f"/api/v1/users/{user}/sessions")).json()["sessions"]
    assert (who["subject"], who["roles"], who["groups"]) == (user, ["SCIENTIST"], ["films"])
    assert session["credential"] == body["session"]["name"]
    assert [item["name"] for item in listed] == [body["session"]["name"]]
    async with calling(facility.trainer.target, access) as channel:
        await jobs_pb2_grpc.JobsServiceStub(channel).ListJobs(jobs_pb2.ListJobsRequest(), timeout=10)

    out = await anybody.post("/auth/logout", json={"refresh_token": body["refresh_token"]})

    assert out.status_code == 204
    ended = await refresh(anybody, body["refresh_token"])
    assert (ended.status_code, ended.json()["reason"]) == (401, "SESSION_ENDED")
    (event,) = await audited(facility, f'subject = "{user}" AND resource = "{body["session"]["name"]}"')
    assert event.method.endswith("/LogIn")
    assert event.actor == "gateway"


async def test_nobody_learns_who_has_an_account(admin: httpx.AsyncClient, anybody: httpx.AsyncClient) -> None:
    user, disabled = await account(admin), await account(admin)
    without = f"eve-{uuid.uuid4().hex[:6]}"
    await admin.post("/api/v1/users", json={"user_id": without, "roles": ["SCIENTIST"]})
    await admin.patch(f"/api/v1/users/{disabled}", json={"disabled": True})

    told, seconds = [], []
    for name, password in (
        (user, "wrong password"),
        (disabled, PASSWORD),
        (without, PASSWORD),
        (f"nobody-{uuid.uuid4().hex[:6]}", PASSWORD),
        ("no name\x01 at all", PASSWORD),
    ):
        begun = time.monotonic()
        told.append(Told.by(await log_in(anybody, name, password)))
        seconds.append(time.monotonic() - begun)

    assert told[0].status == 401
    assert told[0].body["reason"] == "BAD_LOG_IN"
    assert all(other == told[0] for other in told)
    # The hash takes the time, and it is made for everybody.
    assert min(seconds) > max(seconds) / 10
    assert PASSWORD not in json.dumps([item.body for item in told])


async def test_attempts_are_throttled_for_accounts_and_for_names_that_nobody_has(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user, other = await account(admin), await account(admin)
    assert (await log_in(anybody, user)).status_code == 200

    for name in (user, f"nobody-{uuid.uuid4().hex[:6]}"):
        statuses = [(await log_in(anybody, name, "wrong")).status_code for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        right = await log_in(anybody, name)
        assert (right.status_code, right.json()["reason"]) == (429, "TOO_MANY_ATTEMPTS")
        assert 0 < int(right.headers["retry-after"]) <= 900
    assert (await log_in(anybody, other)).status_code == 200
    (event,) = await audited(facility, f'resource = "users/{user}" AND outcome = "RESOURCE_EXHAUSTED"')
    assert event.method.endswith("/LogIn")

    # Whoever comes many times at once is counted as often.
    third = await account(admin)
    answers = await asyncio.gather(*(log_in(anybody, third, "wrong") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [401] * 3 + [429] * 5


async def test_an_address_is_throttled_whatever_names_it_tries(facility: Facility) -> None:
    process = facility.storage.start(ACCOUNTS__MAX_ADDRESS_ATTEMPTS=2)
    async with facility.storage.caller("gateway", "gateway", "service", target=process.target) as gateway:

        async def attempt(address: str) -> None:
            origin = accounts_pb2.Origin(address=address, client="test")
            request = accounts_pb2.LogInRequest(user_id=uuid.uuid4().hex, password="x", origin=origin)
            await accounts_pb2_grpc.AccountsServiceStub(gateway.channel).LogIn(request, timeout=30)

        for _ in range(2):
            async with refused(Unauthenticated):
                await attempt("192.0.2.1")
        async with refused(ResourceExhausted) as refusal:
            await attempt("192.0.2.1")
        async with refused(Unauthenticated):
            await attempt("192.0.2.2")
    assert refusal[0].retry_after_seconds


async def test_a_refresh_token_that_was_used_ends_the_session(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user = await account(admin)
    first = (await log_in(anybody, user)).json()
    second = (await refresh(anybody, first["refresh_token"])).json()
    third = (await refresh(anybody, second["refresh_token"])).json()
    assert len({first["refresh_token"], second["refresh_token"], third["refresh_token"]}) == 3
    assert third["session"]["name"] == first["session"]["name"]

    stolen = await refresh(anybody, first["refresh_token"])

    assert (stolen.status_code, stolen.json()["reason"]) == (401, "SESSION_ENDED")
    assert (await refresh(anybody, third["refresh_token"])).status_code == 401
    (event,) = await audited(
        facility, f'resource = "{first["session"]["name"]}" AND outcome = "UNAUTHENTICATED"'
    )
    assert event.method.endswith("/RefreshSession")
    for wrong in ("", "ghr_", first["access_token"], first["refresh_token"][:-1]):
        assert (await refresh(anybody, wrong)).status_code == 401
    stored = await facility.storage.fetch(
        "SELECT s::text || t::text AS row FROM identity.sessions s JOIN identity.refresh_tokens t "
        "ON t.session_id = s.id WHERE s.user_id = $1",
        user,
    )
    assert len(stored) == 3
    assert not any(third["refresh_token"] in row["row"] for row in stored)


async def test_a_refresh_that_comes_twice_at_once_is_no_theft(
    facility: Facility, anybody: httpx.AsyncClient
) -> None:
    process = facility.storage.start(ACCOUNTS__REFRESH_GRACE_SECONDS=60)
    async with facility.admin() as admin:
        user = await account(admin)
    first = (await log_in(anybody, user)).json()["refresh_token"]
    async with facility.storage.caller("gateway", "gateway", "service", target=process.target) as gateway:
        stub: Any = accounts_pb2_grpc.AccountsServiceStub(gateway.channel)
        request = accounts_pb2.RefreshSessionRequest(refresh_token=first)
        answers = await asyncio.gather(*(stub.RefreshSession(request, timeout=10) for _ in range(3)))

        assert all(answer.access_token for answer in answers)
        # One alone has the next one: there is one session, not three.
        (following,) = [answer.refresh_token for answer in answers if answer.refresh_token]
        await stub.RefreshSession(accounts_pb2.RefreshSessionRequest(refresh_token=following), timeout=10)


async def test_a_password_is_changed_by_who_knows_it_and_every_session_ends(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user, new = await account(admin), "another good password"
    other = (await log_in(anybody, user)).json()
    mine = (await log_in(anybody, user)).json()
    async with facility.http(mine["access_token"]) as http:

        async def change(current: str, wanted: str) -> httpx.Response:
            return await http.post("/auth/password", json={"current": current, "new": wanted})

        wrong = await change("not it", new)
        short = await change(PASSWORD, "too short")
        named = await change(PASSWORD, user.upper())
        changed = await change(PASSWORD, new)
    assert (wrong.status_code, wrong.json()["reason"]) == (403, "WRONG_PASSWORD")
    assert (short.status_code, short.json()["violations"][0]["field"]) == (400, "new_password")
    assert "9 characters" in short.json()["detail"]
    assert "too short" not in short.text
    assert named.status_code == 400
    assert changed.status_code == 200
    for ended in (other, mine):
        assert (await refresh(anybody, ended["refresh_token"])).status_code == 401
    assert (await refresh(anybody, changed.json()["refresh_token"])).status_code == 200
    assert (await log_in(anybody, user)).status_code == 401
    assert (await log_in(anybody, user, new)).status_code == 200
    assert (await anybody.post("/auth/password", json={"current": new, "new": PASSWORD})).status_code == 401


async def test_a_disabled_user_is_out_and_does_not_come_back_by_an_old_session(
    admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user = await account(admin)
    session = (await log_in(anybody, user)).json()
    disabled = await admin.patch(f"/api/v1/users/{user}", json={"disabled": True})
    assert (disabled.json()["disabled"], disabled.json()["roles"]) == (True, ["SCIENTIST"])

    assert (await refresh(anybody, session["refresh_token"])).status_code == 401
    assert (await log_in(anybody, user)).status_code == 401
    await admin.patch(f"/api/v1/users/{user}", json={"disabled": False})

    assert (await refresh(anybody, session["refresh_token"])).status_code == 401
    assert (await log_in(anybody, user)).status_code == 200


async def test_new_roles_count_with_the_next_refresh(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user = await account(admin)
    session = (await log_in(anybody, user)).json()
    await admin.patch(f"/api/v1/users/{user}", json={"roles": ["operator"]})
    async with facility.http(
        (await refresh(anybody, session["refresh_token"])).json()["access_token"]
    ) as http:
        assert (await http.get("/api/v1/whoami")).json()["roles"] == ["OPERATOR"]


async def test_sessions_are_ended_by_their_user_and_by_administrators_alone(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user, operator = await account(admin), await account(admin, "OPERATOR")
    sessions = [(await log_in(anybody, user)).json() for _ in range(3)]
    path = f"/api/v1/users/{user}/sessions"
    first = f"{path}/{sessions[0]['session']['name'].rpartition('/')[2]}:revoke"
    olga = (await log_in(anybody, operator)).json()["access_token"]
    async with facility.http(olga) as other, facility.http(sessions[1]["access_token"]) as mine:
        for refusal in (await other.get(path), await other.post(first), await other.post(f"{path}:revoke")):
            assert refusal.status_code == 404
        revoked = [(await mine.post(first)).json() for _ in range(2)]
        assert revoked[0] == revoked[1]
        assert revoked[0]["revoke_time"]
        assert (await refresh(anybody, sessions[0]["refresh_token"])).status_code == 401
        assert (await mine.post(f"{path}/{uuid.uuid4()}:revoke")).status_code == 404
        assert (await mine.post(f"{path}/nothing:revoke")).status_code == 404
    assert (await admin.post(f"{path}:revoke")).json() == {"revoked": 2}
    assert (await refresh(anybody, sessions[1]["refresh_token"])).status_code == 401
    assert (await admin.post("/api/v1/users/nobody-here/sessions:revoke")).status_code == 404


async def test_who_may_do_what_to_users(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    scientist, operator = await account(admin), await account(admin, "OPERATOR")

    async def client(user: str) -> httpx.AsyncClient:
        return facility.http((await log_in(anybody, user)).json()["access_token"])

    asked = [
        ("GET", "/api/v1/users", None),
        ("GET", f"/api/v1/users/{operator}", None),
        ("GET", f"/api/v1/users/{operator}/keys", None),
        ("POST", "/api/v1/users", {"user_id": "x"}),
        ("PATCH", f"/api/v1/users/{scientist}", {"roles": ["ADMIN"]}),
        ("POST", f"/api/v1/users/{scientist}:set-password", {"password": PASSWORD}),
        ("POST", "/api/v1/invitations", {"roles": ["ADMIN"]}),
        ("GET", "/api/v1/invitations", None),
        ("DELETE", "/api/v1/invitations/x", None),
    ]
    statuses = {}
    for name in (scientist, operator):
        async with await client(name) as http:
            statuses[name] = [
                (await http.request(method, path, json=body)).status_code for method, path, body in asked
            ]
            own = [
                (await http.get(f"/api/v1/users/{name}")).status_code,
                (await http.post(f"/api/v1/users/{name}/keys", json={"roles": ["admin"]})).status_code,
                (await http.post(f"/api/v1/users/{name}/keys", json={"ttl": "30d"})).status_code,
            ]
            assert own == [200, 403, 201]
    assert statuses[scientist] == [403, 404, 404, 403, 403, 403, 403, 403, 403]
    assert statuses[operator] == [200, 200, 200, 403, 403, 403, 403, 403, 403]
    for method, path, body in asked:
        assert (await anybody.request(method, path, json=body)).status_code == 401
    async with facility.storage.user("root", Role.ADMIN) as root, refused(PermissionDenied):
        request = accounts_pb2.LogInRequest(user_id=scientist, password=PASSWORD)
        await accounts_pb2_grpc.AccountsServiceStub(root.channel).LogIn(request)


async def test_keys_over_http(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user, other = await account(admin), await account(admin)
    path = f"/api/v1/users/{user}/keys"
    async with facility.http((await log_in(anybody, user)).json()["access_token"]) as http:
        made = await http.post(path, json={"display_name": "beamline", "roles": ["VIEWER"], "ttl": 3600})
        listed = (await http.get(path)).json()["api_keys"]
        wrong = await http.post(path, json={"roles": ["KING"]})
        key = f"{path}/{made.json()['api_key']['name'].rpartition('/')[2]}"
        async with facility.http(made.json()["secret"]) as by_key:
            assert (await by_key.get("/api/v1/whoami")).json()["roles"] == ["VIEWER"]
            credential = (await by_key.get("/auth/session")).json()["credential"]
        async with facility.http((await log_in(anybody, other)).json()["access_token"]) as eve:
            assert (await eve.get(path)).status_code == 404
            assert (await eve.post(f"{key}:revoke")).status_code == 404
        revoked = await http.post(f"{key}:revoke")
    assert (made.status_code, wrong.status_code) == (201, 400)
    assert wrong.json()["violations"][0]["field"] == "roles[0]"
    assert [item["display_name"] for item in listed] == ["beamline"]
    assert "secret" not in listed[0]
    assert credential == made.json()["api_key"]["name"]
    assert revoked.json()["revoke_time"]


async def test_who_registers_gets_what_the_invitation_says_and_chooses_nothing(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    async def register(user: str, **more: Any) -> httpx.Response:
        return await anybody.post("/auth/register", json={"user": user, "password": PASSWORD, **more})

    made = (await admin.post("/api/v1/invitations", json={"roles": ["OPERATOR"], "groups": ["films"]})).json()
    plain = (await admin.post("/api/v1/invitations")).json()
    user, other = f"eve-{uuid.uuid4().hex[:6]}", f"bob-{uuid.uuid4().hex[:6]}"

    assert (await register(user)).json()["reason"] == "BAD_INVITATION"
    assert (await register(user, invitation="ghi_wrong")).status_code == 403
    assert (await register(user, invitation=plain["secret"], roles=["ADMIN"])).status_code == 400
    for reserved in ("trainer", "local", "Eve", "e" * 64):
        assert (await register(reserved, invitation=plain["secret"])).status_code == 400
    registered = await register(user, invitation=made["secret"], display_name="Eve")
    assert (registered.status_code, registered.json()["roles"]) == (201, ["OPERATOR"])
    assert registered.json()["groups"] == ["films"]
    unused = (await admin.get("/api/v1/invitations")).json()["invitations"]
    assert plain["invitation"] in unused
    assert made["invitation"] not in unused
    # It is used up, and a name that is taken uses up none.
    assert (await register(other, invitation=made["secret"])).status_code == 403
    assert (await register(user, invitation=plain["secret"])).status_code == 409
    assert (await register(other, invitation=plain["secret"])).json()["roles"] == ["SCIENTIST"]
    assert (await log_in(anybody, other)).status_code == 200
    taken_back = (await admin.post("/api/v1/invitations")).json()
    name = taken_back["invitation"]["name"]
    assert [(await admin.delete(f"/api/v1/{name}")).status_code for _ in range(2)] == [200, 404]
    late = await register(f"max-{uuid.uuid4().hex[:6]}", invitation=taken_back["secret"])
    assert late.json()["reason"] == "BAD_INVITATION"
    assert (await anybody.get("/auth/methods")).json() == {
        "mode": "token", "methods": ["password"], "providers": [], "registration": "invite", "endpoints": {},
    }  # fmt: skip


async def test_an_invitation_ends_in_time_to_come_and_is_good_no_longer(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    token = facility.token("root", Role.ADMIN)
    async with calling(facility.storage.target, token) as channel:
        stub: Any = accounts_pb2_grpc.AccountsServiceStub(channel)
        for seconds_ago in (0, 3600):
            invitation = accounts_pb2.Invitation()
            invitation.expire_time.FromSeconds(int(time.time()) - seconds_ago)
            request = accounts_pb2.CreateInvitationRequest(invitation=invitation)
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.CreateInvitation(request, timeout=10)
            error = from_rpc_error(refusal.value)
            assert isinstance(error, InvalidArgument)
            assert [violation.field for violation in error.violations] == ["invitation.expire_time"]

    made = (await admin.post("/api/v1/invitations", json={"ttl": 3600})).json()
    invitation_id = made["invitation"]["name"].rpartition("/")[2]
    await facility.storage.fetch(
        "UPDATE identity.invitations SET expire_time = now() - interval '1 second' WHERE id = $1",
        uuid.UUID(invitation_id),
    )
    body = {"user": f"late-{uuid.uuid4().hex[:6]}", "password": PASSWORD, "invitation": made["secret"]}
    late = await anybody.post("/auth/register", json=body)
    assert (late.status_code, late.json()["reason"]) == (403, "BAD_INVITATION")


async def test_a_browser_keeps_its_session_in_cookies_that_no_other_site_writes_with(
    facility: Facility, admin: httpx.AsyncClient
) -> None:
    user = await account(admin)
    keys = f"/api/v1/users/{user}/keys"
    async with facility.http() as browser:
        answer = await browser.post("/auth/login", json={"user": user, "password": PASSWORD, "cookie": True})
        assert (answer.json()["access_token"], answer.json()["refresh_token"]) == ("", "")
        set_cookies = answer.headers.get_list("set-cookie")
        assert len(set_cookies) == 2
        for cookie in set_cookies:
            assert "HttpOnly" in cookie
            assert "SameSite=lax" in cookie
            assert "Secure" not in cookie
        assert ["Path=/auth" in cookie for cookie in set_cookies] == [False, True]

        assert (await browser.get("/api/v1/whoami")).json()["subject"] == user
        bare = await browser.post(keys)
        assert (bare.status_code, bare.json()["reason"]) == (403, "CSRF_HEADER_MISSING")
        foreign = await browser.post(keys, headers={**CSRF, "Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["reason"]) == (403, "CROSS_SITE")
        own = await browser.post(keys, headers={**CSRF, "Origin": facility.url})
        assert own.status_code == 201
        for path in ("/auth/refresh", "/auth/logout", "/auth/password"):
            body = {"current": PASSWORD, "new": PASSWORD + "!"} if path == "/auth/password" else None
            assert (await browser.post(path, json=body)).json()["reason"] == "CSRF_HEADER_MISSING"

        before = dict(browser.cookies)
        refreshed = await browser.post("/auth/refresh", headers=CSRF)
        assert (refreshed.status_code, refreshed.json()["refresh_token"]) == (200, "")
        assert dict(browser.cookies)["guidehall_refresh"] != before["guidehall_refresh"]
        assert (await browser.get("/auth/session")).json()["credential"] == refreshed.json()["session"][
            "name"
        ]

        out = await browser.post("/auth/logout", headers=CSRF)
        assert out.status_code == 204
        assert not dict(browser.cookies)
        assert (await browser.get("/api/v1/whoami")).status_code == 401
        assert (await browser.post("/auth/refresh", headers=CSRF)).json()["reason"] == "NO_SESSION"


async def test_behind_tls_cookies_are_for_tls_alone(facility: Facility, admin: httpx.AsyncClient) -> None:
    user = await account(admin)
    async with facility.http(**{"X-Forwarded-Proto": "https"}) as browser:
        answer = await browser.post("/auth/login", json={"user": user, "password": PASSWORD, "cookie": True})
    assert all("Secure" in cookie for cookie in answer.headers.get_list("set-cookie"))


async def test_bodies_that_are_wrong_are_refused_without_their_secrets(anybody: httpx.AsyncClient) -> None:
    for path, body in (
        ("login", {"user": "a", "password": 271828182}),
        ("login", {"user": "a", "password": "271828182", "more": 1}),
        ("password", {"current": 271828182, "new": "x"}),
        ("register", {"user": "a", "password": 271828182}),
        ("refresh", {"refresh_token": 271828182}),
    ):
        answer = await anybody.post(f"/auth/{path}", json=body)
        assert answer.status_code in (400, 401)
        assert "271828182" not in answer.text


async def test_sessions_and_attempts_that_count_no_longer_are_forgotten(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user = await account(admin)
    await log_in(anybody, user)
    fetch = facility.storage.fetch
    await fetch(
        "UPDATE identity.sessions SET expire_time = now() - interval '8 days' WHERE user_id = $1", user
    )
    await fetch("UPDATE identity.attempts SET since = since - interval '1 hour'")

    async def forgotten() -> bool:
        rows = await fetch(
            "SELECT (SELECT count(*) FROM identity.sessions WHERE user_id = $1) + "
            "(SELECT count(*) FROM identity.attempts) AS left",
            user,
        )
        return bool(rows[0]["left"] == 0)

    await eventually(forgotten)


async def test_nothing_secret_is_logged(
    facility: Facility, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    user = await account(admin)
    tokens = (await log_in(anybody, user)).json()
    await log_in(anybody, user, "a wrong password")
    await refresh(anybody, tokens["refresh_token"])
    secrets = (PASSWORD, "a wrong password", tokens["refresh_token"], tokens["access_token"])
    logs = [*facility.gateway.log, *facility.storage.processes[0].log, *facility.trainer.processes[0].log]
    assert not any(secret in line for line in logs for secret in secrets)


async def test_accounts_are_for_token_mode(start_facility: StartFacility) -> None:
    facility = start_facility("proxy", gateway={"AUTH__PROXY_SECRET": "known"})
    async with facility.http() as http:
        answer = await log_in(http, "ada")
        methods = (await http.get("/auth/methods")).json()
    assert (answer.status_code, answer.json()["reason"]) == (400, "NO_ACCOUNTS")
    assert (methods["mode"], methods["methods"]) == ("proxy", [])
