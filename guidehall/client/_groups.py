"""Groups, their service accounts, and with whom things are shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guidehall.client import _decode, _lists, _names, types
from guidehall.client._config import Config
from guidehall.client._steps import Call, Operation, Rpc, collect
from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.contracts.identity.v1 import groups_pb2, groups_pb2_grpc, identity_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.models.v1 import models_pb2, models_pb2_grpc
from guidehall.contracts.results.v1 import results_pb2, results_pb2_grpc
from guidehall.core import names
from guidehall.core.errors import InvalidArgument

_STUB = groups_pb2_grpc.GroupsServiceStub
_LIST = Rpc("storage", _STUB, "ListGroups")
_CREATE = Rpc("storage", _STUB, "CreateGroup")
_MEMBERS = Rpc("storage", _STUB, "ListGroupMembers")
_SET_MEMBER = Rpc("storage", _STUB, "SetGroupMember")
_REMOVE_MEMBER = Rpc("storage", _STUB, "RemoveGroupMember")
_ACCOUNTS = Rpc("storage", _STUB, "ListServiceAccounts")
_CREATE_ACCOUNT = Rpc("storage", _STUB, "CreateServiceAccount")

_JOBS, _DATASETS = jobs_pb2_grpc.JobsServiceStub, datasets_pb2_grpc.DatasetsServiceStub
_MODELS, _RESULTS = models_pb2_grpc.ModelsServiceStub, results_pb2_grpc.ResultsServiceStub
# By the third part of a name, such as "projects/default/jobs/…".
_SHARED: dict[str, tuple[names.Pattern, Rpc, Any]] = {
    "jobs": (names.JOB, Rpc("trainer", _JOBS, "ShareJob"), jobs_pb2.ShareJobRequest),
    "datasets": (names.DATASET, Rpc("storage", _DATASETS, "ShareDataset"), datasets_pb2.ShareDatasetRequest),
    "models": (names.MODEL, Rpc("storage", _MODELS, "ShareModel"), models_pb2.ShareModelRequest),
    "results": (names.RESULT, Rpc("storage", _RESULTS, "ShareResult"), results_pb2.ShareResultRequest),
}


def groups(config: Config) -> Operation[list[types.Group]]:
    """The caller's groups."""
    return collect(_lists.items(config, _LIST, groups_pb2.ListGroupsRequest(), "groups", _decode.group))


def create_group(config: Config, group: str, display_name: str, description: str) -> Operation[types.Group]:
    """Adds a group."""
    request = groups_pb2.CreateGroupRequest(
        group_id=group, group=groups_pb2.Group(display_name=display_name, description=description)
    )
    return _decode.group((yield Call(_CREATE, request, config.timeouts.call_seconds)))


def members(config: Config, group: str) -> Operation[list[types.GroupMember]]:
    """Who is in a group."""
    request = groups_pb2.ListGroupMembersRequest(parent=_names.group(group))
    return collect(_lists.items(config, _MEMBERS, request, "members", _decode.group_member))


def set_member(config: Config, group: str, user: str, role: str) -> Operation[types.GroupMember]:
    """Adds a member, or gives another role."""
    member = groups_pb2.GroupMember(
        user=_names.user(user), role=_names.number(identity_pb2.GroupRole, "role", role)
    )
    request = groups_pb2.SetGroupMemberRequest(parent=_names.group(group), member=member)
    return _decode.group_member((yield Call(_SET_MEMBER, request, config.timeouts.call_seconds)))


def remove_member(config: Config, group: str, user: str) -> Operation[None]:
    """Takes somebody out of a group."""
    request = groups_pb2.RemoveGroupMemberRequest(parent=_names.group(group), user=_names.user(user))
    yield Call(_REMOVE_MEMBER, request, config.timeouts.call_seconds)


def service_accounts(config: Config, group: str) -> Operation[list[types.ServiceAccount]]:
    """The service accounts of a group."""
    request = groups_pb2.ListServiceAccountsRequest(parent=_names.group(group))
    return collect(_lists.items(config, _ACCOUNTS, request, "service_accounts", _decode.service_account))


def create_service_account(
    config: Config, group: str, user: str, display_name: str, roles: Sequence[str]
) -> Operation[types.ServiceAccount]:
    """Adds a service account to a group."""
    request = groups_pb2.CreateServiceAccountRequest(
        parent=_names.group(group),
        user_id=user,
        display_name=display_name,
        roles=[_names.number(identity_pb2.Role, "roles", role) for role in roles],
    )
    return _decode.service_account((yield Call(_CREATE_ACCOUNT, request, config.timeouts.call_seconds)))


def share(config: Config, name: str, add: Sequence[str], remove: Sequence[str]) -> Operation[tuple[str, ...]]:
    """Changes who else may read something; gives who may then."""
    parts = name.split("/")
    shared = _SHARED.get(parts[2]) if len(parts) == 4 else None
    if shared is None:
        raise InvalidArgument.field("name", name, "the name of a job, a dataset, a model or a result")
    pattern, rpc, request = shared
    pattern.parse(name, "name")
    message = yield Call(rpc, request(name=name, add=add, remove=remove), config.timeouts.call_seconds)
    return tuple(message.readers)
