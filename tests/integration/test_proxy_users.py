"""Behind an authenticating proxy: what storage keeps about a user counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from guidehall.contracts.identity.v1 import audit_pb2, identity_pb2
from guidehall.core.auth import Role
from guidehall.core.errors import PermissionDenied
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import KEEP_SECONDS, Facility, StartFacility, facilities
from tests.fixtures.storage import eventually
from tests.fixtures.trainer import refused

SETTINGS = {"AUTH__PROXY_SECRET": "known"}


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("facility")) as start:
        yield start("proxy", gateway=SETTINGS)


def through_proxy(facility: Facility, user: str, *groups: str) -> httpx.AsyncClient:
    headers = {"X-Guidehall-Proxy-Secret": "known", "X-User-ID": user, "X-User-Groups": ",".join(groups)}
    return facility.http(**headers)


async def update(facility: Facility, user: str, **changed: Any) -> None:
    async with facility.storage.user("root", Role.ADMIN) as admin:
        message = identity_pb2.User(name=f"users/{user}", **changed)
        await admin.identity.UpdateUser(identity_pb2.UpdateUserRequest(user=message))


async def test_who_is_new_is_a_scientist_and_is_recorded_once(facility: Facility) -> None:
    async with through_proxy(facility, "ann", "films") as http:
        for _ in range(3):
            who = (await http.get("/api/v1/whoami")).json()
    async with facility.storage.user("root", Role.ADMIN) as admin:
        kept = await admin.identity.GetUser(identity_pb2.GetUserRequest(name="users/ann"))
        told = await admin.audit.ListAuditEvents(
            audit_pb2.ListAuditEventsRequest(filter='resource = "users/ann"')
        )

    assert (who["subject"], who["roles"], who["groups"]) == ("ann", ["SCIENTIST"], ["films"])
    assert list(kept.roles) == [identity_pb2.ROLE_SCIENTIST]
    # The proxy says who is in a group, each time.
    assert not kept.groups
    (event,) = told.events
    assert (event.subject, event.method) == ("gateway", "/guidehall.identity.v1.IdentityService/ResolveUser")


async def test_stored_roles_and_groups_count_beside_those_of_the_proxy(facility: Facility) -> None:
    async with through_proxy(facility, "olga", "films") as http:
        assert (await http.get("/api/v1/pools/-/credentials")).status_code == 403
        await update(facility, "olga", roles=[identity_pb2.ROLE_OPERATOR], groups=["beamline"])

        async def promoted() -> bool:
            return (await http.get("/api/v1/pools/-/credentials")).status_code == 200

        await eventually(promoted, seconds=KEEP_SECONDS + 5)
        who = (await http.get("/api/v1/whoami")).json()
    assert (who["roles"], who["groups"]) == (["OPERATOR"], ["beamline", "films"])


async def test_a_disabled_user_is_refused_and_an_enabled_one_is_not(facility: Facility) -> None:
    async with through_proxy(facility, "eve") as http:
        assert (await http.get("/api/v1/jobs")).status_code == 200

        async def answers(status: int) -> bool:
            return (await http.get("/api/v1/jobs")).status_code == status

        await update(facility, "eve", roles=[identity_pb2.ROLE_SCIENTIST], disabled=True)
        await eventually(lambda: answers(401), seconds=KEEP_SECONDS + 5)
        assert (await http.get("/api/v1/jobs")).json()["reason"] == "USER_DISABLED"
        await update(facility, "eve", roles=[identity_pb2.ROLE_SCIENTIST])
        await eventually(lambda: answers(200), seconds=KEEP_SECONDS + 5)


async def test_guests_stay_guests_and_only_the_gateway_resolves_users(facility: Facility) -> None:
    async with facility.http(**{"X-Guidehall-Proxy-Secret": "known"}) as http:
        assert (await http.get("/api/v1/whoami")).json()["kind"] == "GUEST"
    request = identity_pb2.ResolveUserRequest(user_id="mallory")
    for stubs in (facility.storage.user("root", Role.ADMIN), facility.storage.service("inference")):
        async with stubs, refused(PermissionDenied):
            await stubs.identity.ResolveUser(request)


async def test_without_storage_known_users_go_on_for_their_time(start_facility: StartFacility) -> None:
    facility = start_facility("proxy", gateway=SETTINGS | {"AUTH__LOOKUPS__KEEP_SECONDS": 600})
    async with through_proxy(facility, "ann") as ann, through_proxy(facility, "bob") as bob:
        assert (await ann.get("/api/v1/jobs")).status_code == 200
        facility.storage.stop()

        assert (await ann.get("/api/v1/jobs")).status_code == 200
        unknown = await bob.get("/api/v1/jobs")
    assert (unknown.status_code, unknown.json()["reason"]) == (503, "IDENTITY_UNAVAILABLE")
