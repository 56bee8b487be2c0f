"""Checkpoints on their way to storage: one at a time, always the newest."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from guidehall.core.errors import AppError
from guidehall.core.faults import fault_point
from services.trainer.worker.lease import CheckpointFile, LeasedJob
from services.trainer.worker.retry import Pauses
from services.trainer.worker.session import LeaseLost
from services.trainer.worker.storage_client import StorageClient
from services.trainer.worker.trainer_client import StagedObject, TrainerClient, is_stale, may_pass

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True)
class SavedState:
    """A checkpoint in a file of its own."""

    step: int
    file: Path
    described: StagedObject


class CheckpointUploads:
    """Uploads and commits what `put` gets. One that waits gives way to a newer one.

    A checkpoint that storage refuses costs the job nothing but the checkpoint.
    """

    def __init__(
        self, storage: StorageClient, trainer: TrainerClient, job: LeasedJob, pauses: Pauses
    ) -> None:
        self._storage = storage
        self._trainer = trainer
        self._job = job
        self._pauses = pauses
        # The newest that another run can go on from.
        self.committed = job.checkpoint
        self._ordinal = job.checkpoint.ordinal if job.checkpoint is not None else 0
        self._newest: SavedState | None = None
        self._waiting = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._uploading: SavedState | None = None

    def put(self, state: SavedState) -> None:
        """Takes a checkpoint; its file is removed in the end."""
        if self._newest is not None and self._newest is not self._uploading:
            self._newest.file.unlink(missing_ok=True)
        self._newest = state
        self._waiting.set()
        self._idle.clear()

    async def settled(self) -> None:
        """Waits until nothing is on its way."""
        await self._idle.wait()

    async def run(self) -> None:
        """Uploads until it is cancelled.

        Raises:
            LeaseLost: the trainer refused a checkpoint because the job is somebody else's now.
        """
        while True:
            await self._waiting.wait()
            state = self._uploading = self._newest
            assert state is not None  # noqa: S101 (what `_waiting` means)
            self._ordinal += 1
            await self._upload(state)
            state.file.unlink(missing_ok=True)
            self._uploading = None
            if self._newest is state:
                self._newest = None
                self._waiting.clear()
                self._idle.set()

    async def _upload(self, state: SavedState) -> None:
        for pause in self._pauses:
            try:
                fault_point("worker.checkpoint.told")
                staged = await self._storage.stage_checkpoint(self._ordinal, state.file, state.described)
                fault_point("worker.checkpoint.staged")
                await self._commit(state, staged)
                fault_point("worker.checkpoint.committed")
                return
            except AppError as error:
                logger.warning("checkpoint of %s: %s", self._job.job, error.code.name)
                if not may_pass(error):
                    return
            await asyncio.sleep(pause)
            if self._newest is not state:
                return

    async def _commit(self, state: SavedState, staged: StagedObject) -> None:
        try:
            await self._trainer.commit_checkpoint(self._job, self._ordinal, state.step, staged)
        except AppError as error:
            if is_stale(error):
                raise LeaseLost(error.message) from None
            raise
        self.committed = CheckpointFile(
            self._job.job, self._ordinal, self._job.epoch, staged.sha256, staged.size_bytes
        )
