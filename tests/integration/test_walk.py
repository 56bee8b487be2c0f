"""Nobody reads or changes what is somebody else's: every rpc of every service, called with their names."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import groups_pb2, groups_pb2_grpc, identity_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.results.v1 import history_pb2, staging_pb2
from guidehall.core.auth import KeyPair, Principal, Role, TokenIssuer, encode_delegation
from guidehall.core.channels import credentials_interceptors
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, facilities
from tests.fixtures.inference import inference_server
from tests.fixtures.storage import StorageSite, publication, upload, weights
from tests.processes import Server
from tests.rpcs import full_name, methods
from tests.walk import Caller, Finding, Things, Walk, call, table

pytestmark = pytest.mark.slow

MARKER = f"marker{uuid.uuid4().hex[:8]}"
OWNER, GROUP, OTHER_GROUP = f"ada-{MARKER}", f"film-{MARKER}", "other"
PLACES = ("personal", "shared")
_STATES = {
    "storage": [
        "storage.datasets",
        "storage.dataset_versions",
        "storage.models",
        "storage.model_versions",
        "storage.results",
        "storage.artifacts",
        "storage.history",
        "storage.upload_roles",
        "identity.users",
        "identity.groups",
        "identity.memberships",
        "identity.api_keys",
        "identity.sessions",
        "identity.passwords",
        "identity.identities",
        "identity.erasures",
    ],
    "trainer": ["trainer.jobs", "trainer.worker_credentials"],
}
# With whom none of it was shared. Operators and administrators see everything: they are no others.
_PREDICT = "guidehall.prediction.v1.PredictionService guidehall.reflectometry.v1.ReflectometryService"
_INFERENCE = {*_PREDICT.split(), "inference.GRPCInferenceService"}
_TRAINER = {f"guidehall.{name}" for name in ("jobs.v1.JobsService", "workers.v1.WorkerService")}
_TRAINER.add("guidehall.workers.v1.PoolsService")


@dataclass
class World:
    """The services, and ada's things in them, her own and those of her group."""

    facility: Facility
    inference: Server
    personal: Things
    shared: Things

    def issuer(self, name: str) -> TokenIssuer:
        return TokenIssuer(name, KeyPair.load(self.facility.storage.identity.key_file(name)))

    def caller(self, name: str, *roles: Role, **claims: Any) -> Caller:
        token = self.issuer("storage").mint(
            name, "user", ttl_seconds=3600, roles=roles or (Role.SCIENTIST,), **claims
        )
        return Caller.bearing(name, token)

    def owner(self) -> Caller:
        return self.caller(OWNER, groups=[GROUP], writable_groups=[GROUP])

    def others(self, place: str) -> list[Caller]:
        """Who is new in each place: the audit log tells everybody what they themselves have called."""
        gateway = self.issuer("gateway").mint("gateway", "service", ttl_seconds=3600)
        guest = encode_delegation(Principal("guest", "guest"))
        member = {"groups": [OTHER_GROUP], "writable_groups": [OTHER_GROUP]}
        return [
            Caller("nobody"),
            Caller.bearing("guest", gateway, guest),
            self.caller(f"viewer-{place}", Role.VIEWER),
            self.caller(f"scientist-{place}"),
            self.caller(f"stranger-{place}", **member),
        ]


def _target(facility: Facility, inference: Server, service: str) -> str:
    if service in _INFERENCE:
        return inference.target
    return facility.trainer.target if service in _TRAINER else facility.storage.target


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("walk")) as start:
        yield start()


@pytest.fixture(scope="module")
def world(
    facility: Facility, event_streams: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("walked")
    inference = inference_server(facility.storage, folder, AUTH__MODE="token")
    try:
        personal = asyncio.run(_make(facility, "default"))
        shared = asyncio.run(_make(facility, f"group.{GROUP}"))
        inference.wait_serving()
        yield World(facility, inference, personal, shared)
    finally:
        inference.stop()


async def _make(facility: Facility, project: str) -> Things:
    """Everything that ada can have, in one project."""
    site, name = facility.storage, f"x-{MARKER}"
    parent = f"projects/{project}"
    claims = {"groups": [GROUP], "writable_groups": [GROUP], "roles": (Role.SCIENTIST,)}
    admin, ada = site.user("root", Role.ADMIN), site.caller("storage", OWNER, "user", **claims)
    groups = groups_pb2_grpc.GroupsServiceStub(admin.channel)
    pool = f"pool-{uuid.uuid4().hex[:6]}"
    await facility.trainer.enrol(pool)
    async with admin, ada:
        if project == "default":
            user = identity_pb2.User(display_name=MARKER, roles=[identity_pb2.ROLE_SCIENTIST])
            await admin.identity.CreateUser(identity_pb2.CreateUserRequest(user_id=OWNER, user=user))
            await groups.CreateGroup(groups_pb2.CreateGroupRequest(group_id=GROUP))
            member = groups_pb2.GroupMember(user=f"users/{OWNER}", role=identity_pb2.GROUP_ROLE_MANAGER)
            await groups.SetGroupMember(
                groups_pb2.SetGroupMemberRequest(parent=f"groups/{GROUP}", member=member)
            )
            await groups.CreateServiceAccount(
                groups_pb2.CreateServiceAccountRequest(parent=f"groups/{GROUP}", user_id=f"robot-{MARKER}")
            )
        key = await ada.identity.CreateApiKey(
            identity_pb2.CreateApiKeyRequest(
                parent=f"users/{OWNER}", api_key=identity_pb2.ApiKey(display_name=MARKER)
            )
        )
        dataset = await ada.datasets.UploadDatasetVersion(
            upload(name, MARKER.encode() + b"\n1 2 3\n", parent=f"{parent}/datasets/{name}")
        )
        model = await ada.models.PublishModelVersion(
            publication(name, weights(), parent=f"{parent}/models/{name}")
        )
        entry = history_pb2.HistoryEntry(display_name=MARKER)
        entry.params.update({"a": MARKER})
        kept = await ada.history.CreateHistoryEntry(
            history_pb2.CreateHistoryEntryRequest(parent=f"users/{OWNER}", entry=entry)
        )
        roles = datasets_pb2.UploadRoles(name=f"users/{OWNER}/uploadRoles")
        roles.settings.update({"a": MARKER})
        await ada.upload_roles.UpdateUploadRoles(datasets_pb2.UpdateUploadRolesRequest(upload_roles=roles))
        job = await _submit(facility, parent, pool, claims)
        id = job.rpartition("/")[2]
        result = await _promote(site, project, job, id)
    return Things(
        MARKER, _fields(parent, job, dataset.name, model.name, kept.name, key.api_key.name, result, pool)
    )


async def _submit(facility: Facility, parent: str, pool: str, claims: dict[str, Any]) -> str:
    issuer = TokenIssuer("storage", KeyPair.load(facility.storage.identity.key_file("storage")))
    token = issuer.mint(OWNER, "user", ttl_seconds=600, **claims)
    carry = credentials_interceptors(lambda: token)
    async with grpc.aio.insecure_channel(facility.trainer.target, interceptors=carry) as channel:
        request = jobs_pb2.SubmitJobRequest(
            parent=parent, pipeline="toy.line", pool=pool, display_name=MARKER
        )
        job: jobs_pb2.Job = await jobs_pb2_grpc.JobsServiceStub(channel).SubmitJob(request)
        return job.name


async def _promote(site: StorageSite, project: str, job: str, id: str) -> str:
    token = {"job_id": id, "lease_epoch": 1, "project": project}
    attempt = site.caller("trainer", f"jobs/{id}", "job", audience="storage", **token)
    async with attempt, site.service("trainer") as trainer:
        request = staging_pb2.StageResultRequest(job=job, lease_epoch=1, pipeline="toy.line")
        request.document.update({"a": MARKER})
        staged = (await attempt.staging.StageResult(request)).object
        commit = staging_pb2.PromoteRequest(job=job, lease_epoch=1, owner=OWNER, outputs={"result": staged})
        return str((await trainer.staging.Promote(commit)).result)


def _fields(
    parent: str, job: str, dataset: str, model: str, entry: str, key: str, result: str, pool: str
) -> dict[str, dict[str, Any]]:
    """What goes into the fields of requests, by service, and where it is not the same by method."""
    of_dataset, of_model = dataset.rpartition("/versions/")[0], model.rpartition("/versions/")[0]
    jobs, data, models = (
        f"guidehall.{part}"
        for part in ("jobs.v1.JobsService", "datasets.v1.DatasetsService", "models.v1.ModelsService")
    )
    results, history = "guidehall.results.v1.ResultsService", "guidehall.results.v1.HistoryService"
    identity, accounts, groups, log_ins, personal = (
        f"guidehall.identity.v1.{part}Service"
        for part in ("Identity", "Accounts", "Groups", "LogIns", "PersonalData")
    )
    user, group, robot = f"users/{OWNER}", f"groups/{GROUP}", f"users/robot-{MARKER}"
    me = {
        "add": [
            *(f"user:{name}-{place}" for name in ("scientist", "viewer") for place in PLACES),
            "group:other",
        ]
    }
    new = {"display_name": "taken over", "name": job}
    taken, named = {"display_name": "taken over"}, {"update_mask": {"paths": ["display_name"]}}
    versions = ("GetDatasetVersion", "DownloadDatasetVersion", "CreateDatasetVersionUrl")
    of_versions = ("GetModelVersion", "DownloadModelVersion", "CreateModelVersionUrl")
    return {
        jobs: {"name": job, "parent": parent, "job": new, "force": True, "include_queued": True, **me},
        f"{jobs}/ListAttempts": {"parent": job},
        f"{jobs}/UpdateJob": {"job": new, "update_mask": {"paths": ["display_name"]}},
        f"{jobs}/SubmitJob": {"parent": parent, "pipeline": "toy.line", "pool": pool, "validate_only": True},
        data: {"name": of_dataset, "parent": parent, "dataset_id": of_dataset.rpartition("/")[2], **me},
        **{f"{data}/{method}": {"name": dataset} for method in versions},
        f"{data}/UpdateDataset": {"dataset": {**taken, "name": of_dataset}, **named},
        f"{data}/ListDatasetVersions": {"parent": of_dataset},
        f"{data}/UploadDatasetVersion": {"header": {"parent": of_dataset, "filename": "taken.txt"}},
        "guidehall.datasets.v1.UploadRolesService": {
            "name": f"{user}/uploadRoles", "upload_roles": {"name": f"{user}/uploadRoles"}
        },
        models: {"name": of_model, "parent": parent, **me},
        **{f"{models}/{method}": {"name": model} for method in of_versions},
        f"{models}/UpdateModel": {"model": {**taken, "name": of_model}, **named},
        f"{models}/ListModelVersions": {"parent": of_model},
        f"{models}/SetModelTag": {"name": of_model, "tag": "production", "version": 1},
        f"{models}/DeleteModelTag": {"name": of_model, "tag": "production"},
        f"{models}/UpdateModelVersion": {
            "model_version": {"name": model, "pinned": True}, "update_mask": {"paths": ["pinned"]}
        },
        f"{models}/PublishModelVersion": {"header": {"parent": of_model}},
        results: {"name": result, "parent": parent, "job": job, **me},
        history: {"name": entry, "parent": user, "entry": {"name": entry, "display_name": "taken over"}},
        "guidehall.results.v1.StagingService": {"job": job, "lease_epoch": 1, "owner": "scientist"},
        identity: {
            "name": user, "parent": user, "user_id": OWNER, "user": {"name": user, "display_name": "x"},
        },
        f"{identity}/RevokeApiKey": {"name": key},
        accounts: {"name": user, "parent": user, "password": "a long pass word", "user_id": OWNER},
        f"{accounts}/RevokeSession": {"name": f"{user}/sessions/{uuid.uuid4()}"},
        groups: {
            "name": group, "parent": group, "user": user, "user_id": "robot-of-others", "disabled": True,
            "member": {"user": "users/root", "role": 3}, "group": {"name": group, "display_name": "x"},
            "group_id": GROUP,
        },
        f"{groups}/SetServiceAccountDisabled": {"name": robot, "disabled": True},
        f"{groups}/DeleteServiceAccount": {"name": robot},
        log_ins: {"name": f"{user}/identities/{uuid.uuid4()}", "parent": user, "provider": "facility",
            "subject": OWNER, "user_code": "BCDF-GHJK", "approve": True, "username": OWNER},
        personal: {"name": user, "hand_over_to": "users/scientist"},
        "guidehall.usage.v1.UsageService": {"user": user},
        "guidehall.workers.v1.PoolsService": {"name": f"pools/{pool}", "parent": f"pools/{pool}"},
        "guidehall.workers.v1.WorkerService": {"job": job, "lease_epoch": 1},
        "guidehall.prediction.v1.PredictionService": {"model": of_model},
        "guidehall.reflectometry.v1.ReflectometryService": {"model": of_model, "parent": parent},
        "inference.GRPCInferenceService": {"name": of_model, "model_name": of_model},
    }  # fmt: skip


@asynccontextmanager
async def _walking(world: World, things: Things, storage: str = "") -> AsyncIterator[Walk]:
    async with AsyncExitStack() as stack:
        channels = {}
        for service in {method.containing_service.full_name for method in methods()}:
            target = _target(world.facility, world.inference, service)
            if storage and target == world.facility.storage.target:
                target = storage
            channels[service] = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        connection = await stack.enter_async_context(world.facility.storage.connection())
        database = world.facility.trainer.database
        jobs = await asyncpg.connect(
            host=database.host,
            port=database.port,
            user=database.user,
            password=database.password,
            database=database.database,
        )
        stack.push_async_callback(jobs.close)
        states = [_state_of(connection.fetchval, "storage"), _state_of(jobs.fetchval, "trainer")]
        yield Walk(channels, things, states)


def _state_of(fetch: Callable[[str], Awaitable[Any]], database: str) -> Callable[[], Awaitable[str]]:
    """A digest of the rows with the marker in them; what only tells when a key was used is left out."""
    parts = [
        f"SELECT (to_jsonb(t) - 'last_use_time')::text AS row FROM {table} t WHERE t::text LIKE '%{MARKER}%'"  # noqa: S608
        for table in _STATES[database]
    ]
    sql = f"SELECT coalesce(md5(string_agg(row, ';' ORDER BY row)), '') FROM ({' UNION ALL '.join(parts)}) r"  # noqa: S608

    async def state() -> str:
        return str(await fetch(sql))

    return state


@pytest.mark.parametrize("place", PLACES)
async def test_others_read_and_change_nothing(
    world: World, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    things: Things = getattr(world, place)
    # The audit log comes before its readers have called anything by a name that is in it then.
    called = sorted(methods(), key=lambda method: ("Audit" not in full_name(method), full_name(method)))
    findings: list[Finding] = []
    answers = {}
    async with _walking(world, things) as walk:
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
    async with _walking(world, getattr(world, place)) as walk:
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
        async with _walking(world, world.personal, storage=open_one.target) as walk:
            findings, _ = await walk.as_caller(world.caller("scientist"), called)
    finally:
        open_one.stop()

    assert findings == [Finding("scientist", "/guidehall.identity.v1.IdentityService/ListUsers", "read")]
