"""GroupsService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

from typing import Any

from guidehall.contracts.identity.v1 import groups_pb2, groups_pb2_grpc, identity_pb2
from guidehall.core import names
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument
from services.storage.identity.groups import Group, Groups, Member
from services.storage.identity.users import GroupRole
from services.storage.servicers import common
from services.storage.servicers.identity import decode_roles, encode_group_role, encode_user

GROUPS = "guidehall.identity.v1.GroupsService"


class GroupsServicer(groups_pb2_grpc.GroupsServiceServicer):
    """Decode, call, encode."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    async def CreateGroup(self, request: groups_pb2.CreateGroupRequest, context: Any) -> groups_pb2.Group:
        given = request.group
        caller = common.caller(GROUPS, "CreateGroup")
        made = await self._groups.create(caller, request.group_id, given.display_name, given.description)
        return _group(made)

    async def GetGroup(self, request: groups_pb2.GetGroupRequest, context: Any) -> groups_pb2.Group:
        return _group(await self._groups.get(current_principal(), request.name))

    async def ListGroups(
        self, request: groups_pb2.ListGroupsRequest, context: Any
    ) -> groups_pb2.ListGroupsResponse:
        found, token = await self._groups.page(current_principal(), common.paging(request))
        return groups_pb2.ListGroupsResponse(groups=map(_group, found), next_page_token=token)

    async def UpdateGroup(self, request: groups_pb2.UpdateGroupRequest, context: Any) -> groups_pb2.Group:
        given = request.group
        caller = common.caller(GROUPS, "UpdateGroup")
        return _group(
            await self._groups.update(caller, given.name, given.display_name, given.description, given.etag)
        )

    async def DeleteGroup(
        self, request: groups_pb2.DeleteGroupRequest, context: Any
    ) -> groups_pb2.DeleteGroupResponse:
        await self._groups.delete(common.caller(GROUPS, "DeleteGroup"), request.name)
        return groups_pb2.DeleteGroupResponse()

    async def ListGroupMembers(
        self, request: groups_pb2.ListGroupMembersRequest, context: Any
    ) -> groups_pb2.ListGroupMembersResponse:
        found, token = await self._groups.members(
            current_principal(), request.parent, request.page_size, request.page_token
        )
        return groups_pb2.ListGroupMembersResponse(members=map(_member, found), next_page_token=token)

    async def SetGroupMember(
        self, request: groups_pb2.SetGroupMemberRequest, context: Any
    ) -> groups_pb2.GroupMember:
        try:
            role = GroupRole(request.member.role)
        except ValueError:
            allowed = ", ".join(role.name for role in GroupRole)
            raise InvalidArgument.field("member.role", request.member.role, allowed) from None
        user = names.USER.parse(request.member.user, "member.user")["user"]
        caller = common.caller(GROUPS, "SetGroupMember")
        return _member(await self._groups.set_member(caller, request.parent, Member(user, role)))

    async def RemoveGroupMember(
        self, request: groups_pb2.RemoveGroupMemberRequest, context: Any
    ) -> groups_pb2.RemoveGroupMemberResponse:
        user = names.USER.parse(request.user, "user")["user"]
        await self._groups.remove_member(common.caller(GROUPS, "RemoveGroupMember"), request.parent, user)
        return groups_pb2.RemoveGroupMemberResponse()

    async def CreateServiceAccount(
        self, request: groups_pb2.CreateServiceAccountRequest, context: Any
    ) -> identity_pb2.User:
        caller = common.caller(GROUPS, "CreateServiceAccount")
        roles = decode_roles("roles", request.roles)
        return encode_user(
            await self._groups.create_account(
                caller, request.parent, request.user_id, request.display_name, roles
            )
        )

    async def ListServiceAccounts(
        self, request: groups_pb2.ListServiceAccountsRequest, context: Any
    ) -> groups_pb2.ListServiceAccountsResponse:
        found, token = await self._groups.accounts(
            current_principal(), request.parent, common.paging(request)
        )
        return groups_pb2.ListServiceAccountsResponse(
            service_accounts=map(encode_user, found), next_page_token=token
        )

    async def SetServiceAccountDisabled(
        self, request: groups_pb2.SetServiceAccountDisabledRequest, context: Any
    ) -> identity_pb2.User:
        caller = common.caller(GROUPS, "SetServiceAccountDisabled")
        return encode_user(await self._groups.set_disabled(caller, request.name, request.disabled))

    async def DeleteServiceAccount(
        self, request: groups_pb2.DeleteServiceAccountRequest, context: Any
    ) -> groups_pb2.DeleteServiceAccountResponse:
        await self._groups.delete_account(common.caller(GROUPS, "DeleteServiceAccount"), request.name)
        return groups_pb2.DeleteServiceAccountResponse()


def _group(group: Group) -> groups_pb2.Group:
    return groups_pb2.Group(
        name=group.name,
        display_name=group.display_name,
        description=group.description,
        create_time=common.timestamp(group.create_time),
        update_time=common.timestamp(group.update_time),
        etag=group.etag,
        role=identity_pb2.GROUP_ROLE_UNSPECIFIED if group.role is None else encode_group_role(group.role),
    )


def _member(member: Member) -> groups_pb2.GroupMember:
    return groups_pb2.GroupMember(
        user=names.USER.format(user=member.user), role=encode_group_role(member.role)
    )
