"""Starts, talks to and ends a child process: the place where pipelines run.

The child gets an environment made from a list of names, a private folder, and one socket. It leads a process
group of its own, so that ending it ends what it started.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import site
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from guidehall.core.faults import VARIABLE as FAULTS_VARIABLE
from guidehall.science.pipeline import Desired
from guidehall.science.registry import MODULES_VARIABLE
from services.trainer.worker import frames
from services.trainer.worker.child_run import CRASH_FILE
from services.trainer.worker.messages import (
    DesiredChanged,
    FromChild,
    SelfTest,
    Start,
    ToChild,
    dump,
    from_child,
)
from services.trainer.worker.output_lines import LineSplitter, LinesProtocol
from services.trainer.worker.workspace import Workspace, remove

logger = logging.getLogger(__name__)

# The only variables of the worker that a child may see, beside those of the two prefixes.
_PASSED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", MODULES_VARIABLE, FAULTS_VARIABLE)
_PASSED_PREFIXES = ("CUDA_", "NVIDIA_")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
# The folder that holds the `services` package.
_CODE = Path(__file__).resolve().parents[3]
_MAX_CRASH_BYTES = 16 << 10
_LONGEST_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class ChildOptions:
    """How children are started."""

    # Modules to import while waiting for work.
    preload: tuple[str, ...] = ()
    # Names of further variables to hand over.
    pass_environment: tuple[str, ...] = ()
    # Of numerical libraries; 0 leaves it to them.
    threads: int = 0
    # How long the end of a killed child may take.
    reap_seconds: float = 5.0


def environment(
    inherited: Mapping[str, str], folder: Path, cache: Path, options: ChildOptions
) -> dict[str, str]:
    """Everything that a child finds in its environment."""
    passed = {
        name: value
        for name, value in inherited.items()
        if name in _PASSED or name in options.pass_environment or name.startswith(_PASSED_PREFIXES)
    }
    threads = str(options.threads) if options.threads else ""
    limits = {name: threads or inherited.get(name, "") for name in _THREADS}
    search_path = [str(_CODE), *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **passed,
        **{name: value for name, value in limits.items() if value},
        "PYTHONPATH": os.pathsep.join(search_path),
        "PYTHONUSERBASE": site.getuserbase(),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(cache),
        "MPLBACKEND": "Agg",
    }


class ChildProcess:
    """One child, from before its first job is known to its end."""

    def __init__(
        self, process: subprocess.Popen[bytes], folder: Path, link: socket.socket, output: int, reap: float
    ) -> None:
        self.folder = folder
        self._process = process
        # It and its group have been waited for: from then on its id may be another's.
        self._reaped = False
        self._link = link
        self._output = output
        # How long its end may take once it is killed.
        self._reap_seconds = reap
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._lines: LinesProtocol | None = None
        self._splitter = LineSplitter(_ignore)
        # How many were handed to it.
        self.jobs = 0

    @classmethod
    def spawn(cls, workspace: Workspace, options: ChildOptions) -> ChildProcess:
        """Starts a child that waits for `begin`."""
        folder = workspace.new_folder()
        ours, theirs = socket.socketpair()
        output, child_output = os.pipe()
        try:
            # Not by the event loop: uvloop would fork, which a process with gRPC in it must not; this one
            # does not. And the death signal follows the thread that starts the child: the loop's.
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "services.trainer.worker.child",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    *options.preload,
                ],
                stdin=subprocess.DEVNULL,
                stdout=child_output,
                stderr=child_output,
                env=environment(os.environ, folder, workspace.cache, options),
                cwd=folder,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            os.close(output)
            ours.close()
            remove(folder)
            raise
        finally:
            os.close(child_output)
            theirs.close()
        return cls(process, folder, ours, output, options.reap_seconds)

    @property
    def pid(self) -> int:
        """Process id, which is its group's id too."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    async def begin(self, task: Start | SelfTest, on_line: Callable[[str], None]) -> None:
        """Hands it a job or a test; `on_line` gets each line that it prints."""
        self.jobs += 1
        self._splitter.on_line = on_line
        if self._lines is None:
            await self._connect()
        await self._send(task)

    async def _connect(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._link, limit=1 << 20)
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(self._output, "rb", buffering=0)
        _, self._lines = await loop.connect_read_pipe(lambda: LinesProtocol(self._splitter), pipe)

    async def want(self, desired: Desired) -> None:
        """Tells it what its owner wants now."""
        await self._send(DesiredChanged(desired=desired))

    async def receive(self) -> FromChild | None:
        """What it says next; None when it has ended, or was killed a while ago.

        Raises:
            FrameError: it said something that makes no sense.
        """
        assert self._reader is not None, "begin first"  # noqa: S101
        payload = await frames.read(self._reader)
        return None if payload is None else from_child(payload)

    async def rest(self) -> None:
        """After a job, makes it ready for another: takes its last words and clears its private folder."""
        while _unread_bytes(self._output):  # noqa: ASYNC110 (the event loop reads them)
            await asyncio.sleep(0)
        self._splitter.close()
        if any(path.name != CRASH_FILE for path in self.folder.iterdir()):
            await asyncio.to_thread(_clear, self.folder)

    def kill(self) -> None:
        """Ends it and everything it started, at once; what does not end is not listened to for long."""
        if self._reaped:
            return
        # The group may outlive it.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._writer is not None:
            # The link stays open while the process is stuck in a call to a dead device, or while a program
            # of another group has it. Then `receive` would never see its end.
            asyncio.get_running_loop().call_later(self._reap_seconds, self._writer.transport.abort)

    async def reap(self) -> int:
        """Kills it and waits for its end and its last words.

        Returns:
            Its exit status; negative for the signal that ended it.

        Raises:
            TimeoutError: it does not end.
        """
        if not self._reaped:
            self.kill()
            async with asyncio.timeout(self._reap_seconds):
                await _until(lambda: _group_ended(self._process))
            self._reaped = True
            if self._lines is not None:
                await self._lines.finish(self._reap_seconds)
        return self._process.returncode

    async def exited(self) -> int:
        """Waits for its own end, killing it if that takes too long; its exit status.

        Raises:
            TimeoutError: it does not end.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._reap_seconds):
                await _until(lambda: not self.alive)
        return await self.reap()

    def crash_report(self) -> str:
        """The traceback that a fatal signal left, for the log."""
        try:
            with (self.folder / CRASH_FILE).open("rb") as file:
                return file.read(_MAX_CRASH_BYTES).decode(errors="replace")
        except OSError:
            return ""

    async def close(self) -> None:
        """Ends it if need be and removes its folder."""
        try:
            await self.reap()
        except TimeoutError:
            logger.error("process %d does not end though it was killed", self.pid)
        finally:
            if self._writer is not None:
                self._writer.close()
            else:
                self._link.close()
                os.close(self._output)
            await asyncio.to_thread(remove, self.folder)

    async def _send(self, message: ToChild) -> None:
        assert self._writer is not None, "begin first"  # noqa: S101
        try:
            self._writer.write(frames.encode(dump(message)))
            await self._writer.drain()
        except ConnectionError:
            return  # it is dead; reading will tell


async def _until(condition: Callable[[], bool]) -> None:
    """Looks now and then: a thread that waited could not be called off."""
    pause = 0.001
    while not condition():
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_LOOK_SECONDS)


def _group_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether nothing is left of a killed group that this process could wait for.

    As the first process of a container the worker inherits what its children started, and nobody else would
    ever wait for those.
    """
    if process.poll() is None:
        return False
    try:
        while os.waitpid(-process.pid, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return True
    return False


def _unread_bytes(descriptor: int) -> int:
    answer = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def _clear(folder: Path) -> None:
    """Removes what a job left in the private folder of its process."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove(path)
        elif path.name != CRASH_FILE:
            path.unlink(missing_ok=True)


def _ignore(line: str) -> None:
    """Nobody listens to a child without a job."""
