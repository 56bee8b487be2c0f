"""PersonalDataService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from guidehall.contracts.identity.v1 import personal_data_pb2, personal_data_pb2_grpc
from guidehall.core import names
from guidehall.core.auth import current_principal
from services.storage.database import Database
from services.storage.personal_data.erasures import Erasure, Erasures
from services.storage.personal_data.export import export
from services.storage.servicers import common

PERSONAL_DATA = "guidehall.identity.v1.PersonalDataService"


class PersonalDataServicer(personal_data_pb2_grpc.PersonalDataServiceServicer):
    """Decode, call, encode."""

    def __init__(self, database: Database, erasures: Erasures) -> None:
        self._database = database
        self._erasures = erasures

    async def ExportPersonalData(
        self, request: personal_data_pb2.ExportPersonalDataRequest, context: Any
    ) -> AsyncGenerator[personal_data_pb2.ExportPersonalDataResponse]:
        async for lines in export(self._database, current_principal(), request.name):
            yield personal_data_pb2.ExportPersonalDataResponse(lines=lines)

    async def ErasePerson(
        self, request: personal_data_pb2.ErasePersonRequest, context: Any
    ) -> personal_data_pb2.Erasure:
        caller = common.caller(PERSONAL_DATA, "ErasePerson")
        return _erasure(await self._erasures.begin(caller, request.name, request.hand_over_to))

    async def GetErasure(
        self, request: personal_data_pb2.GetErasureRequest, context: Any
    ) -> personal_data_pb2.Erasure:
        return _erasure(await self._erasures.get(request.name))

    async def ListErasures(
        self, request: personal_data_pb2.ListErasuresRequest, context: Any
    ) -> personal_data_pb2.ListErasuresResponse:
        waiting_for = current_principal().subject if request.waiting_for_caller else ""
        found, token = await self._erasures.page(waiting_for, common.paging(request))
        return personal_data_pb2.ListErasuresResponse(erasures=map(_erasure, found), next_page_token=token)

    async def CompleteErasureStep(
        self, request: personal_data_pb2.CompleteErasureStepRequest, context: Any
    ) -> personal_data_pb2.Erasure:
        return _erasure(await self._erasures.complete_step(current_principal().subject, request.name))


def _erasure(erasure: Erasure) -> personal_data_pb2.Erasure:
    return personal_data_pb2.Erasure(
        name=erasure.name,
        user=_user(erasure.user_id),
        pseudonym=erasure.pseudonym,
        hand_over_to=_user(erasure.hand_over_to),
        steps_done=erasure.steps_done,
        steps_left=erasure.steps_left,
        create_time=common.timestamp(erasure.create_time),
        due_time=common.timestamp(erasure.due_time),
        done_time=common.timestamp(erasure.done_time),
    )


def _user(user_id: str | None) -> str:
    return names.USER.format(user=user_id) if user_id else ""
