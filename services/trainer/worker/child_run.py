"""Runs a pipeline and says how it ended."""

from __future__ import annotations

import json
import resource
import sys
import traceback
from pathlib import Path

from guidehall.science import registry
from guidehall.science.pipeline import JobCancelled, JobPaused, UserError
from services.trainer.worker.child_context import ChildContext
from services.trainer.worker.child_link import Link
from services.trainer.worker.frames import MAX_FRAME_BYTES
from services.trainer.worker.messages import (
    MAX_FIELD_CHARACTERS,
    MAX_LINE_CHARACTERS,
    MAX_TRACEBACK_CHARACTERS,
    Broke,
    End,
    Left,
    Limits,
    OutOfMemory,
    Refused,
    Start,
    Started,
    Succeeded,
    readable,
)

# Where a fatal signal leaves its traceback, in the child's folder.
CRASH_FILE = "crash"


def run(start: Start, link: Link, folder: Path) -> End:
    """Runs the pipeline to its end, whatever it is."""
    try:
        _limit(start.limits)
        pipeline = registry.pipeline(start.pipeline)
        context = ChildContext(start, link, folder)
        link.send(Started())
        result = pipeline.run(start.params, context)
        return _succeeded(result.model_dump_json())
    except JobCancelled:
        return Left(because="cancelled")
    except JobPaused:
        return Left(because="paused")
    except UserError as error:
        got = f"got {str(error.value)[:120]}; {error.allowed}"
        field = readable(error.field, MAX_FIELD_CHARACTERS)
        return Refused(field=field, description=readable(got, MAX_LINE_CHARACTERS))
    except MemoryError:
        return OutOfMemory()
    except BaseException as error:
        if _is_device_memory(error):
            return OutOfMemory()
        # Its end tells most.
        report = traceback.format_exc()[-MAX_TRACEBACK_CHARACTERS:]
        return Broke(traceback=readable(report, MAX_TRACEBACK_CHARACTERS))


def _succeeded(document: str) -> End:
    # Escapes and the envelope need room too.
    if len(document) > MAX_FRAME_BYTES // 4:
        allowed = f"a result document has at most {MAX_FRAME_BYTES // 4} characters"
        raise UserError("result", f"{len(document)} characters", allowed)
    return Succeeded(document=json.loads(document))


def _is_device_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _limit(limits: Limits) -> None:
    # Data, not address space: CUDA and torch reserve far more addresses than they use.
    for kind, value in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
    ):
        if value:
            # The hard limit lies above: reaching the soft one tells, by SIGXCPU, which limit it was.
            resource.setrlimit(kind, (value, value + 1))
