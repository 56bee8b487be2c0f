"""Groups, what is theirs, what is shared, and the accounts of their programs."""

from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import groups_pb2, groups_pb2_grpc, identity_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.results.v1 import staging_pb2
from guidehall.core.auth import Role
from guidehall.core.channels import credentials_interceptors
from guidehall.core.errors import AlreadyExists, NotFound, PermissionDenied
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import KEEP_SECONDS, Facility, facilities
from tests.fixtures.storage import Stubs, eventually, job_name, upload
from tests.fixtures.trainer import refused

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("groups")) as start:
        yield start()


class Circle:
    """A group of one test with a manager, a member and a reader, each by an API key; and others."""

    def __init__(self, facility: Facility) -> None:
        self.facility, self.tag = facility, uuid.uuid4().hex[:8]
        self.group = f"film-{self.tag}"
        self.admin = facility.storage.user("root", Role.ADMIN)
        self.groups: Any = groups_pb2_grpc.GroupsServiceStub(self.admin.channel)

    def name(self, who: str) -> str:
        return f"{who}-{self.tag}"

    async def make(self) -> None:
        await self.groups.CreateGroup(groups_pb2.CreateGroupRequest(group_id=self.group))
        for who in ("manager", "member", "reader", "other"):
            user = identity_pb2.User(roles=[identity_pb2.ROLE_SCIENTIST])
            await self.admin.identity.CreateUser(
                identity_pb2.CreateUserRequest(user_id=self.name(who), user=user)
            )
            if who != "other":
                await self.set_role(who, who.upper())

    async def set_role(self, who: str, role: str, groups: Any = None) -> None:
        member = groups_pb2.GroupMember(
            user=f"users/{self.name(who)}", role=identity_pb2.GroupRole.Value(f"GROUP_ROLE_{role}")
        )
        request = groups_pb2.SetGroupMemberRequest(parent=f"groups/{self.group}", member=member)
        await (groups or self.groups).SetGroupMember(request)

    async def key(self, who: str, by: Stubs | None = None, **key: Any) -> str:
        """A new API key of somebody."""
        request = identity_pb2.CreateApiKeyRequest(
            parent=f"users/{self.name(who)}", api_key=identity_pb2.ApiKey(**key)
        )
        made = await (by or self.admin).identity.CreateApiKey(request)
        return str(made.secret)

    @asynccontextmanager
    async def calling(self, key: str) -> AsyncIterator[Stubs]:
        async with Stubs(self.facility.storage.target, key) as stubs:
            yield stubs

    @asynccontextmanager
    async def jobs(self, key: str) -> AsyncIterator[Any]:
        carry = credentials_interceptors(lambda: key)
        async with grpc.aio.insecure_channel(self.facility.trainer.target, interceptors=carry) as channel:
            yield jobs_pb2_grpc.JobsServiceStub(channel)


@pytest.fixture
async def circle(facility: Facility) -> AsyncIterator[Circle]:
    circle = Circle(facility)
    async with circle.admin:
        await circle.make()
        yield circle


async def listed(stubs: Stubs, parent: str) -> list[str]:
    answer = await stubs.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest(parent=parent))
    return [item.name for item in answer.datasets]


async def jobs_of(jobs: Any, parent: str) -> list[str]:
    """Names of the jobs that somebody sees, newest first."""
    return [job.name for job in (await jobs.ListJobs(jobs_pb2.ListJobsRequest(parent=parent))).jobs]


async def test_what_is_in_the_project_of_a_group_is_the_groups(circle: Circle) -> None:
    parent = f"projects/group.{circle.group}"
    name = f"{parent}/datasets/curves"
    get = datasets_pb2.GetDatasetRequest(name=name)
    async with (
        circle.calling(await circle.key("member")) as member,
        circle.calling(await circle.key("manager")) as manager,
        circle.calling(await circle.key("reader")) as reader,
        circle.calling(await circle.key("other")) as other,
    ):
        await member.datasets.UploadDatasetVersion(upload("", b"1 2 3\n", parent=name))

        assert await listed(reader, parent) == [name]
        assert (await reader.datasets.GetDataset(get)).name == name
        await manager.datasets.UploadDatasetVersion(upload("", b"4 5 6\n", parent=name))
        async with refused(PermissionDenied) as denied:
            await reader.datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name=name))
        assert denied[0].reason == "READ_ONLY"
        async with refused(PermissionDenied):
            await reader.datasets.UploadDatasetVersion(upload("", b"1\n", parent=f"{parent}/datasets/mine"))
        async with refused(PermissionDenied):
            await other.datasets.UploadDatasetVersion(upload("", b"1\n", parent=f"{parent}/datasets/mine"))
        async with refused(NotFound):
            await other.datasets.GetDataset(get)
        assert await listed(other, parent) == []
        await manager.datasets.DeleteDataset(datasets_pb2.DeleteDatasetRequest(name=name))


async def test_jobs_of_a_group_and_shared_ones(circle: Circle) -> None:
    pool = f"pool-{circle.tag}"
    await circle.facility.trainer.enrol(pool)
    async with (
        circle.jobs(await circle.key("member")) as member,
        circle.jobs(await circle.key("reader")) as reader,
        circle.jobs(await circle.key("other")) as other,
    ):
        request = jobs_pb2.SubmitJobRequest(
            parent=f"projects/group.{circle.group}", pipeline="toy.line", pool=pool
        )
        of_group = await member.SubmitJob(request)
        request.parent = ""
        own = await member.SubmitJob(request)

        assert (await reader.GetJob(jobs_pb2.GetJobRequest(name=of_group.name))).name == of_group.name
        async with refused(NotFound):
            await reader.GetJob(jobs_pb2.GetJobRequest(name=own.name))
        async with refused(PermissionDenied):
            await reader.CancelJob(jobs_pb2.CancelJobRequest(name=of_group.name))
        share = jobs_pb2.ShareJobRequest(
            name=own.name, add=[f"group:{circle.group}", f"user:{circle.name('other')}"]
        )
        assert list((await member.ShareJob(share)).readers) == sorted(share.add)
        for allowed in (reader, other):
            assert await jobs_of(allowed, "") == [own.name]
            async with refused(PermissionDenied):
                await allowed.CancelJob(jobs_pb2.CancelJobRequest(name=own.name))
            async with refused(PermissionDenied):
                await allowed.RetryJob(jobs_pb2.RetryJobRequest(name=own.name))
        # In all projects a member of the group sees what is the group's, too; who is in none does not.
        assert await jobs_of(reader, "projects/-") == [own.name, of_group.name]
        assert await jobs_of(other, "projects/-") == [own.name]
        await member.ShareJob(jobs_pb2.ShareJobRequest(name=own.name, remove=share.add))
        async with refused(NotFound):
            await other.GetJob(jobs_pb2.GetJobRequest(name=own.name))
        assert await jobs_of(member, "projects/-") == [own.name, of_group.name]
        assert await jobs_of(reader, "projects/-") == [of_group.name]
        assert await jobs_of(other, "projects/-") == []
        counted = await member.CountJobs(jobs_pb2.CountJobsRequest())
        assert (counted.queued, counted.running, counted.ended) == (2, 0, 0)
        assert await other.CountJobs(jobs_pb2.CountJobsRequest()) == jobs_pb2.CountJobsResponse()


async def test_managers_and_only_they_say_who_is_in_a_group(circle: Circle) -> None:
    async with (
        circle.calling(await circle.key("manager")) as manager,
        circle.calling(await circle.key("member")) as member,
    ):
        await circle.set_role("other", "READER", groups_pb2_grpc.GroupsServiceStub(manager.channel))
        async with refused(PermissionDenied):
            await circle.set_role("member", "MANAGER", groups_pb2_grpc.GroupsServiceStub(member.channel))
        members = await groups_pb2_grpc.GroupsServiceStub(member.channel).ListGroupMembers(
            groups_pb2.ListGroupMembersRequest(parent=f"groups/{circle.group}")
        )
        who = [item.user.removeprefix("users/").partition("-")[0] for item in members.members]
        assert who == ["manager", "member", "other", "reader"]
        async with refused(PermissionDenied):
            await groups_pb2_grpc.GroupsServiceStub(manager.channel).CreateGroup(
                groups_pb2.CreateGroupRequest(group_id="another")
            )


async def test_the_name_of_a_deleted_group_opens_nothing(circle: Circle) -> None:
    await circle.groups.DeleteGroup(groups_pb2.DeleteGroupRequest(name=f"groups/{circle.group}"))

    async with circle.calling(await circle.key("member")) as member:
        me = await member.identity.WhoAmI(identity_pb2.WhoAmIRequest())
    assert (list(me.groups), list(me.writable_groups)) == ([], [])
    async with refused(AlreadyExists):
        await circle.groups.CreateGroup(groups_pb2.CreateGroupRequest(group_id=circle.group))


async def test_a_service_account_comes_by_its_keys_until_it_is_deleted(circle: Circle) -> None:
    robot = f"users/{circle.name('robot')}"
    async with circle.calling(await circle.key("manager")) as manager:
        groups: Any = groups_pb2_grpc.GroupsServiceStub(manager.channel)
        await groups.CreateServiceAccount(
            groups_pb2.CreateServiceAccountRequest(
                parent=f"groups/{circle.group}", user_id=circle.name("robot")
            )
        )
        key = await circle.key("robot", manager, scopes=["datasets:read"])
        async with circle.calling(await circle.key("other")) as other, refused(NotFound):
            await circle.key("robot", other)
        async with circle.calling(key) as program:
            me = await program.identity.WhoAmI(identity_pb2.WhoAmIRequest())
            assert identity_pb2.PrincipalKind.Name(me.kind) == "PRINCIPAL_KIND_SERVICE_ACCOUNT"
            assert (me.subject, list(me.writable_groups)) == (circle.name("robot"), [circle.group])
            assert await listed(program, f"projects/group.{circle.group}") == []
            async with refused(PermissionDenied) as denied:
                await program.datasets.UploadDatasetVersion(
                    upload("", b"1\n", parent=f"projects/group.{circle.group}/datasets/x")
                )
            assert denied[0].reason == "SCOPE_MISSING"
            async with refused(PermissionDenied):
                await circle.key("robot", program)
        await groups.DeleteServiceAccount(groups_pb2.DeleteServiceAccountRequest(name=robot))
        async with circle.calling(key) as program:
            await eventually(lambda: _is_refused(program), seconds=10 * KEEP_SECONDS)


async def _is_refused(program: Stubs) -> bool:
    try:
        await program.identity.WhoAmI(identity_pb2.WhoAmIRequest())
    except grpc.aio.AioRpcError as error:
        return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


async def test_over_http_a_key_with_scopes_is_limited_just_so(circle: Circle) -> None:
    key = await circle.key("member", scopes=["models:read"])
    async with circle.facility.http(key) as client:
        assert (await client.get("/api/v1/models")).status_code == 200
        answer = await client.get("/api/v1/jobs")
        assert (answer.status_code, "SCOPE_MISSING" in answer.text) == (403, True)
        assert (await client.get("/api/v1/groups")).status_code == 403
        assert (await client.get("/api/v1/usage")).status_code == 200
        # The old paths know nothing of scopes.
        for method, path in (
            ("GET", f"/api/jobs/{uuid.uuid4()}"),
            ("DELETE", f"/api/jobs/{uuid.uuid4()}/delete"),
            ("POST", "/api/queue/cleanup"),
            ("GET", "/api/history"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, "an API key with scopes" in answer.text) == (403, True), path


async def test_a_bundle_holds_the_job_only_for_who_may_read_it(circle: Circle) -> None:
    facility, job = circle.facility, str(uuid.uuid4())
    async with facility.storage.job(job, 1) as attempt, facility.storage.service("trainer") as trainer:
        staged = {"result": await attempt.stage_result(job, 1, {"a": 1})}
        commit = staging_pb2.PromoteRequest(
            job=job_name(job), lease_epoch=1, owner=circle.name("member"), outputs=staged
        )
        await trainer.staging.Promote(commit)
    async with facility.http(await circle.key("member", scopes=["results:read"])) as client:
        answer = await client.get(f"/api/v1/results/{job}/bundle")
    assert answer.status_code == 200
    assert zipfile.ZipFile(io.BytesIO(answer.content)).namelist() == ["result.json"]
