"""Operations without I/O: each is a generator that yields what it wants done and is sent the outcome.

`Client` and `AsyncClient` differ only in the driver that performs these steps; what a method does is written
once.
A step that fails is raised inside the operation as an `AppError` or `OSError`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from guidehall.core.errors import AppError

T = TypeVar("T")


@dataclass(frozen=True)
class Rpc:
    """A method of a service: `Rpc("trainer", JobsServiceStub, "GetJob")`."""

    service: str
    stub: type[Any]
    method: str


@dataclass(frozen=True)
class Call:
    """One request, one answer. Answered with the response message."""

    rpc: Rpc
    request: Any
    timeout_seconds: float


@dataclass(frozen=True)
class Open:
    """Starts a stream of answers. Answered with a stream for `Read`, which has `cancel()`."""

    rpc: Rpc
    request: Any
    timeout_seconds: float


@dataclass(frozen=True)
class Read:
    """Answered with the next message of the stream, or None at its end."""

    stream: Any


class Requests:
    """The requests of an upload. gRPC says only that making one failed; this remembers why.

    Attributes:
        error: what reading the file ran into.
    """

    def __init__(self, requests: Iterator[Any]) -> None:
        self._requests = requests
        self.error: OSError | None = None

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._requests)
        except OSError as error:
            self.error = error
            raise


@dataclass(frozen=True)
class Upload:
    """Sends a stream of requests, which may block on files. Answered with the response message."""

    rpc: Rpc
    requests: Requests
    timeout_seconds: float


@dataclass(frozen=True)
class Pause:
    """Waits. Answered with None."""

    seconds: float


@dataclass(frozen=True)
class Work:
    """Does something that blocks, such as writing a file. Answered with what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Hands an item to the caller who iterates. Answered with None."""

    item: Any


Step = Call | Open | Read | Upload | Pause | Work | Emit
Operation = Generator[Step, Any, T]


class Progression(Generic[T]):
    """Takes an operation from step to step; the driver says how each one went."""

    result: T

    def __init__(self, operation: Operation[T]) -> None:
        self._operation = operation
        self._resume: Callable[[], Step] = partial(operation.send, None)

    def advance(self) -> Step | None:
        """The next step; None once `result` is there."""
        try:
            return self._resume()
        except StopIteration as end:
            self.result = end.value
            return None

    def answer(self, value: Any) -> None:
        """The step went well."""
        self._resume = partial(self._operation.send, value)

    def fail(self, error: Exception) -> None:
        """The step failed."""
        self._resume = partial(self._operation.throw, error)

    def close(self) -> None:
        """Ends the operation wherever it is."""
        self._operation.close()


def for_each(operation: Operation[T], consume: Callable[[Any], None]) -> Operation[T]:
    """`operation`, with what it emits going to `consume` instead of to the caller."""
    progression = Progression(operation)
    while (step := progression.advance()) is not None:
        if isinstance(step, Emit):
            consume(step.item)
            progression.answer(None)
            continue
        try:
            progression.answer((yield step))
        except (AppError, OSError) as error:
            progression.fail(error)
    return progression.result


def collect(operation: Operation[None]) -> Operation[list[Any]]:
    """Everything that `operation` emits, as a list."""
    items: list[Any] = []
    yield from for_each(operation, items.append)
    return items
