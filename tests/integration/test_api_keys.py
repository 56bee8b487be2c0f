"""API keys as credentials: at every server, at the gateway, and when they end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.identity.v1 import identity_pb2, identity_pb2_grpc
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.reflectometry.v1 import reflectometry_pb2, reflectometry_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core.auth import Role
from guidehall.core.channels import credentials_interceptors
from guidehall.core.errors import (
    AppError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import KEEP_SECONDS, Facility, StartFacility, facilities
from tests.fixtures.inference import StartInference
from tests.fixtures.storage import People, StorageSite, eventually
from tests.fixtures.trainer import refused

ADMIN, OPERATOR, SCIENTIST = identity_pb2.ROLE_ADMIN, identity_pb2.ROLE_OPERATOR, identity_pb2.ROLE_SCIENTIST


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("facility")) as start:
        yield start()


@pytest.fixture
async def people(facility: Facility) -> AsyncIterator[People]:
    people = People(facility.storage)
    yield people
    await people.close()


@asynccontextmanager
async def calling(target: str, credential: str) -> AsyncIterator[grpc.aio.Channel]:
    carry = credentials_interceptors(lambda: credential)
    async with grpc.aio.insecure_channel(target, interceptors=carry) as channel:
        yield channel


async def create_key(people: People, user: str, **key: Any) -> identity_pb2.CreateApiKeyResponse:
    """A key of a user, who is made, as an operator."""
    admin = people.user("root", Role.ADMIN).identity
    made = identity_pb2.User(roles=[OPERATOR], groups=["films"])
    await admin.CreateUser(identity_pb2.CreateUserRequest(user_id=user, user=made))
    request = identity_pb2.CreateApiKeyRequest(parent=f"users/{user}", api_key=identity_pb2.ApiKey(**key))
    return await admin.CreateApiKey(request)


async def list_jobs(facility: Facility, secret: str) -> AppError | None:
    """How the trainer refuses somebody; None when it does not."""
    async with calling(facility.trainer.target, secret) as channel:
        try:
            await jobs_pb2_grpc.JobsServiceStub(channel).ListJobs(jobs_pb2.ListJobsRequest(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)
    return None


async def who_at_storage(facility: Facility, secret: str) -> identity_pb2.Principal:
    async with calling(facility.storage.target, secret) as channel:
        return await identity_pb2_grpc.IdentityServiceStub(channel).WhoAmI(
            identity_pb2.WhoAmIRequest(), timeout=10
        )


async def is_ended_at_storage(facility: Facility, secret: str) -> bool:
    try:
        await who_at_storage(facility, secret)
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


async def test_a_key_speaks_for_its_user_at_every_door(facility: Facility, people: People) -> None:
    user = people.name("eve")
    made = await create_key(people, user, roles=[SCIENTIST])

    at_storage = await who_at_storage(facility, made.secret)
    assert await list_jobs(facility, made.secret) is None
    async with facility.http(made.secret) as http:
        at_gateway = (await http.get("/api/v1/whoami")).json()
        forbidden = await http.get("/api/v1/pools/-/credentials")

    assert (at_storage.subject, list(at_storage.roles), list(at_storage.groups)) == (
        user,
        [SCIENTIST],
        ["films"],
    )
    assert (at_gateway["subject"], at_gateway["roles"], at_gateway["actor"]) == (
        user,
        ["SCIENTIST"],
        "gateway",
    )
    # Of an operator, but with less.
    assert forbidden.status_code == 403
    async with calling(facility.trainer.target, made.secret) as channel, refused(PermissionDenied):
        stub = workers_pb2_grpc.PoolsServiceStub(channel)
        await stub.ListWorkerCredentials(workers_pb2.ListWorkerCredentialsRequest(parent="pools/-"))


async def test_a_key_that_is_none_opens_nothing(facility: Facility, people: People) -> None:
    made = await create_key(people, people.name("eve"))
    for wrong in ("gh_" + "a" * 43, made.secret[:-1], made.secret + "a", "gh_"):
        refusal = await list_jobs(facility, wrong)
        assert isinstance(refusal, Unauthenticated)
        assert wrong not in str(refusal.__dict__)
        async with refused(Unauthenticated):
            await who_at_storage(facility, wrong)
        async with facility.http(wrong) as http:
            answer = await http.get("/api/v1/whoami")
        assert (answer.status_code, answer.json()["reason"]) == (401, "BAD_CREDENTIAL")


async def test_a_key_ends_everywhere_within_the_time_that_it_is_remembered(
    facility: Facility, people: People
) -> None:
    admin = people.user("root", Role.ADMIN).identity

    async def revoke(made: identity_pb2.CreateApiKeyResponse) -> None:
        await admin.RevokeApiKey(identity_pb2.RevokeApiKeyRequest(name=made.api_key.name))

    async def disable(made: identity_pb2.CreateApiKeyResponse) -> None:
        changed = identity_pb2.User(
            name="/".join(made.api_key.name.split("/")[:2]), roles=[OPERATOR], disabled=True
        )
        await admin.UpdateUser(identity_pb2.UpdateUserRequest(user=changed))

    for end in (revoke, disable):
        made = await create_key(people, people.name(end.__name__))
        async with facility.http(made.secret) as http:
            assert await list_jobs(facility, made.secret) is None
            assert (await http.get("/api/v1/jobs")).status_code == 200
            await who_at_storage(facility, made.secret)

            await end(made)

            async def ended(http: Any = http, secret: str = made.secret) -> bool:
                return (
                    isinstance(await list_jobs(facility, secret), Unauthenticated)
                    and (await http.get("/api/v1/jobs")).status_code == 401
                    and await is_ended_at_storage(facility, secret)
                )

            # Twice the time: a busy machine may look late.
            await eventually(ended, seconds=2 * KEEP_SECONDS + 5)


async def test_an_expired_key_is_not_remembered_beyond_its_time(facility: Facility, people: People) -> None:
    soon = Timestamp()
    ends = datetime.now(UTC) + timedelta(seconds=0.8)
    soon.FromDatetime(ends)
    made = await create_key(people, people.name("eve"), expire_time=soon)
    await list_jobs(facility, made.secret)

    async def expired() -> bool:
        return datetime.now(UTC) > ends

    await eventually(expired)
    assert isinstance(await list_jobs(facility, made.secret), Unauthenticated)


async def test_a_key_never_gives_more_than_its_user_has_now(facility: Facility, people: People) -> None:
    user = people.name("eve")
    made = await create_key(people, user, roles=[OPERATOR])
    lower = identity_pb2.User(name=f"users/{user}", roles=[SCIENTIST])

    await people.user("root", Role.ADMIN).identity.UpdateUser(identity_pb2.UpdateUserRequest(user=lower))

    async with refused(PermissionDenied):
        await who_lists_users(facility, made.secret)


async def who_lists_users(facility: Facility, secret: str) -> None:
    async with calling(facility.storage.target, secret) as channel:
        await identity_pb2_grpc.IdentityServiceStub(channel).ListUsers(identity_pb2.ListUsersRequest())


async def test_without_storage_known_keys_live_on_and_unknown_ones_wait(
    start_facility: StartFacility,
) -> None:
    facility = start_facility(gateway={"AUTH__LOOKUPS__KEEP_SECONDS": 600})
    people = People(facility.storage)
    try:
        known = await create_key(people, people.name("eve"))
        unknown = await create_key(people, people.name("bob"))
    finally:
        await people.close()
    async with facility.http(known.secret) as http, facility.http(unknown.secret) as other:
        assert (await http.get("/api/v1/jobs")).status_code == 200
        facility.storage.stop()

        assert (await http.get("/api/v1/jobs")).status_code == 200
        waits = await other.get("/api/v1/jobs")
    assert (waits.status_code, waits.json()["reason"]) == (503, "IDENTITY_UNAVAILABLE")
    assert waits.headers["retry-after"]
    assert isinstance(await list_jobs(facility, unknown.secret), Unavailable)
    for log in (facility.gateway.log, facility.trainer.processes[0].log):
        assert not any(known.secret in line or unknown.secret in line for line in log)


@pytest.mark.slow
async def test_a_key_counts_at_the_inference_server(
    storage: StorageSite, start_inference: StartInference
) -> None:
    server = start_inference(AUTH__MODE="token")
    people = People(storage)
    try:
        made = await create_key(people, people.name("eve"))
    finally:
        await people.close()
    nothing = reflectometry_pb2.SimulateRequest()
    # Let in, and told that there is no film.
    async with calling(server.target, made.secret) as channel, refused(InvalidArgument):
        await reflectometry_pb2_grpc.ReflectometryServiceStub(channel).Simulate(nothing)
    async with calling(server.target, "gh_" + "a" * 43) as channel, refused(Unauthenticated):
        await reflectometry_pb2_grpc.ReflectometryServiceStub(channel).Simulate(nothing)
