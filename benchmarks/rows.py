"""What a benchmark reports, and the fair way to time two things against each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One measured figure. `bar` is what it is held against, such as ">= 8"; empty when nothing is
    promised."""

    name: str
    value: float
    unit: str
    bar: str = ""
    met: bool | None = None


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
