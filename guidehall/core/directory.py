"""Storage as the directory of callers: whom an API key speaks for, what is kept about a user."""

from __future__ import annotations

import logging

import grpc
import grpc.aio

from guidehall.contracts.identity.v1 import identity_pb2, identity_pb2_grpc
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
        principal = _principal(answer.principal.subject, answer.principal, answer.api_key)
        return Answer(principal, ends)

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
        return Answer(None if answer.disabled else _principal(subject, answer))


def _principal(
    subject: str, message: identity_pb2.Principal | identity_pb2.User, credential: str | None = None
) -> Principal:
    """A user; the numbers of roles are those of the proto, and what this version does not know it leaves
    out."""
    known = {role.value for role in Role}
    return Principal(
        subject,
        "user",
        frozenset(Role(number) for number in message.roles if number in known),
        frozenset(message.groups),
        credential_id=credential,
    )


def _unavailable(error: grpc.aio.AioRpcError) -> Unavailable:
    # Whatever storage has against this service is nothing that its callers could put right.
    logger.warning("storage does not say who calls: %s", from_rpc_error(error).message)
    return Unavailable(
        "storage cannot be asked who calls", reason="IDENTITY_UNAVAILABLE", retry_after_seconds=1.0
    )
