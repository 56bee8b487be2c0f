"""Groups, their service accounts, and with whom things are shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guidehall.client import _decode, _lists, types
from guidehall.client._config import Config
from guidehall.client._platform import role_number
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

_SHARED: tuple[tuple[names.Pattern, Rpc, Any], ...] = (
    (names.JOB, Rpc("trainer", jobs_pb2_grpc.JobsServiceStub, "ShareJob"), jobs_pb2.ShareJobRequest),
    (
        names.DATASET,
        Rpc("storage", datasets_pb2_grpc.DatasetsServiceStub, "ShareDataset"),
        datasets_pb2.ShareDatasetRequest,
    ),
    (
        names.MODEL,
        Rpc("storage", models_pb2_grpc.ModelsServiceStub, "ShareModel"),
        models_pb2.ShareModelRequest,
    ),
    (
        names.RESULT,
        Rpc("storage", results_pb2_grpc.ResultsServiceStub, "ShareResult"),
        results_pb2.ShareResultRequest,
    ),
)


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
    request = groups_pb2.ListGroupMembersRequest(parent=_group(group))
    return collect(_lists.items(config, _MEMBERS, request, "members", _decode.group_member))


def set_member(config: Config, group: str, user: str, role: str) -> Operation[types.GroupMember]:
    """Adds a member, or gives another role."""
    known = [value.name.removeprefix("GROUP_ROLE_") for value in identity_pb2.GroupRole.DESCRIPTOR.values[1:]]
    if role.upper() not in known:
        raise InvalidArgument.field("role", role, ", ".join(known))
    member = groups_pb2.GroupMember(
        user=_user(user), role=identity_pb2.GroupRole.Value(f"GROUP_ROLE_{role.upper()}")
    )
    request = groups_pb2.SetGroupMemberRequest(parent=_group(group), member=member)
    return _decode.group_member((yield Call(_SET_MEMBER, request, config.timeouts.call_seconds)))


def remove_member(config: Config, group: str, user: str) -> Operation[None]:
    """Takes somebody out of a group."""
    request = groups_pb2.RemoveGroupMemberRequest(parent=_group(group), user=_user(user))
    yield Call(_REMOVE_MEMBER, request, config.timeouts.call_seconds)


def service_accounts(config: Config, group: str) -> Operation[list[types.ServiceAccount]]:
    """The service accounts of a group."""
    request = groups_pb2.ListServiceAccountsRequest(parent=_group(group))
    return collect(_lists.items(config, _ACCOUNTS, request, "service_accounts", _decode.service_account))


def create_service_account(
    config: Config, group: str, user: str, display_name: str, roles: Sequence[str]
) -> Operation[types.ServiceAccount]:
    """Adds a service account to a group."""
    request = groups_pb2.CreateServiceAccountRequest(
        parent=_group(group),
        user_id=user,
        display_name=display_name,
        roles=[role_number(role) for role in roles],
    )
    return _decode.service_account((yield Call(_CREATE_ACCOUNT, request, config.timeouts.call_seconds)))


def share(config: Config, name: str, add: Sequence[str], remove: Sequence[str]) -> Operation[tuple[str, ...]]:
    """Changes who else may read something; gives who may then."""
    for pattern, rpc, request in _SHARED:
        kind = pattern.template.split("/")[2]
        if name.count("/") == 3 and name.split("/")[2] == kind:
            pattern.parse(name, "name")
            message = yield Call(
                rpc, request(name=name, add=add, remove=remove), config.timeouts.call_seconds
            )
            return tuple(message.readers)
    raise InvalidArgument.field("name", name, "the name of a job, a dataset, a model or a result")


def _group(text: str) -> str:
    name = names.GROUP.format(group=text.removeprefix("groups/"))
    names.GROUP.parse(name, "group")
    return name


def _user(text: str) -> str:
    name = names.USER.format(user=text.removeprefix("users/"))
    names.USER.parse(name, "user")
    return name
