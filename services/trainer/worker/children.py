"""The supply of child processes: a fresh one for every job, and one kept ready while the worker waits."""

from __future__ import annotations

import logging

from services.trainer.worker.child_process import ChildOptions, ChildProcess
from services.trainer.worker.workspace import Workspace

logger = logging.getLogger(__name__)


class Children:
    """Starts children. A job never meets the process of another job."""

    def __init__(self, workspace: Workspace, options: ChildOptions, keep_spare: bool) -> None:
        self._workspace = workspace
        self._options = options
        self._keep_spare = keep_spare
        self._spare: ChildProcess | None = None

    async def prepare(self) -> None:
        """Makes the next `take` quick."""
        if not self._keep_spare:
            return
        if self._spare is not None and not self._spare.alive:
            logger.warning("the spare child died")
            await self.close()
        if self._spare is None:
            self._spare = ChildProcess.spawn(self._workspace, self._options)

    async def take(self) -> ChildProcess:
        """A child for one job; the caller closes it."""
        if self._spare is not None and not self._spare.alive:
            await self.close()
        spare, self._spare = self._spare, None
        return spare or ChildProcess.spawn(self._workspace, self._options)

    async def close(self) -> None:
        """Ends the spare."""
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.close()
