"""Estimates of starts and ends: pure, so that what they should say is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest

from benchmarks.jobs import estimates
from services.trainer.estimates import (
    MOST_PLAYED,
    Durations,
    Finished,
    Forecast,
    Interval,
    Running,
    Waiting,
    sizes_in,
)

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


def seconds(interval: Interval | None) -> tuple[float, float, float]:
    """Earliest, middle, latest."""
    assert interval is not None
    times = (interval.earliest, interval.middle, interval.latest)
    low, middle, high = ((time - _NOW).total_seconds() for time in times)
    return low, middle, high


def by_steps(count: int, scatter: float = 0.05, seed: int = 1) -> list[Finished]:
    """Jobs that take a tenth of a second for each step."""
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        steps = float(np.exp(draws.uniform(3, 8)))
        found.append(Finished("fit", {".steps": steps}, 0.1 * steps * math.exp(draws.normal(0, scatter))))
    return found


def start(
    finished: Sequence[Finished],
    running: Sequence[Running] = (),
    workers: int = 1,
    before: Sequence[tuple[str, dict[str, float]]] = (),
) -> tuple[float, float, float]:
    """Of a job behind `before`."""
    forecast = Forecast(Durations(finished), running, workers, before)
    told = forecast.of_waiting([Waiting("fit", {".steps": 1000.0}, len(before))], _NOW)[0]
    assert told is not None
    return seconds(told[0])


def test_the_numbers_among_parameters_are_sizes() -> None:
    params = {"steps": 10, "net": {"widths": [1, 2, 3], "rate": 1e-3, "on": True}, "name": "x", "zero": 0}
    assert sizes_in(params) == {".steps": 10.0, ".net.widths[]": 3.0, ".net.rate": 1e-3}


def test_without_a_finished_job_or_a_worker_nothing_is_known() -> None:
    job = Waiting("fit", {}, 0)
    assert Forecast(Durations([]), [], 1, []).of_waiting([job], _NOW) == [None]
    assert Forecast(Durations([]), [], 1, []).of_running([Running("fit", {}, 1.0)], _NOW) == [None]
    assert Forecast(Durations(by_steps(5)), [], 0, []).of_waiting([job], _NOW) == [None]
    assert Forecast(Durations(by_steps(5)), [], 1, []).of_waiting([], _NOW) == []


def test_durations_follow_the_size_that_tells() -> None:
    durations = Durations(by_steps(40))
    small, large = np.median(durations.draw([("fit", {".steps": 50.0}), ("fit", {".steps": 5000.0})]), axis=1)
    assert small == pytest.approx(5, rel=0.15)
    assert large == pytest.approx(500, rel=0.15)


def test_what_is_not_known_well_is_told_with_a_wider_interval() -> None:
    def width(finished: list[Finished]) -> float:
        ordered = np.sort(np.log(Durations(finished).draw([("fit", {".steps": 300.0})])[0]))
        return float(ordered[-20] - ordered[20])

    assert width(by_steps(40)) < width(by_steps(4)) < width([Finished("other", {}, 30.0)])


def test_a_pipeline_without_history_is_taken_for_one_of_its_pool() -> None:
    durations = Durations([Finished("other", {}, 30.0 + place) for place in range(20)])
    assert np.median(durations.draw([("fit", {})])) == pytest.approx(40, rel=0.4)


def test_an_idle_worker_starts_the_first_at_once_and_the_next_when_it_is_free() -> None:
    finished = by_steps(40)
    assert start(finished) == (0, 0, 0)
    low, middle, high = start(finished, before=[("fit", {".steps": 2000.0})])
    assert middle == pytest.approx(200, rel=0.1)
    assert low < 200 < high
    both = [("fit", {".steps": 2000.0}), ("fit", {".steps": 100.0})]
    assert start(finished, workers=2, before=both)[1] == pytest.approx(10, rel=0.15)


def test_progress_tells_how_much_of_a_running_job_is_left() -> None:
    finished = by_steps(40, scatter=0.5)

    def left(fraction: float) -> float:
        running = Running("fit", {".steps": 1000.0}, 60.0, fraction)
        return start(finished, running=[running])[1]

    # A job that was expected to take 100 s and is half done after a minute takes a little longer.
    assert left(0.0) > 20
    assert left(0.5) == pytest.approx(55, rel=0.25)
    # A phase that is nearly over is not the end, where everything else speaks against it.
    early = Running("fit", {".steps": 5000.0}, 5.0, 0.99)
    assert start(by_steps(40), running=[early])[1] > 200


def test_a_job_that_takes_longer_than_ever_is_still_not_over() -> None:
    low, middle, high = start(by_steps(40), running=[Running("fit", {".steps": 1000.0}, 5000.0)])
    assert 0 <= low <= middle <= high
    assert high > 0


def test_the_same_queue_gets_the_same_answer_and_a_long_one_an_answer_too() -> None:
    finished = by_steps(20)
    queue = [("fit", {".steps": 100.0})] * (MOST_PLAYED + 100)
    answers = [start(finished, workers=2, before=queue) for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0][1] == pytest.approx(10 * len(queue) / 2, rel=0.1)
    shorter = start(finished, workers=2, before=queue[:-50])
    assert shorter[1] < answers[0][1]


def test_a_running_job_ends_after_now() -> None:
    forecast = Forecast(Durations(by_steps(30)), [], 1, [])
    told = forecast.of_running([Running("fit", {".steps": 1000.0}, 20.0, 0.2)], _NOW)[0]
    low, middle, high = seconds(told)
    assert 0 < low < middle < high
    assert middle == pytest.approx(80, rel=0.2)


@pytest.mark.slow
def test_the_replay_runs() -> None:
    rows = estimates.run(True)
    assert all(math.isfinite(row.value) for row in rows)
