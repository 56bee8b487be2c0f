"""The supply of child processes: one kept ready for any job, one kept from the last job for its like."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from services.trainer.worker.child_process import ChildOptions, ChildProcess
from services.trainer.worker.lease import LeasedJob
from services.trainer.worker.messages import Broke, SelfTest, Succeeded
from services.trainer.worker.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kin:
    """Jobs that may run in one process, one after another: one pipeline's, one owner's."""

    owner: str
    pipeline: str
    version: str

    @classmethod
    def of(cls, job: LeasedJob) -> Kin | None:
        """Whose like a job is; None for a guest's, who may be anybody."""
        return cls(job.owner, job.pipeline, job.pipeline_version) if job.owner else None


@dataclass(frozen=True)
class SupplyOptions:
    """How many children wait, and how long."""

    keep_spare: bool
    # Jobs of one kind that a process may run; 1 gives every job a process of its own.
    jobs_per_child: int
    # A used child that no job came for is ended after this.
    rest_seconds: float


class Children:
    """Starts children and keeps some between jobs."""

    def __init__(self, workspace: Workspace, options: ChildOptions, supply: SupplyOptions) -> None:
        self._workspace = workspace
        self._options = options
        self._supply = supply
        self._spare: ChildProcess | None = None
        self._used: tuple[Kin, ChildProcess] | None = None
        self._used_until = 0.0

    async def prepare(self) -> None:
        """Makes the next `take` quick, and ends what has waited for long. To be called now and then."""
        if self._used is not None and asyncio.get_running_loop().time() > self._used_until:
            await self._drop_used()
        if not self._supply.keep_spare:
            return
        if self._spare is not None and not self._spare.alive:
            logger.warning("the spare child died")
            await self._drop_spare()
        if self._spare is None:
            try:
                self._spare = ChildProcess.spawn(self._workspace, self._options)
            except OSError as error:
                # Such as a full disk. Whoever takes one hears of it if that lasts.
                logger.warning("no child can be kept ready: %s", error.strerror)

    async def take(self, kin: Kin | None) -> ChildProcess:
        """A child for one job; the caller gives it back or closes it."""
        if self._used is not None and self._used[0] == kin and self._used[1].alive:
            child, self._used = self._used[1], None
            return child
        if self._spare is not None and not self._spare.alive:
            await self._drop_spare()
        spare, self._spare = self._spare, None
        return spare or ChildProcess.spawn(self._workspace, self._options)

    async def give_back(self, child: ChildProcess, kin: Kin | None) -> None:
        """Takes a child that is fit for another job, and keeps it if there may be one."""
        if kin is None or child.jobs >= self._supply.jobs_per_child:
            await child.close()
            return
        earlier, self._used = self._used, (kin, child)
        self._used_until = asyncio.get_running_loop().time() + self._supply.rest_seconds
        if earlier is not None:
            await earlier[1].close()

    async def fault_of(self, device: str, seconds: float) -> str:
        """Has a new process calculate on a device; what is wrong with it, or "" when it does well in time."""
        child = await self.take(None)
        try:
            async with asyncio.timeout(seconds):
                await child.begin(SelfTest(device=device), logger.info)
                end = await child.receive()
        except TimeoutError:
            return f"a self-test of {device} did not end within {seconds:g} s"
        finally:
            await child.close()
        if isinstance(end, Succeeded):
            return ""
        told = end.traceback.strip().rpartition("\n")[2] if isinstance(end, Broke) else "its process died"
        return f"a self-test of {device} failed: {told}"

    async def close(self) -> None:
        """Ends all that wait."""
        await self._drop_spare()
        await self._drop_used()

    async def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.close()

    async def _drop_used(self) -> None:
        used, self._used = self._used, None
        if used is not None:
            await used[1].close()
