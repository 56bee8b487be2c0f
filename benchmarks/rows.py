"""What a benchmark reports, and the fair way to time two things against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        bar: what it is held against, such as ">= 8"; empty when nothing is promised.
        note: what else a reader must know, such as on how many curves it was measured.
    """

    name: str
    value: float
    unit: str
    bar: str = ""
    met: bool | None = None
    note: str = ""


def at_least(name: str, value: float, unit: str, bar: float, note: str = "") -> Row:
    """A figure that must not be smaller than `bar`."""
    return Row(name, value, unit, f">= {bar:g}", value >= bar, note)


def at_most(name: str, value: float, unit: str, bar: float, note: str = "") -> Row:
    """A figure that must not be larger than `bar`."""
    return Row(name, value, unit, f"<= {bar:g}", value <= bar, note)


def interleaved_cpu_seconds(rounds: int, runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU seconds of each callable, run in turn (A B A B …) so that a drifting machine hits all alike.

    Args:
        rounds: how often each is run and counted; one round before is not.
        runs: callables by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if round_number > 0:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def single_thread() -> Iterator[None]:
    """torch on one core for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
