"""A platform with somebody's things in it, for walks that call everything in the names of others."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import groups_pb2, groups_pb2_grpc, identity_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.results.v1 import history_pb2, staging_pb2
from guidehall.core.auth import KeyPair, Principal, Role, TokenIssuer, encode_delegation
from guidehall.core.channels import credentials_interceptors
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, facilities
from tests.fixtures.inference import inference_server
from tests.fixtures.storage import StorageSite, publication, staging, upload, weights
from tests.processes import Server
from tests.rpcs import methods
from tests.walk import Caller, Things, Walk

MARKER = f"marker{uuid.uuid4().hex[:8]}"
OWNER, GROUP, OTHER_GROUP = f"ada-{MARKER}", f"film-{MARKER}", "other"
PLACES = ("personal", "shared")
# What tokens say of ada, and of a member of another group.
OWNS = {"groups": [GROUP], "writable_groups": [GROUP]}
STRANGE = {"groups": [OTHER_GROUP], "writable_groups": [OTHER_GROUP]}
ARTIFACT = "notes.txt"
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

    def token(self, name: str, *roles: Role, **claims: Any) -> str:
        return self.issuer("storage").mint(
            name, "user", ttl_seconds=3600, roles=roles or (Role.SCIENTIST,), **claims
        )

    def caller(self, name: str, *roles: Role, **claims: Any) -> Caller:
        return Caller.bearing(name, self.token(name, *roles, **claims))

    def owner(self) -> Caller:
        return self.caller(OWNER, **OWNS)

    def others(self, place: str) -> list[Caller]:
        """Who is new in each place: the audit log tells everybody what they themselves have called."""
        gateway = self.issuer("gateway").mint("gateway", "service", ttl_seconds=3600)
        guest = encode_delegation(Principal("guest", "guest"))
        return [
            Caller("nobody"),
            Caller.bearing("guest", gateway, guest),
            self.caller(f"viewer-{place}", Role.VIEWER),
            self.caller(f"scientist-{place}"),
            self.caller(f"stranger-{place}", **STRANGE),
        ]


def _target(facility: Facility, inference: Server, service: str) -> str:
    if service in _INFERENCE:
        return inference.target
    return facility.trainer.target if service in _TRAINER else facility.storage.target


@contextmanager
def worlds(backing: BackingServers, folder: Path) -> Iterator[World]:
    """Starts the services and has ada make her things; all of it ends with the block."""
    with facilities(backing, folder) as start:
        # Storage gives addresses of objects, so that it is seen to whom it gives them.
        facility = start(storage={"S3__PUBLIC_ENDPOINT": f"http://{backing.s3.endpoint}"})
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
    claims: dict[str, Any] = {**OWNS, "roles": (Role.SCIENTIST,)}
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
        content = MARKER.encode() + b" and what was noted\n"
        messages = staging(id, 1, "artifact", ARTIFACT, content)
        messages[0].header.job = job
        kept = (await attempt.staging.StageObject(messages)).object
        outputs = {"result": staged, ARTIFACT: kept}
        commit = staging_pb2.PromoteRequest(job=job, lease_epoch=1, owner=OWNER, outputs=outputs)
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
    artifact = f"{result}/artifacts/{ARTIFACT}"
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
        **{f"{results}/{method}": {"name": artifact} for method in ("DownloadArtifact", "CreateArtifactUrl")},
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
async def walking(world: World, things: Things, storage: str = "") -> AsyncIterator[Walk]:
    """A walk over the rpcs; storage's are called at another address if one is given."""
    async with AsyncExitStack() as stack:
        channels = {}
        for service in {method.containing_service.full_name for method in methods()}:
            target = _target(world.facility, world.inference, service)
            if storage and target == world.facility.storage.target:
                target = storage
            channels[service] = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        yield Walk(channels, things, await stack.enter_async_context(digests(world)))


@asynccontextmanager
async def digests(world: World) -> AsyncIterator[list[Callable[[], Awaitable[str]]]]:
    """Of all that is ada's in each database."""
    database = world.facility.trainer.database
    async with world.facility.storage.connection() as stored, AsyncExitStack() as stack:
        jobs = await asyncpg.connect(
            host=database.host,
            port=database.port,
            user=database.user,
            password=database.password,
            database=database.database,
        )
        stack.push_async_callback(jobs.close)
        yield [_state_of(stored.fetchval, "storage"), _state_of(jobs.fetchval, "trainer")]


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
