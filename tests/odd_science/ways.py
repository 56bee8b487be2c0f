from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from guidehall.science.pipeline import Context, JobPaused, UserError
from tests.odd_science.params import OddParams, OddResult


def break_down(params: OddParams, context: Context) -> OddResult:
    context.log("about to break")
    raise RuntimeError("a secret inside")


def break_the_device(params: OddParams, context: Context) -> OddResult:
    """What torch raises when the device was left unusable."""
    import torch

    message = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."
    raise getattr(torch, "AcceleratorError", RuntimeError)(message)


def burn(params: OddParams, context: Context) -> OddResult:
    """Uses so many milliseconds of the processor."""
    until = time.process_time() + params.amount / 1000
    while time.process_time() < until:
        pass
    return OddResult()


def complain_and_break(params: OddParams, context: Context) -> OddResult:
    for number in range(params.amount):
        context.log(f"line {number}")
    raise RuntimeError("a secret inside")


def exit_at_once(params: OddParams, context: Context) -> OddResult:
    context.progress(1, 2)
    os._exit(params.amount)


def fill_a_folder(params: OddParams, context: Context) -> OddResult:
    for number in range(params.amount):
        context.artifact(f"file-{number}", b"x", "text/plain")
    return OddResult()


def fill_a_file(params: OddParams, context: Context) -> OddResult:
    context.artifact("large.bin", bytes(params.amount), "application/octet-stream")
    return OddResult()


def leave_a_program(params: OddParams, context: Context) -> OddResult:
    program = subprocess.Popen(["/bin/sleep", "3600"])
    return OddResult(told={"program": program.pid})


def leave_a_thread(params: OddParams, context: Context) -> OddResult:
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    return OddResult()


def lend_the_link(params: OddParams, context: Context) -> OddResult:
    """A program of another group holds everything open that this process has."""
    program = subprocess.Popen(["/bin/sleep", "3600"], close_fds=False, start_new_session=True)
    context.log(f"program {program.pid}")
    time.sleep(3600)
    return OddResult()


def litter(params: OddParams, context: Context) -> OddResult:
    """Tells what it finds and leaves something everywhere."""
    places = [Path.cwd(), Path.home(), Path(tempfile.gettempdir())]
    found = sorted(str(path) for place in places for path in place.iterdir() if path.name != "crash")
    for place in places:
        (place / "litter").write_text("litter")
        (place / "heap").mkdir(exist_ok=True)
    print("without an end", end="")
    return OddResult(told={"found": found, "process": os.getpid()})


def leave_unasked(params: OddParams, context: Context) -> OddResult:
    raise JobPaused


def print_much(params: OddParams, context: Context) -> OddResult:
    print("from print")
    print("10 %\r50 %\r100 %")
    print("ångström ", end="")
    print("\N{GREEK SMALL LETTER SIGMA}")
    logging.getLogger("odd").warning("from logging")
    subprocess.run(["/bin/echo", "from a program"], check=True)
    for number in range(params.amount):
        print(f"line {number}")
    os.write(2, b"no line end")
    return OddResult()


def need_less_memory(params: OddParams, context: Context) -> OddResult:
    """Takes so many GiB, after some work that it saves."""
    saved = context.checkpoint.load()
    if saved is None:
        context.checkpoint.save(b"half-way")
    context.artifact(f"of-{params.amount}", b"x", "text/plain")
    held = bytearray(params.amount << 30)
    return OddResult(told={"bytes": len(held), "saved": (saved or b"").decode()})


def refuse(params: OddParams, context: Context) -> OddResult:
    raise UserError("amount", params.amount, "must be something else")


def return_too_much(params: OddParams, context: Context) -> OddResult:
    return OddResult(told={"text": "x" * params.amount})


def show_environment(params: OddParams, context: Context) -> OddResult:
    with tempfile.NamedTemporaryFile() as file:
        temporary = file.name
    descriptors = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    return OddResult(
        told={
            "environment": dict(os.environ),
            "descriptors": descriptors,
            "temporary": temporary,
            "folder": str(Path.cwd()),
            "folder_mode": Path.cwd().stat().st_mode & 0o777,
            "argv": sys.argv,
            "modules": sorted(name for name in sys.modules if name in ("grpc", "nats", "torch")),
        }
    )


def show_previews(params: OddParams, context: Context) -> OddResult:
    """So many at once, of two sorts."""
    for number in range(params.amount):
        context.preview("odd.number", {"number": number, "share": float("nan")})
        context.preview("odd.list", {"numbers": [number]})
    return OddResult()


def show_the_unspeakable(params: OddParams, context: Context) -> OddResult:
    """What neither the wire nor a database can hold."""
    context.progress(1 << 63, 1 << 63)
    context.preview("odd.nul", {"text": "a\0b"})
    context.preview("odd.surrogate", {"text": "\ud800"})
    raise UserError("amount", params.amount, "must be something else")


def sleep_on(params: OddParams, context: Context) -> OddResult:
    """Heeds nobody."""
    context.progress(1, 2)
    context.log("asleep")
    time.sleep(3600)
    return OddResult()


def spawn_and_sleep(params: OddParams, context: Context) -> OddResult:
    program = subprocess.Popen(["/bin/sleep", "3600"])
    context.log(f"program {program.pid}")
    time.sleep(3600)
    return OddResult()


def use_memory(params: OddParams, context: Context) -> OddResult:
    held = bytearray(params.amount)
    return OddResult(told={"bytes": len(held)})


def use_processor(params: OddParams, context: Context) -> OddResult:
    while True:
        pass
