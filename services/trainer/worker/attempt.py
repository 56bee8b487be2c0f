"""One lease from its grant to its report: fetch what the job reads, run it, stage what it leaves."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guidehall.core.errors import AppError, Code
from guidehall.core.faults import fault_point
from guidehall.science import registry
from services.trainer.worker.checkpoints import MEDIA_TYPE, CheckpointUploads, SavedState
from services.trainer.worker.children import Children, Kin
from services.trainer.worker.events import EventBuffer
from services.trainer.worker.job_log import NAME as LOG_NAME
from services.trainer.worker.job_log import JobLog
from services.trainer.worker.lease import LeasedJob
from services.trainer.worker.messages import (
    ArtifactWritten,
    Broke,
    CheckpointSaved,
    End,
    Limits,
    ModelWritten,
    OutOfMemory,
    Previewed,
    Progressed,
    Start,
    Succeeded,
)
from services.trainer.worker.outputs import OutputFile, Outputs, described, output_file
from services.trainer.worker.retry import Pauses, until_answered
from services.trainer.worker.session import LeaseLost, Session
from services.trainer.worker.settings import WorkerSettings
from services.trainer.worker.step_times import StepTimes
from services.trainer.worker.storage_client import StorageClient, StorageStubs
from services.trainer.worker.supervision import Patience, Supervision
from services.trainer.worker.trainer_client import StagedObject, TrainerClient, Untold, may_pass
from services.trainer.worker.verdict import (
    CANCELLED,
    Died,
    Finish,
    HandBack,
    Kill,
    Outcome,
    Reason,
    conclude,
    failed,
    refused,
)
from services.trainer.worker.wishes import Interrupted, Wishes

logger = logging.getLogger(__name__)

# What storage says of an input that no other attempt could read either.
_UNREADABLE = frozenset({Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.OUT_OF_RANGE, Code.INVALID_ARGUMENT})
# What storage and the trainer say of outputs that they would not take from another attempt either.
_UNACCEPTABLE = frozenset({Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.ALREADY_EXISTS})


@dataclass(frozen=True)
class Tools:
    """What every attempt of a worker uses."""

    settings: WorkerSettings
    device: str
    trainer: TrainerClient
    storage: StorageStubs
    children: Children

    @property
    def pauses(self) -> Pauses:
        """Between tries of calls to other services."""
        calls = self.settings.calls
        return Pauses(calls.first_retry_seconds, calls.longest_retry_seconds)


class Attempt:
    """Runs the job of one lease.

    Args:
        job: what was leased.
        tools: what it is run with.
        folder: private to this attempt; the caller removes it.
    """

    def __init__(self, job: LeasedJob, tools: Tools, folder: Path) -> None:
        self.wishes = Wishes(job.desired)
        self._job = job
        self._tools = tools
        self._settings = tools.settings
        self._folder = folder
        calls = tools.settings.calls
        self._storage = StorageClient(
            tools.storage,
            job,
            timeout_seconds=calls.timeout_seconds,
            transfer_seconds=calls.transfer_seconds,
        )
        self._events = EventBuffer(tools.settings.max_buffered_events, tools.settings.log_lines_per_second)
        self._session = Session(
            tools.trainer,
            job,
            self._events,
            self.wishes.want,
            flush_seconds=tools.settings.event_flush_seconds,
            timeout_seconds=calls.timeout_seconds,
            pauses=Pauses(calls.first_retry_seconds, min(job.heartbeat_seconds, calls.longest_retry_seconds)),
        )
        self._checkpoints = CheckpointUploads(self._storage, tools.trainer, job, tools.pauses)
        self._outputs = Outputs()
        self._log = JobLog(folder / LOG_NAME, tools.settings.max_log_bytes)
        self._step_times = StepTimes(job.pipeline)
        self._error_id = uuid.uuid4().hex[:16]
        # The working directory of the pipeline, and where it leaves files.
        self._run_folder = folder / "run"
        self._run_folder.mkdir(mode=0o700)
        self._child_is_fit = False
        # Whether it has a process to run in. Before that, nothing has been done about the job.
        self.began = False
        # What speaks against the device; empty when nothing does.
        self.suspicion = ""
        # What the trainer gave this worker to do next, with its answer to the report.
        self.next_job: LeasedJob | None = None

    async def run(self) -> bool:
        """Runs to the report.

        Returns:
            Whether there was one: an attempt whose lease is lost ends without.
        """
        children, kin = self._tools.children, Kin.of(self._job)
        self._child = await children.take(kin)
        self.began = True
        lost: Exception | None = None
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [
                    group.create_task(self._session.run()),
                    group.create_task(self._checkpoints.run()),
                ]
                verdict, outputs = await self._verdict()
                await self._report(verdict, outputs)
                for helper in helpers:
                    helper.cancel()
        except* LeaseLost as group_of_one:
            lost = group_of_one.exceptions[0]
        finally:
            if self._child_is_fit:
                await children.give_back(self._child, kin)
            else:
                await self._child.close()
            self._log.close()
        if lost is not None:
            logger.warning("%s is lost: %s", self._job.job, lost)
        return lost is None

    async def _verdict(self) -> tuple[Finish | HandBack, dict[str, StagedObject]]:
        try:
            return await self._run()
        except Interrupted:
            return (CANCELLED if self.wishes.cancelled else HandBack()), {}
        except Exception:
            # Such as a full disk. The job's owner hears of it, and another worker may do better.
            logger.exception("%s failed in the worker", self._job.job, extra={"error_id": self._error_id})
            message = "the worker failed unexpectedly"
            return failed(Reason.TRANSIENT_ERROR, Code.INTERNAL, message, self._error_id), {}

    async def _run(self) -> tuple[Finish | HandBack, dict[str, StagedObject]]:
        wishes = self.wishes
        start = await wishes.unless(lambda: wishes.cancelled or wishes.draining, self._prepare())
        if isinstance(start, Finish):
            return start, {}
        fault_point("worker.attempt.prepared")
        supervision, end = await self._supervise(start)
        while (smaller := self._smaller(start, end)) is not None:
            again = self._prepare_again(start, smaller)
            start = await wishes.unless(lambda: wishes.cancelled or wishes.draining, again)
            supervision, end = await self._supervise(start)
        fault_point("worker.child.ended")
        self._session.hurry()
        self._child_is_fit = supervision.child_is_fit
        verdict = conclude(
            end,
            supervision.kill,
            wishes.desired,
            was_to_pause=wishes.was_to_pause,
            draining=wishes.draining,
            error_id=self._error_id,
        )
        self._log_failure(verdict, end)
        finishing = self._finish_transfers(verdict, end)
        return await wishes.unless(lambda: wishes.cancelled or wishes.leaving, finishing)

    # Before the run -------------------------------------------------------------------------------------

    async def _prepare(self) -> Start | Finish:
        """Fetches what the job reads."""
        files: dict[str, str] = {}
        for index, (role, name) in enumerate(sorted(self._job.inputs.items())):
            try:
                path = await self._fetch_input(name, self._folder / f"input-{index}")
            except AppError as error:
                if error.code in _UNREADABLE:
                    return refused(f"inputs.{role}", error.message)
                return failed(Reason.TRANSIENT_ERROR, error.code, f"inputs.{role}: {error.message}")
            files[role] = str(path)
        return Start(
            job=self._job.job,
            folder=str(self._run_folder),
            pipeline=self._job.pipeline,
            params=self._job.params,
            seed=self._job.seed,
            device=self._device(),
            dataset_versions=dict(self._job.inputs),
            dataset_files=files,
            checkpoint_file=await self._fetch_checkpoint(),
            preview_seconds=self._settings.child.preview_seconds,
            checkpoint_seconds=self._settings.child.checkpoint_seconds,
            desired=self.wishes.of_child,
            limits=Limits(
                memory_bytes=self._settings.child.memory_bytes,
                cpu_seconds=self._settings.child.cpu_seconds,
                file_bytes=self._settings.max_artifact_bytes,
            ),
            progress_seconds=self._settings.child.progress_seconds,
        )

    def _device(self) -> str:
        only_cpu = registry.pipeline(self._job.pipeline).device == "cpu"
        return "cpu" if only_cpu else self._tools.device

    async def _fetch_input(self, name: str, target: Path) -> Path:
        async def fetch() -> Path:
            return await self._storage.download_dataset(name, target, self._settings.max_input_bytes)

        return await until_answered(fetch, self._tools.pauses, f"reading {name}")

    async def _fetch_checkpoint(self) -> str | None:
        checkpoint = self._checkpoints.committed
        if checkpoint is None:
            return None

        async def fetch() -> Path:
            target = self._folder / "checkpoint"
            return await self._storage.read_checkpoint(checkpoint, target, self._settings.max_artifact_bytes)

        try:
            return str(await until_answered(fetch, self._tools.pauses, "reading the checkpoint"))
        except AppError as error:
            # The work since its start is lost, the job is not.
            logger.error("the checkpoint of %s cannot be read: %s", self._job.job, error.message)
            self.on_line(f"[the checkpoint cannot be read ({error.code.name}): starting from the beginning]")
            return None

    def _smaller(self, start: Start, end: End | Died) -> dict[str, Any] | None:
        """Parameters to try instead where memory did not suffice and the pipeline knows some."""
        if not isinstance(end, OutOfMemory) and not (isinstance(end, Died) and end.out_of_memory):
            return None
        return registry.pipeline(self._job.pipeline).with_less_memory(start.params)

    async def _prepare_again(self, start: Start, params: dict[str, Any]) -> Start:
        """The same in a new process, from the newest checkpoint, with other parameters."""
        what = ", ".join(_changes(start.params, params))
        self.on_line(f"[not enough memory: tried again with {what}]")
        await self._checkpoints.settled()
        await self._child.close()
        self._child = await self._tools.children.take(Kin.of(self._job))
        self._outputs = Outputs()
        self._run_folder = Path(tempfile.mkdtemp(prefix="run-", dir=self._folder))
        return start.model_copy(
            update={
                "folder": str(self._run_folder),
                "params": params,
                "checkpoint_file": await self._fetch_checkpoint(),
                "desired": self.wishes.of_child,
            }
        )

    # The run --------------------------------------------------------------------------------------------

    async def _supervise(self, start: Start) -> tuple[Supervision, End | Died]:
        patience = Patience(
            self._job.timeout_seconds, self._job.hang_seconds, self._settings.child.cancel_grace_seconds
        )
        supervision = Supervision(self._child, self.wishes, patience, self)
        end = await supervision.run(start)
        if start.device != "cpu":
            if supervision.child_is_stuck:
                self.suspicion = "a process does not end though it was killed"
            elif isinstance(end, Broke):
                self.suspicion = end.device_fault
            elif isinstance(end, Died) and supervision.kill in (None, Kill.HUNG):
                self.suspicion = "a job hung" if supervision.kill else "a process died"
        return supervision, end

    def on_started(self) -> None:
        """See `Listener`, like the following."""
        self._session.started()

    def on_progress(self, progress: Progressed) -> None:
        self._step_times.stepped(progress, time.monotonic())
        self._events.add_progress(progress)
        self._session.notify()

    def on_line(self, line: str) -> None:
        self._log.write(line)
        self._events.add_line(line)
        self._session.notify()

    def on_preview(self, preview: Previewed) -> None:
        self._events.add_preview(preview)
        self._session.notify()

    def on_checkpoint(self, checkpoint: CheckpointSaved) -> None:
        file = self._run_folder / checkpoint.file.name
        self._checkpoints.put(SavedState(checkpoint.step, file, described(checkpoint.file, MEDIA_TYPE)))

    def on_output(self, output: ArtifactWritten | ModelWritten) -> None:
        self._outputs.add(output.name, output_file(self._run_folder, output))

    def _log_failure(self, verdict: Finish | HandBack, end: End | Died) -> None:
        if not isinstance(verdict, Finish) or verdict.outcome is not Outcome.FAILED:
            return
        if verdict.reason is Reason.USER_ERROR:
            return
        details: dict[str, Any] = {"error_id": self._error_id}
        if isinstance(end, Broke):
            details["traceback"] = end.traceback
        elif isinstance(end, Died):
            details |= {"status": end.status, "crash": self._child.crash_report()}
        logger.error("%s failed: %s", self._job.job, verdict.reason.name, extra=details)

    # After the run --------------------------------------------------------------------------------------

    async def _finish_transfers(
        self, verdict: Finish | HandBack, end: End | Died
    ) -> tuple[Finish | HandBack, dict[str, StagedObject]]:
        """Stages what the job leaves, or waits for its last checkpoint."""
        if isinstance(verdict, HandBack) or verdict.outcome is Outcome.PAUSED:
            await self._checkpoints.settled()
        if not isinstance(verdict, Finish) or verdict.outcome is not Outcome.SUCCEEDED:
            return verdict, {}
        assert isinstance(end, Succeeded)  # noqa: S101 (what the verdict follows from)
        log = self._log.close()
        if log.size_bytes:
            self._outputs.add(LOG_NAME, OutputFile(self._log.path, log))
        try:
            outputs = await self._outputs.stage(
                self._storage,
                end.document,
                max_result_bytes=self._settings.max_result_bytes,
                parallel=self._settings.calls.parallel_uploads,
                pauses=self._tools.pauses,
            )
        except AppError as error:
            details = {"error_id": self._error_id}
            logger.error("outputs of %s: %s", self._job.job, error.message, extra=details)
            if error.code in _UNACCEPTABLE:
                return refused("outputs", error.message), {}
            return failed(Reason.TRANSIENT_ERROR, error.code, f"outputs: {error.message}", self._error_id), {}
        return verdict, outputs

    async def _keep_log(self, verdict: Finish | HandBack) -> bool:
        """Leaves the log of an attempt that did not succeed, unless storage takes too long.

        Of one that is handed back there is none: its worker must end soon, and the job goes on.

        Returns:
            Whether the whole log can be read once the job has ended.
        """
        log = self._log.close()
        if isinstance(verdict, HandBack) or not log.size_bytes:
            return False

        async def keep() -> None:
            async with asyncio.timeout(self._settings.calls.log_seconds):
                await until_answered(stage, self._tools.pauses, f"keeping the log of {self._job.job}")

        stage = partial(self._storage.stage_log, LOG_NAME, self._log.path, log)
        try:
            await self.wishes.unless(lambda: self.wishes.leaving, keep())
        except (AppError, TimeoutError, Interrupted) as error:
            # The end of the job does not wait for it.
            logger.warning("the log of %s is not kept: %s", self._job.job, str(error) or type(error).__name__)
            return False
        fault_point("worker.log.staged")
        return True

    async def _report(self, verdict: Finish | HandBack, outputs: dict[str, StagedObject]) -> None:
        """Says how it ended, until the trainer has heard it or the lease is lost."""
        succeeded = isinstance(verdict, Finish) and verdict.outcome is Outcome.SUCCEEDED
        if not succeeded and not await self._keep_log(verdict):
            self._events.add_tail()
        if isinstance(verdict, HandBack):
            await self._session.flush()
        untold = await self._session.conclude()
        fault_point("worker.report.flushed")
        try:
            await self._tell(verdict, outputs, untold)
        except AppError as error:
            if not outputs or error.code not in _UNACCEPTABLE:
                raise LeaseLost(error.message) from None
            await self._report(refused("outputs", error.message), {})

    async def _tell(
        self, verdict: Finish | HandBack, outputs: dict[str, StagedObject], untold: Untold
    ) -> None:
        trainer, job = self._tools.trainer, self._job

        # Asked for once: a trainer that has trouble giving jobs still takes the end of this one.
        asked_for_next = False

        async def tell() -> None:
            nonlocal asked_for_next
            if isinstance(verdict, HandBack):
                await trainer.release(job, verdict.why)
            else:
                # One that leaves takes no more, and one whose device may be at fault none before a test.
                ready = not (self.wishes.draining or self.suspicion or asked_for_next)
                asked_for_next = True
                self.next_job = await trainer.finish(job, verdict, outputs, untold, ready)

        await until_answered(tell, self._tools.pauses, f"reporting {job.job}", may_pass)
        fault_point("worker.report.heard")
        how = "handed back" if isinstance(verdict, HandBack) else verdict.outcome.name
        logger.info("%s: %s", job.job, how)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """What differs, such as "training.micro_batch = 64"."""
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from _changes(before, value, f"{path}{name}.")
        elif value != before:
            yield f"{path}{name} = {value}"
