"""What a run leaves: artifacts, models and the result document, collected and then staged at its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from guidehall.core.errors import AppError, InvalidArgument
from guidehall.core.faults import fault_point
from services.trainer.worker.messages import ArtifactWritten, FileRef, ModelWritten
from services.trainer.worker.retry import Pauses, until_answered
from services.trainer.worker.storage_client import StorageClient, struct_of
from services.trainer.worker.trainer_client import StagedObject

# Name of the result document among the outputs.
RESULT = "result"
_MODEL_MEDIA_TYPE = "application/vnd.safetensors"

Call = Callable[[], Awaitable[StagedObject]]


@dataclass(frozen=True)
class OutputFile:
    """A file to stage."""

    path: Path
    described: StagedObject
    # Of a model; None for an artifact.
    manifest: Mapping[str, Any] | None = None


def described(file: FileRef, media_type: str) -> StagedObject:
    """What the child says of a file; storage checks it against the bytes."""
    return StagedObject(file.sha256, file.size_bytes, media_type)


def output_file(folder: Path, output: ArtifactWritten | ModelWritten) -> OutputFile:
    """An output that a child wrote to its `folder`."""
    path = folder / output.file.name
    if isinstance(output, ModelWritten):
        return OutputFile(path, described(output.file, _MODEL_MEDIA_TYPE), output.manifest)
    return OutputFile(path, described(output.file, output.media_type))


class Outputs:
    """Files by the names under which they will be known."""

    def __init__(self) -> None:
        self._files: dict[str, OutputFile] = {}

    def add(self, name: str, file: OutputFile) -> None:
        """Takes an output; an earlier one of the same name goes."""
        earlier = self._files.pop(name, None)
        if earlier is not None:
            earlier.path.unlink(missing_ok=True)
        self._files[name] = file

    async def stage(
        self,
        storage: StorageClient,
        document: Mapping[str, Any],
        *,
        max_result_bytes: int,
        parallel: int,
        pauses: Pauses,
    ) -> dict[str, StagedObject]:
        """Leaves everything in storage, trying again for as long as storage is away.

        Returns:
            What storage confirmed of each output, the document as `RESULT`.

        Raises:
            AppError: storage refused one of them, or the document is too large.
        """
        result = struct_of(document)
        if result.ByteSize() > max_result_bytes:
            allowed = f"at most {max_result_bytes} bytes; large data belongs into artifacts"
            raise InvalidArgument.field(RESULT, f"{result.ByteSize()} bytes", allowed)
        calls: dict[str, Call] = {RESULT: partial(storage.stage_result, result)}
        for name, file in self._files.items():
            if file.manifest is None:
                calls[name] = partial(storage.stage_artifact, name, file.path, file.described)
            else:
                calls[name] = partial(storage.stage_model, name, file.path, file.described, file.manifest)
        return await _all(calls, parallel, pauses)


async def _all(calls: Mapping[str, Call], parallel: int, pauses: Pauses) -> dict[str, StagedObject]:
    """Makes all calls, some side by side; the first failure ends the rest."""
    slots = asyncio.Semaphore(parallel)

    async def one(name: str, call: Call) -> StagedObject:
        async with slots:
            staged = await until_answered(call, pauses, f"staging {name}")
            fault_point("worker.output.staged")
            return staged

    try:
        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(one(name, call)) for name, call in calls.items()}
    except* AppError as errors:
        failure = errors.exceptions[0]
    else:
        return {name: task.result() for name, task in tasks.items()}
    raise failure
