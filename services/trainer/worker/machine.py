"""What this machine can do, found out without importing torch."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from guidehall import science
from guidehall.contracts.workers.v1 import workers_pb2
from guidehall.science.pipeline import software_versions

# A driver that does not answer by then is broken, on any machine: the worker then says that it has no GPU.
_QUERY_SECONDS = 10.0
_COMPILED_ENGINE = Path(science.__path__[0]) / "reflectometry" / "native" / "engine.so"
# A container sees its own control group here; elsewhere the whole machine has to do.
_OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
_OOM_KILLS = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Machine:
    """Capabilities as the trainer is told of them."""

    hostname: str
    # What torch.device takes.
    device: str
    # "cpu", or the tier of the GPU.
    device_class: str
    device_name: str = ""
    device_memory_bytes: int = 0
    cpu_cores: int = 0
    memory_bytes: int = 0
    software: Mapping[str, str] = field(default_factory=dict)

    def message(self) -> workers_pb2.Capabilities:
        """The wire's form."""
        return workers_pb2.Capabilities(
            device_class=self.device_class,
            device_name=self.device_name,
            device_memory_bytes=self.device_memory_bytes,
            cpu_cores=self.cpu_cores,
            memory_bytes=self.memory_bytes,
        )


async def find_machine(device: str) -> Machine:
    """Looks at the machine; `device` is "auto", "cpu" or "cuda:N"."""
    gpus = [] if device == "cpu" else await asyncio.to_thread(_gpus)
    index = int(device.partition(":")[2]) if device.startswith("cuda") else 0
    use_gpu = device.startswith("cuda") or (device == "auto" and bool(gpus))
    name, memory = gpus[index] if use_gpu and index < len(gpus) else ("", 0)
    return Machine(
        hostname=socket.gethostname(),
        device=f"cuda:{index}" if use_gpu else "cpu",
        device_class=gpu_tier(name) if use_gpu else "cpu",
        device_name=name,
        device_memory_bytes=memory,
        cpu_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        software=software_versions() | {"reflectometry_engine": reflectometry_engine()},
    )


def reflectometry_engine() -> str:
    """What calculates reflectivities in the jobs of this machine, such as "c (avx2)", or "torch".

    The science's own `reflectometry.engine.name` says the same, and imports torch for it.
    """
    try:
        library = ctypes.CDLL(str(_COMPILED_ENGINE))
    except OSError:
        return "torch"
    library.guidehall_instructions.restype = ctypes.c_char_p
    return f"c ({library.guidehall_instructions().decode()})"


def oom_kills() -> int:
    """How many processes of this container, or of this machine, the kernel has ended for lack of memory."""
    _oom_kills_in.cache_clear()
    return _counted_oom_kills()


def recent_oom_kills() -> int:
    """`oom_kills` of less than a second ago: to read the counters takes as long as a short job."""
    return _oom_kills_in(int(time.monotonic()))


@lru_cache(maxsize=1)
def _oom_kills_in(second: int) -> int:  # noqa: ARG001 (what it is remembered by)
    return _counted_oom_kills()


def _counted_oom_kills() -> int:
    for file in _OOM_COUNTERS:
        try:
            found = _OOM_KILLS.search(file.read_bytes())
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def gpu_tier(name: str) -> str:
    """The tier in a product name: "H200" of "NVIDIA H200 NVL"; "gpu" when there is none to see."""
    tier = re.search(r"\b[A-Z]{1,3}[0-9]{1,4}\b", name)
    return tier[0] if tier else "gpu"


def _gpus() -> list[tuple[str, int]]:
    """(name, memory in bytes) of each GPU that the driver shows."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return gpus_in(answer.stdout)


def gpus_in(listing: str) -> list[tuple[str, int]]:
    """Reads lines such as "NVIDIA H200, 143771"; the memory is in MiB."""
    found = []
    for line in listing.splitlines():
        name, _, memory = line.rpartition(",")
        if name.strip() and memory.strip().isdigit():
            found.append((name.strip(), int(memory) << 20))
    return found
