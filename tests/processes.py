"""Our programs as processes of their own: started, listened to, ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_LISTENING = '"msg": "listening"'
_START_SECONDS = 60
_STOP_SECONDS = 30


class Program:
    """`python -m MODULE ARGUMENT…`, running.

    Args:
        prefix: a command that starts it in its own place, such as in another network.

    Attributes:
        log: what it has logged, as it came.
    """

    def __init__(self, *command: str, environ: Mapping[str, str], prefix: Sequence[str] = ()) -> None:
        self._name = " ".join(command)
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", *command],
            env=dict(environ),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._ended = False
        self._heard = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, text: str, seconds: float = _START_SECONDS) -> str:
        """The first line that it has logged or will log with this text."""
        with self._heard:
            self._heard.wait_for(lambda: self._ended or self._find(text) is not None, seconds)
            line = self._find(text)
        assert line is not None, f"{self._name}: {text!r} is not in {''.join(self.log)}"
        return line

    def _find(self, text: str) -> str | None:
        return next((line for line in self.log if text in line), None)

    def children(self) -> set[int]:
        """Processes that it started and that live."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(pid) for pid in listed.split()}

    def peak_bytes(self) -> int:
        """The most memory that it has held so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal, if it has not ended; its exit status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait(_STOP_SECONDS)

    def wait(self, seconds: float = _START_SECONDS) -> int:
        """Its exit status, when it has ended; what takes longer is killed."""
        try:
            status = self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._reader.join(timeout=10)
        assert self._process.stderr is not None
        self._process.stderr.close()
        # pytest shows it with a failure.
        sys.stderr.writelines(self.log)
        return status

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._hear(lambda line=line: self.log.append(line))
        self._hear(lambda: setattr(self, "_ended", True))

    def _hear(self, change: Callable[[], None]) -> None:
        with self._heard:
            change()
            self._heard.notify_all()


class Server(Program):
    """A program that serves gRPC on a port that it chooses.

    Args:
        ready: the service whose health says that it is ready.

    Attributes:
        target: where it listens.
    """

    def __init__(self, *command: str, environ: Mapping[str, str], ready: str) -> None:
        super().__init__(*command, environ=environ)
        self._ready = ready
        self.target = f"127.0.0.1:{json.loads(self.wait_for(_LISTENING))['port']}"

    def wait_serving(self, service: str | None = None) -> None:
        """Returns when a service of it serves ("" is the process); without a name, when it is ready."""
        with grpc.insecure_channel(self.target) as channel:
            request = health_pb2.HealthCheckRequest(service=self._ready if service is None else service)
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                request, timeout=_START_SECONDS, wait_for_ready=True
            )
            assert any(answer.status == answer.SERVING for answer in watch)
            watch.cancel()

    def serving(self, service: str) -> bool:
        """What health says now."""
        with grpc.insecure_channel(self.target) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            return bool(answer.status == answer.SERVING)
