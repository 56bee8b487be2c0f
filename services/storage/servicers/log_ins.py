"""LogInsService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

from typing import Any

from guidehall.contracts.identity.v1 import accounts_pb2, log_ins_pb2, log_ins_pb2_grpc
from guidehall.core.auth import current_principal
from services.storage.identity.devices import Devices
from services.storage.identity.providers import Identity, Proof, Providers
from services.storage.servicers import common
from services.storage.servicers.accounts import decode_origin, encode_tokens

LOG_INS = "guidehall.identity.v1.LogInsService"


class LogInsServicer(log_ins_pb2_grpc.LogInsServiceServicer):
    """Decode, call, encode."""

    def __init__(self, providers: Providers, devices: Devices) -> None:
        self._providers = providers
        self._devices = devices

    async def LogInWithProvider(
        self, request: log_ins_pb2.LogInWithProviderRequest, context: Any
    ) -> accounts_pb2.SessionTokens:
        proof = Proof(
            request.provider,
            request.subject,
            request.username,
            request.display_name,
            request.verified_email,
            list(request.groups),
        )
        caller, origin = common.caller(LOG_INS, "LogInWithProvider"), decode_origin(request.origin, context)
        return encode_tokens(await self._providers.log_in(caller, proof, origin))

    async def CreateIdentity(
        self, request: log_ins_pb2.CreateIdentityRequest, context: Any
    ) -> log_ins_pb2.Identity:
        caller = common.caller(LOG_INS, "CreateIdentity")
        return _identity(
            await self._providers.link(caller, request.parent, request.provider, request.subject)
        )

    async def ListIdentities(
        self, request: log_ins_pb2.ListIdentitiesRequest, context: Any
    ) -> log_ins_pb2.ListIdentitiesResponse:
        found, token = await self._providers.page(current_principal(), request.parent, common.paging(request))
        return log_ins_pb2.ListIdentitiesResponse(identities=map(_identity, found), next_page_token=token)

    async def DeleteIdentity(
        self, request: log_ins_pb2.DeleteIdentityRequest, context: Any
    ) -> log_ins_pb2.DeleteIdentityResponse:
        await self._providers.unlink(common.caller(LOG_INS, "DeleteIdentity"), request.name)
        return log_ins_pb2.DeleteIdentityResponse()

    async def BeginDeviceLogIn(
        self, request: log_ins_pb2.BeginDeviceLogInRequest, context: Any
    ) -> log_ins_pb2.BeginDeviceLogInResponse:
        codes = await self._devices.begin(decode_origin(request.origin, context))
        return log_ins_pb2.BeginDeviceLogInResponse(
            device_code=codes.device_code,
            user_code=codes.user_code,
            expire_time=common.timestamp(codes.expire_time),
            interval_seconds=codes.interval_seconds,
        )

    async def FinishDeviceLogIn(
        self, request: log_ins_pb2.FinishDeviceLogInRequest, context: Any
    ) -> accounts_pb2.SessionTokens:
        caller, origin = common.caller(LOG_INS, "FinishDeviceLogIn"), decode_origin(request.origin, context)
        return encode_tokens(await self._devices.finish(caller, request.device_code, origin))

    async def GetDeviceLogIn(
        self, request: log_ins_pb2.GetDeviceLogInRequest, context: Any
    ) -> log_ins_pb2.DeviceLogIn:
        asked = await self._devices.find(common.caller(LOG_INS, "GetDeviceLogIn"), request.user_code)
        return log_ins_pb2.DeviceLogIn(
            client=asked.client,
            address=asked.address,
            create_time=common.timestamp(asked.create_time),
            expire_time=common.timestamp(asked.expire_time),
        )

    async def DecideDeviceLogIn(
        self, request: log_ins_pb2.DecideDeviceLogInRequest, context: Any
    ) -> log_ins_pb2.DecideDeviceLogInResponse:
        caller = common.caller(LOG_INS, "DecideDeviceLogIn")
        await self._devices.decide(caller, request.user_code, approve=request.approve)
        return log_ins_pb2.DecideDeviceLogInResponse()


def _identity(identity: Identity) -> log_ins_pb2.Identity:
    return log_ins_pb2.Identity(
        name=identity.name,
        provider=identity.provider,
        subject=identity.subject,
        create_time=common.timestamp(identity.create_time),
        last_use_time=common.timestamp(identity.last_use_time),
    )
