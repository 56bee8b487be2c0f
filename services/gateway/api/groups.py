"""Groups, their members and service accounts; with whom things are shared."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import groups_pb2, identity_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import DATASET, GROUP, JOB, MODEL, RESULT, USER
from services.gateway.api.common import (
    BackendsDep,
    Body,
    PageSize,
    PageToken,
    Text,
    answer,
    resource,
    returns,
)
from services.gateway.api.identity import ROLES, roles_of
from services.gateway.messages import enum_choices, enum_number

router = APIRouter(tags=["groups"])

_ROLE = identity_pb2.GroupRole.DESCRIPTOR
_READERS = 'Such as "group:film" or "user:ada"'
Readers = Annotated[list[Text], Field(default_factory=list, max_length=256, description=_READERS)]


class CreateGroup(Body):
    """A new group, empty."""

    group_id: Text = Field(max_length=63)
    display_name: Text = Field("", max_length=200)
    description: Text = Field("", max_length=10_000)


class SetMember(Body):
    """What a member may do."""

    role: Text = Field("MEMBER", description="READER, MEMBER, MANAGER: each may do what those before it may")


class CreateServiceAccount(Body):
    """For a program of the group."""

    user_id: Text = Field(max_length=63)
    display_name: Text = Field("", max_length=200)
    roles: list[Text] = Field(default_factory=list, description=f"SCIENTIST where empty; {ROLES}")


class Share(Body):
    """Who may read it from now on, and who no longer."""

    add: Readers
    remove: Readers


@router.get("/groups", **returns(groups_pb2.ListGroupsResponse))
async def list_groups(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """The caller's groups, for operators all, newest first."""
    request = groups_pb2.ListGroupsRequest(page_size=page_size, page_token=page_token)
    return await answer(await backends.groups.ListGroups(request, timeout=backends.timeouts.call))


@router.post("/groups", status_code=201, **returns(groups_pb2.Group))
async def create_group(body: CreateGroup, backends: BackendsDep) -> JSONResponse:
    """Adds a group. For administrators."""
    group = groups_pb2.Group(display_name=body.display_name, description=body.description)
    request = groups_pb2.CreateGroupRequest(group_id=body.group_id, group=group)
    return await answer(await backends.groups.CreateGroup(request, timeout=backends.timeouts.call), 201)


@router.get("/groups/{group}", **returns(groups_pb2.Group))
async def get_group(group: str, backends: BackendsDep) -> JSONResponse:
    """One group of which the caller is a member."""
    request = groups_pb2.GetGroupRequest(name=resource(GROUP, group=group))
    return await answer(await backends.groups.GetGroup(request, timeout=backends.timeouts.call))


@router.delete("/groups/{group}", **returns(groups_pb2.DeleteGroupResponse))
async def delete_group(group: str, backends: BackendsDep) -> JSONResponse:
    """Ends a group and its service accounts. For administrators."""
    request = groups_pb2.DeleteGroupRequest(name=resource(GROUP, group=group))
    return await answer(await backends.groups.DeleteGroup(request, timeout=backends.timeouts.call))


@router.get("/groups/{group}/members", **returns(groups_pb2.ListGroupMembersResponse))
async def list_group_members(
    group: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Who is in a group, by name."""
    request = groups_pb2.ListGroupMembersRequest(
        parent=resource(GROUP, group=group), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.groups.ListGroupMembers(request, timeout=backends.timeouts.call))


@router.put("/groups/{group}/members/{user}", **returns(groups_pb2.GroupMember))
async def set_group_member(group: str, user: str, body: SetMember, backends: BackendsDep) -> JSONResponse:
    """Adds a member, or gives another role. For managers of the group and administrators."""
    number = enum_number(_ROLE, body.role)
    if number is None:
        raise InvalidArgument.field("role", body.role, ", ".join(enum_choices(_ROLE)))
    member = groups_pb2.GroupMember(
        user=resource(USER, user=user), role=identity_pb2.GroupRole.ValueType(number)
    )
    request = groups_pb2.SetGroupMemberRequest(parent=resource(GROUP, group=group), member=member)
    return await answer(await backends.groups.SetGroupMember(request, timeout=backends.timeouts.call))


@router.delete("/groups/{group}/members/{user}", **returns(groups_pb2.RemoveGroupMemberResponse))
async def remove_group_member(group: str, user: str, backends: BackendsDep) -> JSONResponse:
    """Takes somebody out. For managers of the group and administrators. May be repeated."""
    request = groups_pb2.RemoveGroupMemberRequest(
        parent=resource(GROUP, group=group), user=resource(USER, user=user)
    )
    return await answer(await backends.groups.RemoveGroupMember(request, timeout=backends.timeouts.call))


@router.get("/groups/{group}/service-accounts", **returns(groups_pb2.ListServiceAccountsResponse))
async def list_service_accounts(
    group: str, backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """The group's service accounts, newest first."""
    request = groups_pb2.ListServiceAccountsRequest(
        parent=resource(GROUP, group=group), page_size=page_size, page_token=page_token
    )
    return await answer(await backends.groups.ListServiceAccounts(request, timeout=backends.timeouts.call))


@router.post("/groups/{group}/service-accounts", status_code=201, **returns(identity_pb2.User))
async def create_service_account(
    group: str, body: CreateServiceAccount, backends: BackendsDep
) -> JSONResponse:
    """Adds an account that comes by API keys alone, which a manager makes under `/users/{user}/keys`."""
    request = groups_pb2.CreateServiceAccountRequest(
        parent=resource(GROUP, group=group),
        user_id=body.user_id,
        display_name=body.display_name,
        roles=roles_of(body.roles),
    )
    made = await backends.groups.CreateServiceAccount(request, timeout=backends.timeouts.call)
    return await answer(made, 201)


@router.post("/service-accounts/{user}:disable", **returns(identity_pb2.User))
async def disable_service_account(user: str, backends: BackendsDep) -> JSONResponse:
    """Keeps a service account out. For managers of its group and administrators. May be repeated."""
    return await _set_disabled(user, True, backends)


@router.post("/service-accounts/{user}:enable", **returns(identity_pb2.User))
async def enable_service_account(user: str, backends: BackendsDep) -> JSONResponse:
    """Lets a service account in again. May be repeated."""
    return await _set_disabled(user, False, backends)


@router.delete("/service-accounts/{user}", **returns(groups_pb2.DeleteServiceAccountResponse))
async def delete_service_account(user: str, backends: BackendsDep) -> JSONResponse:
    """Ends a service account and its keys, for good."""
    request = groups_pb2.DeleteServiceAccountRequest(name=resource(USER, user=user))
    return await answer(await backends.groups.DeleteServiceAccount(request, timeout=backends.timeouts.call))


@router.post("/jobs/{job}:share", **returns(jobs_pb2.Job))
async def share_job(job: str, body: Share, backends: BackendsDep) -> JSONResponse:
    """Lets others read a job, or no longer; its result is shared by itself. May be repeated."""
    request = jobs_pb2.ShareJobRequest(name=resource(JOB, job=job), add=body.add, remove=body.remove)
    return await answer(await backends.jobs.ShareJob(request, timeout=backends.timeouts.call))


@router.post("/datasets/{dataset}:share", **returns(datasets_pb2.Dataset))
async def share_dataset(dataset: str, body: Share, backends: BackendsDep) -> JSONResponse:
    """Lets others read a dataset, or no longer. May be repeated."""
    request = datasets_pb2.ShareDatasetRequest(
        name=resource(DATASET, dataset=dataset), add=body.add, remove=body.remove
    )
    return await answer(await backends.datasets.ShareDataset(request, timeout=backends.timeouts.call))


@router.post("/models/{model}:share", **returns(models_pb2.Model))
async def share_model(model: str, body: Share, backends: BackendsDep) -> JSONResponse:
    """Lets others read a model and ask it for predictions, or no longer. May be repeated."""
    request = models_pb2.ShareModelRequest(
        name=resource(MODEL, model=model), add=body.add, remove=body.remove
    )
    return await answer(await backends.models.ShareModel(request, timeout=backends.timeouts.call))


@router.post("/results/{result}:share", **returns(results_pb2.Result))
async def share_result(result: str, body: Share, backends: BackendsDep) -> JSONResponse:
    """Lets others read a result and its files, or no longer. May be repeated."""
    request = results_pb2.ShareResultRequest(
        name=resource(RESULT, result=result), add=body.add, remove=body.remove
    )
    return await answer(await backends.results.ShareResult(request, timeout=backends.timeouts.call))


async def _set_disabled(user: str, disabled: bool, backends: BackendsDep) -> JSONResponse:
    request = groups_pb2.SetServiceAccountDisabledRequest(name=resource(USER, user=user), disabled=disabled)
    changed = await backends.groups.SetServiceAccountDisabled(request, timeout=backends.timeouts.call)
    return await answer(changed)
