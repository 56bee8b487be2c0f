"""Turns in front of a model, and processes for fits."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from guidehall.core.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable
from services.inference.execution import Engine, Turns
from services.inference.refinement import RefinementPool
from services.inference.settings import ExecutionSettings, RefinementSettings
from tests.unit.inference import fits


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(ExecutionSettings(device="cpu", threads=4, max_queued_requests=2))
    yield engine
    engine.close()


class Gate:
    """A call that blocks its thread until it is let go, and counts how many are in it at once."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.calls = 0
        self.most_at_once = 0
        self._inside = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.calls += 1
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
        assert self.open.wait(20)
        with self._lock:
            self._inside -= 1
        return self.calls


async def reached(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # threads set what is waited for


async def test_one_call_at_a_time_and_a_full_queue_is_refused(engine: Engine) -> None:
    turns, gate = Turns(engine), Gate()
    running = [asyncio.create_task(turns.run(gate)) for _ in range(3)]
    await reached(lambda: turns.waiting == 2)
    with pytest.raises(ResourceExhausted) as caught:
        await turns.run(gate)
    assert caught.value.retry_after_seconds == engine.settings.retry_after_seconds
    gate.open.set()
    await asyncio.gather(*running)
    assert (gate.calls, gate.most_at_once) == (3, 1)
    assert not turns.busy


async def test_who_leaves_the_queue_is_never_run(engine: Engine) -> None:
    turns, gate = Turns(engine), Gate()
    first = asyncio.create_task(turns.run(gate))
    await reached(lambda: gate.calls == 1)
    second = asyncio.create_task(turns.run(gate))
    await reached(lambda: turns.waiting == 1)
    with pytest.raises(DeadlineExceeded):
        await turns.run(gate, queue_seconds=0.01)
    second.cancel()
    gate.open.set()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    assert gate.calls == 1
    assert not turns.busy


async def test_the_next_call_waits_for_the_real_end_of_one_whose_caller_left(engine: Engine) -> None:
    turns, gate = Turns(engine), Gate()
    first = asyncio.create_task(turns.run(gate))
    await reached(lambda: gate.calls == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(turns.run(gate))
    await reached(lambda: turns.waiting == 1)
    gate.open.set()
    await second
    assert gate.most_at_once == 1


@pytest.fixture
def pool() -> Iterator[RefinementPool]:
    pool = RefinementPool(RefinementSettings(workers=1, max_queued=1, timeout_seconds=30))
    yield pool
    pool.close()


async def test_fits_run_elsewhere_one_process_for_many(pool: RefinementPool) -> None:
    first, second = await pool.run(fits.process), await pool.run(fits.process)
    assert first == second != os.getpid()
    with pytest.raises(InvalidArgument) as caught:
        await pool.run(fits.refuse)
    assert caught.value.violations[0].field == "curve.q[3]"
    assert await pool.run(fits.process) == first


async def test_too_many_fits_are_refused(pool: RefinementPool) -> None:
    tasks = [asyncio.create_task(pool.run(fits.process)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted) as caught:
        await pool.run(fits.process)
    assert caught.value.retry_after_seconds
    assert len(set(await asyncio.gather(*tasks))) == 1


async def test_a_fit_that_dies_takes_only_itself_along(pool: RefinementPool) -> None:
    with pytest.raises(Unavailable):
        await pool.run(fits.die)
    assert await pool.run(fits.process) != os.getpid()


async def test_a_fit_that_takes_too_long_is_ended() -> None:
    pool = RefinementPool(RefinementSettings(workers=1, max_queued=1, timeout_seconds=0.2))
    try:
        with pytest.raises(DeadlineExceeded):
            await pool.run(fits.hang)
    finally:
        pool.close()
