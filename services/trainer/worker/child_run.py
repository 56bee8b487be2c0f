"""Runs a pipeline and says how it ended."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from guidehall.core.faults import fault_point
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
    SelfTest,
    Start,
    Started,
    Succeeded,
    readable,
)
from services.trainer.worker.self_test import device_fault, self_test

# Where a fatal signal leaves its traceback, in the child's folder.
CRASH_FILE = "crash"
_MEMORY_SIGNS = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory", "_STATUS_ALLOC_FAILED")


def run(start: Start, link: Link) -> End:
    """Runs the pipeline to its end, whatever it is."""
    before = _company()
    try:
        os.chdir(start.folder)
        _limit(start.limits)
        pipeline = registry.pipeline(start.pipeline)
        context = ChildContext(start, link)
        fault_point("child.run.ready")
        link.send(Started())
        result = pipeline.run(start.params, context)
        document = _document(result.model_dump_json())
        fault_point("child.run.done")
        return Succeeded(document=document, fit_for_another=before is not None and _company() == before)
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
        return OutOfMemory() if _is_out_of_memory(error) else _broke(error)


def run_self_test(task: SelfTest) -> End:
    """Tries the device."""
    try:
        self_test(task.device)
        return Succeeded(document={})
    except Exception as error:
        return _broke(error)


def _broke(error: BaseException) -> Broke:
    # Its end tells most.
    report = "".join(traceback.format_exception(error))[-MAX_TRACEBACK_CHARACTERS:]
    return Broke(
        traceback=readable(report, MAX_TRACEBACK_CHARACTERS),
        device_fault=readable(device_fault(error), MAX_FIELD_CHARACTERS),
    )


def _document(document: str) -> dict[str, Any]:
    # Escapes and the envelope need room too.
    if len(document) > MAX_FRAME_BYTES // 4:
        allowed = f"a result document has at most {MAX_FRAME_BYTES // 4} characters"
        raise UserError("result", f"{len(document)} characters", allowed)
    parsed: dict[str, Any] = json.loads(document)
    return parsed


def _company() -> tuple[int, frozenset[str]] | None:
    """How many threads of Python there are, and which processes; None where that cannot be told."""
    try:
        with os.scandir("/proc/self/task") as tasks:
            children = [Path(task.path, "children").read_text().split() for task in tasks]
    except OSError:
        return None
    return threading.active_count(), frozenset().union(*children)


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    # Of memory that is not a device's own, torch says it in words only.
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _MEMORY_SIGNS)


def _limit(limits: Limits) -> None:
    # Data, not address space: CUDA and torch reserve far more addresses than they use.
    for kind, value in (
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds and limits.cpu_seconds + _cpu_seconds_used()),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
    ):
        if value:
            # The hard limit stays: another job may come, and reaching the soft one tells which limit it was.
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _cpu_seconds_used() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return math.ceil(used.ru_utime + used.ru_stime)
