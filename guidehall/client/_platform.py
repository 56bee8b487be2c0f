"""The platform itself: its queues, its workers, and who it takes the caller for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format

from guidehall.client import _decode, _lists, _names, types
from guidehall.client._config import Config
from guidehall.client._steps import Call, Emit, Open, Operation, Read, Rpc, collect
from guidehall.contracts.identity.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    identity_pb2,
    identity_pb2_grpc,
    personal_data_pb2,
)
from guidehall.contracts.identity.v1.personal_data_pb2_grpc import PersonalDataServiceStub
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.usage.v1 import usage_pb2, usage_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2, workers_pb2_grpc
from guidehall.core import names, personal_data
from guidehall.core.durations import seconds_in

_POOLS = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "ListPools")
_WORKERS = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "ListWorkers")
_POOL = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "GetPool")
_DRAIN = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "DrainWorker")
_REINSTATE = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "ReinstateWorker")
_CREATE_CREDENTIAL = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "CreateWorkerCredential")
_CREDENTIALS = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "ListWorkerCredentials")
_REVOKE_CREDENTIAL = Rpc("trainer", workers_pb2_grpc.PoolsServiceStub, "RevokeWorkerCredential")
_API_KEYS = Rpc("storage", identity_pb2_grpc.IdentityServiceStub, "ListApiKeys")
_CREATE_API_KEY = Rpc("storage", identity_pb2_grpc.IdentityServiceStub, "CreateApiKey")
_REVOKE_API_KEY = Rpc("storage", identity_pb2_grpc.IdentityServiceStub, "RevokeApiKey")
_AUDIT = Rpc("storage", audit_pb2_grpc.AuditServiceStub, "ListAuditEvents")
_EXPORT_AUDIT = Rpc("storage", audit_pb2_grpc.AuditServiceStub, "ExportAuditEvents")
_EXPORT_PERSON = Rpc("storage", PersonalDataServiceStub, "ExportPersonalData")
_ERASE = Rpc("storage", PersonalDataServiceStub, "ErasePerson")
_ERASURE = Rpc("storage", PersonalDataServiceStub, "GetErasure")
_JOBS = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "ListJobs")
_USAGE = Rpc("storage", usage_pb2_grpc.UsageServiceStub, "GetUsage")
_COUNT_JOBS = Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "CountJobs")
_WHO_AM_I = Rpc("storage", identity_pb2_grpc.IdentityServiceStub, "WhoAmI")


def pools(config: Config) -> Operation[list[types.Pool]]:
    """Every pool."""
    return collect(_lists.items(config, _POOLS, workers_pb2.ListPoolsRequest(), "pools", _decode.pool))


def pool(config: Config, text: str) -> Operation[types.Pool]:
    """One pool."""
    request = workers_pb2.GetPoolRequest(name=_names.pool(text))
    message = yield Call(_POOL, request, config.timeouts.call_seconds)
    return _decode.pool(message)


def workers(config: Config, pool: str) -> Operation[list[types.Worker]]:
    """The workers of one pool, or of all."""
    # By its id on the wire; people may also give the name that `pools` answers with.
    request = workers_pb2.ListWorkersRequest(pool=pool.removeprefix("pools/"))
    return collect(_lists.items(config, _WORKERS, request, "workers", _decode.worker))


def drain(config: Config, text: str, release_job: bool) -> Operation[types.Worker]:
    """Takes a worker out of service."""
    name = yield from _worker(config, text)
    request = workers_pb2.DrainWorkerRequest(name=name, release_job=release_job)
    message = yield Call(_DRAIN, request, config.timeouts.call_seconds)
    return _decode.worker(message)


def reinstate(config: Config, text: str) -> Operation[types.Worker]:
    """Takes a worker into service again."""
    name = yield from _worker(config, text)
    request = workers_pb2.ReinstateWorkerRequest(name=name)
    message = yield Call(_REINSTATE, request, config.timeouts.call_seconds)
    return _decode.worker(message)


def _worker(config: Config, text: str) -> Operation[str]:
    return (yield from _names.listed(text, names.WORKER, "worker", workers(config, "")))


def create_worker_credential(
    config: Config, pool: str, note: str, ttl: int | float | str
) -> Operation[types.NewWorkerCredential]:
    """Makes a credential."""
    request = workers_pb2.CreateWorkerCredentialRequest(
        parent=_names.pool(pool), note=note, ttl_seconds=seconds_in(ttl, "ttl")
    )
    message = yield Call(_CREATE_CREDENTIAL, request, config.timeouts.call_seconds)
    return types.NewWorkerCredential(_decode.worker_credential(message.credential), message.token)


def worker_credentials(config: Config, pool: str) -> Operation[list[types.WorkerCredential]]:
    """The credentials of one pool, or of all."""
    request = workers_pb2.ListWorkerCredentialsRequest(parent=_names.pool(pool) if pool else "")
    return collect(_lists.items(config, _CREDENTIALS, request, "credentials", _decode.worker_credential))


def revoke_worker_credential(config: Config, text: str) -> Operation[types.WorkerCredential]:
    """Ends a credential."""
    name = yield from _names.listed(
        text, names.WORKER_CREDENTIAL, "credential", worker_credentials(config, "")
    )
    request = workers_pb2.RevokeWorkerCredentialRequest(name=name)
    message = yield Call(_REVOKE_CREDENTIAL, request, config.timeouts.call_seconds)
    return _decode.worker_credential(message)


def api_keys(config: Config, user: str) -> Operation[list[types.ApiKey]]:
    """The API keys of a user."""
    parent = yield from _user(config, user)
    request = identity_pb2.ListApiKeysRequest(parent=parent)
    return (yield from collect(_lists.items(config, _API_KEYS, request, "api_keys", _decode.api_key)))


def create_api_key(
    config: Config,
    user: str,
    name: str,
    roles: Sequence[str],
    ttl: int | float | str,
    scopes: Sequence[str],
) -> Operation[types.NewApiKey]:
    """Makes an API key."""
    key = identity_pb2.ApiKey(
        display_name=name,
        roles=[_names.number(identity_pb2.Role, "roles", role) for role in roles],
        scopes=scopes,
    )
    seconds = seconds_in(ttl, "ttl")
    if seconds:
        key.expire_time.FromSeconds(int(time.time()) + seconds)
    request = identity_pb2.CreateApiKeyRequest(parent=(yield from _user(config, user)), api_key=key)
    message = yield Call(_CREATE_API_KEY, request, config.timeouts.call_seconds)
    return types.NewApiKey(_decode.api_key(message.api_key), message.secret)


def revoke_api_key(config: Config, text: str, user: str) -> Operation[types.ApiKey]:
    """Ends an API key."""
    name = yield from _names.listed(text, names.API_KEY, "key", api_keys(config, user))
    request = identity_pb2.RevokeApiKeyRequest(name=name)
    message = yield Call(_REVOKE_API_KEY, request, config.timeouts.call_seconds)
    return _decode.api_key(message)


def audit(config: Config, filter: str, order_by: str, limit: int | None) -> Operation[None]:
    """Emits events of the audit log."""
    request = audit_pb2.ListAuditEventsRequest(filter=filter, order_by=order_by)
    return _lists.items(config, _AUDIT, request, "events", _decode.audit_event, limit)


def export_audit(config: Config, after_seal: int) -> Operation[None]:
    """Emits the lines of the audit log's export."""
    request = audit_pb2.ExportAuditEventsRequest(after_seal=after_seal)
    yield from _lines(config, _EXPORT_AUDIT, request)


def export_person(config: Config, user: str) -> Operation[None]:
    """Emits the lines of all that is kept about a user."""
    name = yield from _user(config, user)
    yield from _lines(config, _EXPORT_PERSON, personal_data_pb2.ExportPersonalDataRequest(name=name))
    theirs = f'owner = "{names.USER.parse(name)["user"]}"'
    mine = jobs_pb2.ListJobsRequest(parent="projects/-", filter=theirs)
    yield from _lists.items(config, _JOBS, mine, "jobs", _job_line)
    yield Emit(personal_data.end_line())


def erase_person(config: Config, user: str, hand_over_to: str) -> Operation[types.Erasure]:
    """Erases what is kept about a user."""
    request = personal_data_pb2.ErasePersonRequest(
        name=_names.user(user), hand_over_to=_names.user(hand_over_to) if hand_over_to else ""
    )
    message = yield Call(_ERASE, request, config.timeouts.call_seconds)
    return _decode.erasure(message)


def erasure(config: Config, name: str) -> Operation[types.Erasure]:
    """How far an erasure is."""
    full = names.ERASURE.format(erasure=name.removeprefix("erasures/"))
    names.ERASURE.parse(full, "erasure")
    request = personal_data_pb2.GetErasureRequest(name=full)
    message = yield Call(_ERASURE, request, config.timeouts.call_seconds)
    return _decode.erasure(message)


def _lines(config: Config, rpc: Rpc, request: Any) -> Operation[None]:
    stream = yield Open(rpc, request, config.timeouts.transfer_seconds)
    try:
        while (message := (yield Read(stream))) is not None:
            for line in message.lines:
                yield Emit(line)
    finally:
        stream.cancel()


def _job_line(job: jobs_pb2.Job) -> str:
    return personal_data.job_line(json_format.MessageToDict(job, preserving_proto_field_name=True))


def _user(config: Config, user: str) -> Operation[str]:
    """The name of a user, by id or name; of the caller without either."""
    return _names.user(user or (yield from whoami(config)).subject)


def whoami(config: Config) -> Operation[types.Identity]:
    """The caller, as the server sees it."""
    message = yield Call(_WHO_AM_I, identity_pb2.WhoAmIRequest(), config.timeouts.call_seconds)
    return _decode.identity(message)


def usage(config: Config) -> Operation[types.Usage]:
    """What is the caller's."""
    stored = yield Call(_USAGE, usage_pb2.GetUsageRequest(), config.timeouts.call_seconds)
    jobs = yield Call(_COUNT_JOBS, jobs_pb2.CountJobsRequest(), config.timeouts.call_seconds)
    return _decode.usage(stored, jobs)
