"""What erasing a person means for the jobs: storage says who is to go, the jobs are deleted or change hands.

Every step may be repeated: storage is told only when nothing is left, and says so again until it is told.
"""

from __future__ import annotations

import asyncio
import logging

import grpc
from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from guidehall.contracts.identity.v1 import personal_data_pb2, personal_data_pb2_grpc
from guidehall.core import names
from guidehall.core.access import GROUP_PROJECT, user_reader
from guidehall.core.auth import Principal
from guidehall.core.errors import AppError, from_rpc_error
from services.trainer.control import Control
from services.trainer.database import Database
from services.trainer.lifecycle import State
from services.trainer.records import Job
from services.trainer.settings import TrainerSettings
from services.trainer.tables import jobs, outbox, request_ids

logger = logging.getLogger(__name__)

_SERVICE = "trainer"
_TOGETHER = 50


class Erasures:
    """Runs in every replica; doing the same twice harms nobody."""

    def __init__(
        self,
        database: Database,
        control: Control,
        channel: grpc.aio.Channel,
        settings: TrainerSettings,
    ) -> None:
        self._database = database
        self._control = control
        self._stub = personal_data_pb2_grpc.PersonalDataServiceStub(channel)
        self._call_seconds = settings.storage_seconds
        self._interval = settings.sweep.erasure_seconds

    async def run(self) -> None:
        """Asks storage now and then until cancelled."""
        while True:
            try:
                await self.advance()
            except AppError as error:
                logger.debug("erasures wait: %s", error.message)
            except SQLAlchemyError:
                # The rest of the service goes on.
                logger.exception("an erasure cannot go on")
            await asyncio.sleep(self._interval)

    async def advance(self) -> None:
        """Takes the trainer's step of every erasure that has come to it, as far as that goes now.

        Raises:
            Unavailable: storage or the database does not answer.
        """
        for erasure in await self._waiting():
            user = names.USER.parse(erasure.user)["user"]
            # What is in a group's project is the group's: it stays, without the name of who submitted it.
            left = await self._hand_over(user, erasure.pseudonym, jobs.c.project.startswith(GROUP_PROJECT))
            await self._stop_sharing(user)
            if erasure.hand_over_to:
                heir = names.USER.parse(erasure.hand_over_to)["user"]
                left = await self._hand_over(user, heir)
            else:
                left = await self._delete(user) or left
            if left or await self._untold(user):
                continue
            request = personal_data_pb2.CompleteErasureStepRequest(name=erasure.name)
            try:
                await self._stub.CompleteErasureStep(request, timeout=self._call_seconds)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

    async def _waiting(self) -> list[personal_data_pb2.Erasure]:
        request = personal_data_pb2.ListErasuresRequest(page_size=1000, waiting_for_caller=True)
        try:
            answer = await self._stub.ListErasures(request, timeout=self._call_seconds)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return list(answer.erasures)

    async def _hand_over(self, user: str, heir: str, *which: ColumnElement[bool]) -> bool:
        """Gives jobs to somebody else, but for those whose result is just being published for their owner;
        whether any is left.
        """
        publishing = and_(jobs.c.state == State.SUCCEEDED.value, jobs.c.result.is_(None))
        theirs = and_(jobs.c.owner == user, *which)
        changed = update(jobs).where(theirs, ~publishing)
        # Nor is the person told any more how they end.
        values = {
            "owner": heir,
            "notifications": [],
            "version": jobs.c.version + 1,
            "update_time": func.now(),
        }
        async with self._database.unit() as unit:
            await unit.connection.execute(changed.values(values))
            await unit.connection.execute(delete(request_ids).where(request_ids.c.subject == f"user:{user}"))
            left = await unit.connection.scalar(select(func.count()).select_from(jobs).where(theirs))
        return bool(left)

    async def _stop_sharing(self, user: str) -> None:
        """No job of others says any more that it is shared with this person."""
        reader = user_reader(user)
        shared = update(jobs).where(jobs.c.readers.contains([reader]))
        values = {
            "readers": func.array_remove(jobs.c.readers, reader),
            "version": jobs.c.version + 1,
            "update_time": func.now(),
        }
        async with self._database.unit() as unit:
            await unit.connection.execute(shared.values(values))

    async def _delete(self, user: str) -> bool:
        """Cancels jobs and deletes those that have ended; whether there were any."""
        theirs = select(jobs).where(jobs.c.owner == user).order_by(jobs.c.id).limit(_TOGETHER)
        found: list[Job] = []
        while True:
            # Those that wait for their end must not keep the others from being reached.
            query = theirs.where(jobs.c.id > found[-1].id) if found else theirs
            async with self._database.statements() as connection:
                rows = await connection.execute(query)
                some = [Job.of(row) for row in rows.mappings()]
            for job in some:
                await self._end(job)
            found += some
            if len(some) < _TOGETHER:
                return bool(found)

    async def _end(self, job: Job) -> None:
        """Deletes a job, or has it end first."""
        ourselves = Principal(_SERVICE, "service")
        try:
            if job.complete:
                await self._control.delete(ourselves, job.name, "")
            elif job.state is not State.SUCCEEDED:
                await self._control.wish(ourselves, "CancelJob", job.name)
        except AppError as error:
            logger.debug("%s waits: %s", job.name, error.message)

    async def _untold(self, user: str) -> bool:
        """Whether storage has still to hear of something that this person did, or is to have."""
        names_them = or_(*(outbox.c.payload[key].astext == user for key in ("subject", "owner", "log_owner")))
        untold = select(func.count()).select_from(outbox).where(names_them)
        async with self._database.statements() as connection:
            return bool((await connection.execute(untold)).scalar_one())
