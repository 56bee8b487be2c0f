"""IdentityService and AuditService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from guidehall.contracts.identity.v1 import audit_pb2, audit_pb2_grpc, identity_pb2, identity_pb2_grpc
from guidehall.core import names
from guidehall.core.auth import Role, current_principal
from guidehall.core.errors import InvalidArgument
from services.storage.audit.messages import KINDS, decoded, encoded
from services.storage.audit.use_cases import AuditLog
from services.storage.identity.admissions import Admissions, Call
from services.storage.identity.api_keys import ApiKey, ApiKeys, NewApiKey
from services.storage.identity.users import GroupRole, Profile, User, Users
from services.storage.servicers import common

IDENTITY = "guidehall.identity.v1.IdentityService"
AUDIT = "guidehall.identity.v1.AuditService"


class IdentityServicer(identity_pb2_grpc.IdentityServiceServicer):
    """Decode, call, encode."""

    def __init__(self, users: Users, api_keys: ApiKeys, admissions: Admissions) -> None:
        self._users = users
        self._api_keys = api_keys
        self._admissions = admissions

    async def WhoAmI(self, request: identity_pb2.WhoAmIRequest, context: Any) -> identity_pb2.Principal:
        principal = current_principal()
        return identity_pb2.Principal(
            subject=principal.subject,
            kind=KINDS[principal.kind],
            roles=encode_roles(principal.roles),
            groups=sorted(principal.groups),
            default_project=names.PROJECT.format(project=principal.project or names.DEFAULT_PROJECT),
            actor=principal.actor or "",
            writable_groups=sorted(principal.writable_groups),
            scopes=sorted(principal.scopes),
        )

    async def CreateUser(self, request: identity_pb2.CreateUserRequest, context: Any) -> identity_pb2.User:
        caller = common.caller(IDENTITY, "CreateUser")
        return encode_user(await self._users.create(caller, request.user_id, _profile(request.user)))

    async def GetUser(self, request: identity_pb2.GetUserRequest, context: Any) -> identity_pb2.User:
        return encode_user(await self._users.get(current_principal(), request.name))

    async def ListUsers(
        self, request: identity_pb2.ListUsersRequest, context: Any
    ) -> identity_pb2.ListUsersResponse:
        found, token = await self._users.page(common.paging(request))
        return identity_pb2.ListUsersResponse(users=map(encode_user, found), next_page_token=token)

    async def UpdateUser(self, request: identity_pb2.UpdateUserRequest, context: Any) -> identity_pb2.User:
        given = request.user
        caller = common.caller(IDENTITY, "UpdateUser")
        return encode_user(await self._users.update(caller, given.name, _profile(given), given.etag))

    async def CreateApiKey(
        self, request: identity_pb2.CreateApiKeyRequest, context: Any
    ) -> identity_pb2.CreateApiKeyResponse:
        given = request.api_key
        new = NewApiKey(
            user=common.user_of(request.parent),
            display_name=given.display_name,
            roles=decode_roles("api_key.roles", given.roles),
            expire_time=common.moment("api_key.expire_time", given.expire_time)
            if given.HasField("expire_time")
            else None,
            scopes=list(given.scopes),
        )
        key, secret = await self._api_keys.create(common.caller(IDENTITY, "CreateApiKey"), new)
        return identity_pb2.CreateApiKeyResponse(api_key=_api_key(key), secret=secret)

    async def ListApiKeys(
        self, request: identity_pb2.ListApiKeysRequest, context: Any
    ) -> identity_pb2.ListApiKeysResponse:
        found, token = await self._api_keys.page(current_principal(), request.parent, common.paging(request))
        return identity_pb2.ListApiKeysResponse(api_keys=map(_api_key, found), next_page_token=token)

    async def RevokeApiKey(
        self, request: identity_pb2.RevokeApiKeyRequest, context: Any
    ) -> identity_pb2.ApiKey:
        return _api_key(await self._api_keys.revoke(common.caller(IDENTITY, "RevokeApiKey"), request.name))

    async def IntrospectApiKey(
        self, request: identity_pb2.IntrospectApiKeyRequest, context: Any
    ) -> identity_pb2.IntrospectApiKeyResponse:
        bearer = await self._api_keys.introspect(request.secret)
        if bearer is None:
            return identity_pb2.IntrospectApiKeyResponse(active=False)
        principal = identity_pb2.Principal(
            subject=bearer.user.id,
            kind=KINDS[bearer.user.kind],
            roles=encode_roles(bearer.roles),
            groups=sorted(bearer.user.all_groups),
            writable_groups=sorted(bearer.user.writable_groups),
            scopes=bearer.key.scopes,
            default_project=names.PROJECT.format(project=names.DEFAULT_PROJECT),
        )
        return identity_pb2.IntrospectApiKeyResponse(
            active=True,
            principal=principal,
            api_key=bearer.key.name,
            expire_time=common.timestamp(bearer.key.expire_time),
        )

    async def ResolveUser(self, request: identity_pb2.ResolveUserRequest, context: Any) -> identity_pb2.User:
        caller = common.caller(IDENTITY, "ResolveUser")
        return encode_user(await self._users.resolve(caller, request.user_id))

    async def AdmitCall(
        self, request: identity_pb2.AdmitCallRequest, context: Any
    ) -> identity_pb2.AdmitCallResponse:
        call = Call(request.caller, request.what, request.most, request.window_seconds)
        wait_seconds = await self._admissions.admit(call)
        return identity_pb2.AdmitCallResponse(
            admitted=wait_seconds is None, retry_after_seconds=wait_seconds or 0.0
        )


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """Decode, call, encode."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    async def AppendAuditEvents(
        self, request: audit_pb2.AppendAuditEventsRequest, context: Any
    ) -> audit_pb2.AppendAuditEventsResponse:
        entries = [decoded(f"events[{index}]", event) for index, event in enumerate(request.events)]
        last = await self._audit.append(current_principal(), entries)
        return audit_pb2.AppendAuditEventsResponse(last_sequence=last)

    async def ListAuditEvents(
        self, request: audit_pb2.ListAuditEventsRequest, context: Any
    ) -> audit_pb2.ListAuditEventsResponse:
        found, token = await self._audit.page(
            current_principal(), request.filter, request.order_by, common.paging(request)
        )
        return audit_pb2.ListAuditEventsResponse(events=map(encoded, found), next_page_token=token)

    async def ExportAuditEvents(
        self, request: audit_pb2.ExportAuditEventsRequest, context: Any
    ) -> AsyncGenerator[audit_pb2.ExportAuditEventsResponse]:
        async for lines in self._audit.export(request.after_seal):
            yield audit_pb2.ExportAuditEventsResponse(lines=lines)


def decode_roles(field: str, numbers: Iterable[int]) -> list[Role]:
    """Roles that travelled.

    Raises:
        InvalidArgument: one that there is not.
    """
    try:
        return [Role(number) for number in numbers]
    except ValueError:
        raise InvalidArgument.field(field, list(numbers), ", ".join(role.name for role in Role)) from None


def encode_roles(roles: Iterable[Role]) -> Sequence[identity_pb2.Role.ValueType]:
    """Roles as they travel."""
    return [identity_pb2.Role.Value(f"ROLE_{role.name}") for role in sorted(roles)]


def _profile(message: identity_pb2.User) -> Profile:
    roles = decode_roles("user.roles", message.roles)
    return Profile(message.display_name, message.email, roles, list(message.groups), message.disabled)


def encode_user(user: User) -> identity_pb2.User:
    """A user as it travels."""
    return identity_pb2.User(
        name=user.name,
        display_name=user.display_name,
        email=user.email,
        roles=encode_roles(Role[role] for role in user.roles),
        groups=user.groups,
        disabled=user.disabled,
        create_time=common.timestamp(user.create_time),
        update_time=common.timestamp(user.update_time),
        etag=user.etag,
        kind=KINDS[user.kind],
        owner_group=names.GROUP.format(group=user.owner_group) if user.owner_group else "",
        memberships=[
            identity_pb2.Membership(group=names.GROUP.format(group=group), role=encode_group_role(role))
            for group, role in sorted(user.memberships.items())
        ],
    )


def encode_group_role(role: GroupRole) -> identity_pb2.GroupRole.ValueType:
    """A role in a group as it travels."""
    return identity_pb2.GroupRole.Value(f"GROUP_ROLE_{role.name}")


def _api_key(key: ApiKey) -> identity_pb2.ApiKey:
    return identity_pb2.ApiKey(
        name=key.name,
        display_name=key.display_name,
        roles=encode_roles(Role[role] for role in key.roles),
        prefix=key.prefix,
        create_time=common.timestamp(key.create_time),
        expire_time=common.timestamp(key.expire_time),
        revoke_time=common.timestamp(key.revoke_time),
        last_use_time=common.timestamp(key.last_use_time),
        scopes=key.scopes,
    )
