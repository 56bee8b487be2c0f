"""Connections: a client that neither finishes its request's head nor takes its answer is not waited for."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with limits on the time that a request's head takes and that an answer waits.

    A head's time runs from the connection's start, and later from the first byte of the next request or of a
    rest that nobody reads any more; more bytes do not prolong it. An answer may take as long as its reader
    takes some of it now and then.
    """

    head_seconds: ClassVar[float]
    idle_seconds: ClassVar[float]
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, head_seconds: float, idle_seconds: float) -> type[ImpatientProtocol]:
        """The protocol with its limits."""
        limits = {"head_seconds": head_seconds, "idle_seconds": idle_seconds}
        return type(cls.__name__, (cls,), limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Takes what came, then starts or stops the clock."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks."""
        super().connection_lost(exc)
        self._stop()
        self._stop_answer()

    def pause_writing(self) -> None:
        """More is to be sent than the reader takes: starts its clock."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The reader has taken enough."""
        super().resume_writing()
        self._stop_answer()

    def _await_reader(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._answer_timer = self.loop.call_later(self.idle_seconds, self._look_at_reader, unsent)

    def _look_at_reader(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() < unsent:
            self._await_reader()
        else:
            # Not closed: that would wait until the rest is sent.
            self.transport.abort()

    def _stop_answer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None

    def _watch(self) -> None:
        if self._answering():
            self._stop()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self._too_late)

    def _answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _too_late(self) -> None:
        self._head_timer = None
        if not self._answering():
            self.transport.close()

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def allow_open_files() -> None:
    """As many open files as the system lets this process have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
