"""Storage as the directory of callers: whom an API key speaks for, what is kept about a user."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import grpc
import grpc.aio

from guidehall.contracts.identity.v1 import identity_pb2, identity_pb2_grpc
from guidehall.core import names
from guidehall.core.auth import Answer, Principal, Role
from guidehall.core.errors import Unavailable, from_rpc_error

logger = logging.getLogger(__name__)

_SERVICE = identity_pb2.DESCRIPTOR.services_by_name["IdentityService"].full_name
# What may be asked again when storage was away.
IDEMPOTENT = (f"{_SERVICE}/IntrospectApiKey", f"{_SERVICE}/ResolveUser")


class RemoteDirectory:
    """Asks storage over a channel, as the service that the channel speaks for."""

    def __init__(self, channel: grpc.aio.Channel, call_seconds: float) -> None:
        self._identity = identity_pb2_grpc.IdentityServiceStub(channel)
        self._call_seconds = call_seconds

    async def bearer(self, secret: str) -> Answer[Principal]:
        """Whom an API key speaks for.

        Raises:
            Unavailable: storage does not answer, or not as it should.
        """
        request = identity_pb2.IntrospectApiKeyRequest(secret=secret)
        try:
            answer = await self._identity.IntrospectApiKey(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        if not answer.active:
            return Answer(None)
        ends = answer.expire_time.ToMicroseconds() / 1e6 if answer.HasField("expire_time") else None
        return Answer(_key_bearer(answer.principal, answer.api_key), ends)

    async def user(self, subject: str) -> Answer[Principal]:
        """A user of whom somebody else has made sure; nobody for one who is disabled.

        Raises:
            Unavailable: storage does not answer, or not as it should.
        """
        request = identity_pb2.ResolveUserRequest(user_id=subject)
        try:
            answer = await self._identity.ResolveUser(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise _unavailable(error) from error
        return Answer(None if answer.disabled else _user(subject, answer))


def _key_bearer(message: identity_pb2.Principal, credential: str) -> Principal:
    is_program = message.kind == identity_pb2.PRINCIPAL_KIND_SERVICE_ACCOUNT
    return Principal(
        message.subject,
        "service_account" if is_program else "user",
        _roles(message.roles),
        frozenset(message.groups),
        credential_id=credential,
        writable_groups=frozenset(message.writable_groups),
        scopes=frozenset(message.scopes),
    )


def _user(subject: str, message: identity_pb2.User) -> Principal:
    given = {names.GROUP.parse(item.group, "group")["group"]: item.role for item in message.memberships}
    return Principal(
        subject,
        "user",
        _roles(message.roles),
        frozenset({*message.groups, *given}),
        writable_groups=frozenset(
            group for group, role in given.items() if role >= identity_pb2.GROUP_ROLE_MEMBER
        ),
    )


def _roles(numbers: Iterable[int]) -> frozenset[Role]:
    """Their numbers are those of the proto; what this version does not know it leaves out."""
    known = {role.value for role in Role}
    return frozenset(Role(number) for number in numbers if number in known)


def _unavailable(error: grpc.aio.AioRpcError) -> Unavailable:
    # Whatever storage has against this service is nothing that its callers could put right.
    logger.warning("storage does not say who calls: %s", from_rpc_error(error).message)
    return Unavailable(
        "storage cannot be asked who calls", reason="IDENTITY_UNAVAILABLE", retry_after_seconds=1.0
    )
