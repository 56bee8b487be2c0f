"""AccountsService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from guidehall.contracts.identity.v1 import accounts_pb2, accounts_pb2_grpc, identity_pb2
from guidehall.core.auth import Role, current_principal
from services.storage.identity.accounts import Accounts, Invitation, NewInvitation, Registration
from services.storage.identity.sessions import Origin, Session, Sessions, Tokens
from services.storage.servicers import common
from services.storage.servicers.identity import decode_roles, encode_roles, encode_user

ACCOUNTS = "guidehall.identity.v1.AccountsService"


class AccountsServicer(accounts_pb2_grpc.AccountsServiceServicer):
    """Decode, call, encode."""

    def __init__(self, accounts: Accounts, sessions: Sessions) -> None:
        self._accounts = accounts
        self._sessions = sessions

    async def GetLogInOptions(
        self, request: accounts_pb2.GetLogInOptionsRequest, context: Any
    ) -> accounts_pb2.LogInOptions:
        methods, registration = self._accounts.options()
        return accounts_pb2.LogInOptions(methods=methods, registration=registration)

    async def LogIn(self, request: accounts_pb2.LogInRequest, context: Any) -> accounts_pb2.SessionTokens:
        caller = common.caller(ACCOUNTS, "LogIn")
        origin = decode_origin(request.origin, context)
        return encode_tokens(await self._accounts.log_in(caller, request.user_id, request.password, origin))

    async def RefreshSession(
        self, request: accounts_pb2.RefreshSessionRequest, context: Any
    ) -> accounts_pb2.SessionTokens:
        caller = common.caller(ACCOUNTS, "RefreshSession")
        origin = decode_origin(request.origin, context)
        return encode_tokens(await self._sessions.refresh(caller, request.refresh_token, origin))

    async def LogOut(self, request: accounts_pb2.LogOutRequest, context: Any) -> accounts_pb2.LogOutResponse:
        await self._sessions.log_out(common.caller(ACCOUNTS, "LogOut"), request.refresh_token)
        return accounts_pb2.LogOutResponse()

    async def Register(self, request: accounts_pb2.RegisterRequest, context: Any) -> identity_pb2.User:
        wanted = Registration(
            request.user_id, request.password, request.display_name, request.email, request.invitation
        )
        caller, origin = common.caller(ACCOUNTS, "Register"), decode_origin(request.origin, context)
        return encode_user(await self._accounts.register(caller, wanted, origin))

    async def ChangePassword(
        self, request: accounts_pb2.ChangePasswordRequest, context: Any
    ) -> accounts_pb2.SessionTokens:
        caller, origin = common.caller(ACCOUNTS, "ChangePassword"), decode_origin(request.origin, context)
        return encode_tokens(
            await self._accounts.change_password(
                caller, request.current_password, request.new_password, origin
            )
        )

    async def SetPassword(
        self, request: accounts_pb2.SetPasswordRequest, context: Any
    ) -> accounts_pb2.SetPasswordResponse:
        caller = common.caller(ACCOUNTS, "SetPassword")
        await self._accounts.set_password(caller, request.name, request.password)
        return accounts_pb2.SetPasswordResponse()

    async def ListSessions(
        self, request: accounts_pb2.ListSessionsRequest, context: Any
    ) -> accounts_pb2.ListSessionsResponse:
        found, token = await self._sessions.page(current_principal(), request.parent, common.paging(request))
        return accounts_pb2.ListSessionsResponse(sessions=map(_session, found), next_page_token=token)

    async def RevokeSession(
        self, request: accounts_pb2.RevokeSessionRequest, context: Any
    ) -> accounts_pb2.Session:
        return _session(await self._sessions.revoke(common.caller(ACCOUNTS, "RevokeSession"), request.name))

    async def RevokeSessions(
        self, request: accounts_pb2.RevokeSessionsRequest, context: Any
    ) -> accounts_pb2.RevokeSessionsResponse:
        caller = common.caller(ACCOUNTS, "RevokeSessions")
        revoked = await self._sessions.revoke_all(caller, request.parent)
        return accounts_pb2.RevokeSessionsResponse(revoked=revoked)

    async def CreateInvitation(
        self, request: accounts_pb2.CreateInvitationRequest, context: Any
    ) -> accounts_pb2.CreateInvitationResponse:
        given = request.invitation
        new = NewInvitation(
            note=given.note,
            roles=decode_roles("invitation.roles", given.roles),
            groups=list(given.groups),
            expire_time=common.moment("invitation.expire_time", given.expire_time)
            if given.HasField("expire_time")
            else None,
        )
        made, secret = await self._accounts.invite(common.caller(ACCOUNTS, "CreateInvitation"), new)
        return accounts_pb2.CreateInvitationResponse(invitation=_invitation(made), secret=secret)

    async def ListInvitations(
        self, request: accounts_pb2.ListInvitationsRequest, context: Any
    ) -> accounts_pb2.ListInvitationsResponse:
        found, token = await self._accounts.invitations(common.paging(request))
        return accounts_pb2.ListInvitationsResponse(
            invitations=map(_invitation, found), next_page_token=token
        )

    async def DeleteInvitation(
        self, request: accounts_pb2.DeleteInvitationRequest, context: Any
    ) -> accounts_pb2.DeleteInvitationResponse:
        await self._accounts.withdraw(common.caller(ACCOUNTS, "DeleteInvitation"), request.name)
        return accounts_pb2.DeleteInvitationResponse()


def decode_origin(told: accounts_pb2.Origin, context: Any) -> Origin:
    """Where somebody calls from: as the service says that asks for them, else what the connection shows."""
    principal = current_principal()
    if principal.kind == "service" or principal.actor:
        return Origin(told.client, told.address)
    address = unquote(context.peer().partition(":")[2]).rpartition(":")[0].strip("[]")
    return Origin(told.client, address)


def encode_tokens(tokens: Tokens) -> accounts_pb2.SessionTokens:
    return accounts_pb2.SessionTokens(
        session=_session(tokens.session),
        user=encode_user(tokens.user),
        access_token=tokens.access_token,
        access_expire_time=common.timestamp(tokens.access_expire_time),
        refresh_token=tokens.refresh_token,
    )


def _session(session: Session) -> accounts_pb2.Session:
    return accounts_pb2.Session(
        name=session.name,
        method=session.method,
        client=session.client,
        address=session.address,
        create_time=common.timestamp(session.create_time),
        last_use_time=common.timestamp(session.last_use_time),
        expire_time=common.timestamp(session.expire_time),
        revoke_time=common.timestamp(session.revoke_time),
    )


def _invitation(invitation: Invitation) -> accounts_pb2.Invitation:
    return accounts_pb2.Invitation(
        name=invitation.name,
        note=invitation.note,
        roles=encode_roles(Role[role] for role in invitation.roles),
        groups=invitation.groups,
        create_time=common.timestamp(invitation.create_time),
        expire_time=common.timestamp(invitation.expire_time),
    )
