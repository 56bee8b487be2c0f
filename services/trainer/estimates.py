"""When jobs will start and end: from how long finished ones took, what runs now, and the order of the queue.

Pure: times are seconds, and chance is drawn from a fixed seed, so that the same queue gets the same answer.

The logarithm of a job's duration is taken to be linear in the logarithms of the numbers among its parameters
(steps, curves, epochs, ...), with slopes and an offset of its pipeline's own. Both are shrunk: slopes towards
none, the offset towards that of all pipelines of the pool, so that a few finished jobs do not make a wild
guess. What is not known for certain is drawn many times over, and the queue is played through with each draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sizes = Mapping[str, float]
Samples = NDArray[np.float64]

DRAWS = 200
# Of the sorted draws: 10, 50 and 90 of 100.
_MIDDLE, _EARLY, _LATE = DRAWS // 2, DRAWS // 10, DRAWS - 1 - DRAWS // 10
# Played through one by one; those after them wait for the work before them to be shared evenly.
MOST_PLAYED = 300
_SEED = 20_240_229
_MOST_SIZES = 6
# How much is believed before anything was seen, in logarithms of seconds: spread of slopes, of pipelines
# around their pool's mean, and of jobs around their pipeline's line, the last worth so many finished jobs.
_SLOPE_SPREAD, _PIPELINE_SPREAD = 0.7, 1.5
_JOB_SPREAD, _JOB_SPREAD_WORTH = 0.4, 3.0
# Progress tells the end no better than this, and so much of a job may lie outside of its main phase.
_PROGRESS_SPREAD, _OUTSIDE_PHASE = 0.08, 0.15
# Spreads above the expected duration from which on a job is taken for a longer one.
_OVERDUE = 1.5
_LONGEST_LOG = math.log(10 * 365 * 86_400.0)


@dataclass(frozen=True)
class Interval:
    """A time that is not certain: in 80 of 100 cases it lies between the two ends."""

    middle: datetime
    earliest: datetime
    latest: datetime


@dataclass(frozen=True)
class Finished:
    """A job that succeeded at the first attempt."""

    pipeline: str
    sizes: Sizes
    seconds: float


@dataclass(frozen=True)
class Running:
    """A job that a worker holds.

    Attributes:
        elapsed_seconds: since the attempt began.
        fraction: of its present phase that is done, 0 to 1; 0 where it does not say.
    """

    pipeline: str
    sizes: Sizes
    elapsed_seconds: float
    fraction: float = 0.0


@dataclass(frozen=True)
class Waiting:
    """A queued job and how many are before it."""

    pipeline: str
    sizes: Sizes
    position: int


def sizes_in(params: Mapping[str, Any]) -> dict[str, float]:
    """The numbers above 0 among parameters, and the lengths of lists, by path."""
    found: dict[str, float] = {}
    _collect(params, "", found)
    return found


def _collect(value: Any, path: str, found: dict[str, float]) -> None:
    match value:
        case bool():
            pass
        case int() | float() if value > 0:
            found[path] = float(value)
        case Mapping():
            for key, item in value.items():
                _collect(item, f"{path}.{key}", found)
        case list() if value:
            found[f"{path}[]"] = float(len(value))


class _Line:
    """What is known of one pipeline: draws of its offset and slopes, and of jobs around it."""

    def __init__(self, jobs: Sequence[Finished], pool_mean: float, draws: np.random.Generator) -> None:
        self.names = _telling_sizes(jobs)
        logs = [{name: math.log(job.sizes[name]) for name in self.names if name in job.sizes} for job in jobs]
        self._centres = np.array(
            [np.mean([log[name] for log in logs if name in log]) for name in self.names], dtype=float
        )
        rows = np.array([self.row(job.sizes) for job in jobs], dtype=float).reshape(-1, 1 + len(self.names))
        taken = np.array([math.log(job.seconds) for job in jobs], dtype=float)
        prior = np.zeros(rows.shape[1])
        prior[0] = pool_mean
        belief = np.diag([_PIPELINE_SPREAD**-2, *[_SLOPE_SPREAD**-2] * len(self.names)])
        variance = _JOB_SPREAD**2
        # The line depends on the spread around it, and the other way round: settled after a few rounds.
        for _ in range(5):
            covariance = np.linalg.inv(rows.T @ rows / variance + belief)
            line = covariance @ (rows.T @ taken / variance + belief @ prior)
            used = float(np.trace(covariance @ (rows.T @ rows))) / variance
            rest = float(np.sum((taken - rows @ line) ** 2))
            left = max(0.0, len(jobs) - used)
            variance = (_JOB_SPREAD_WORTH * _JOB_SPREAD**2 + rest) / (_JOB_SPREAD_WORTH + left)
        self.mean, self.spread = line, math.sqrt(variance)
        self.covariance = covariance
        self.lines: Samples = draws.multivariate_normal(line, covariance, DRAWS)
        # The spread itself is not certain either: few jobs, heavy tails.
        self._freedom = _JOB_SPREAD_WORTH + left

    def row(self, sizes: Sizes) -> list[float]:
        """The regressors of a job; a size that it does not have counts as the usual one."""
        return [
            1.0,
            *(
                math.log(sizes[name]) - centre if name in sizes else 0.0
                for name, centre in zip(self.names, self._centres, strict=True)
            ),
        ]

    def draw(self, rows: Samples, draws: np.random.Generator) -> Samples:
        """Durations in seconds, (jobs, DRAWS)."""
        around = self.spread * draws.standard_t(self._freedom, (len(rows), DRAWS))
        return np.exp(np.minimum(rows @ self.lines.T + around, _LONGEST_LOG))

    def believed(self, row: Sequence[float]) -> tuple[float, float]:
        """Mean and variance of the logarithm of a job's duration."""
        at = np.array(row)
        return float(at @ self.mean), float(at @ self.covariance @ at) + self.spread**2


def _telling_sizes(jobs: Sequence[Finished]) -> list[str]:
    """The sizes that differ between jobs and go with their durations, the most telling ones first."""
    taken = np.array([math.log(job.seconds) for job in jobs])
    telling = []
    for name in sorted({name for job in jobs for name in job.sizes}):
        has = np.array([name in job.sizes for job in jobs])
        if has.sum() < max(3, len(jobs) / 2):
            continue
        logs = np.array([math.log(job.sizes[name]) for job in jobs if name in job.sizes])
        if np.ptp(logs) > 0 and np.ptp(taken[has]) > 0:
            telling.append((-abs(float(np.corrcoef(logs, taken[has])[0, 1])), name))
    return [name for _, name in sorted(telling)[:_MOST_SIZES]]


class Durations:
    """How long jobs of a pool take."""

    def __init__(self, finished: Sequence[Finished]) -> None:
        self._draws = np.random.default_rng(_SEED)
        self.known = bool(finished)
        self._pool_mean = float(np.mean([math.log(job.seconds) for job in finished])) if finished else 0.0
        of: dict[str, list[Finished]] = {}
        for job in finished:
            of.setdefault(job.pipeline, []).append(job)
        self._lines = {name: _Line(jobs, self._pool_mean, self._draws) for name, jobs in sorted(of.items())}

    def _line(self, pipeline: str) -> _Line:
        if pipeline not in self._lines:
            self._lines[pipeline] = _Line([], self._pool_mean, self._draws)
        return self._lines[pipeline]

    def draw(self, jobs: Sequence[tuple[str, Sizes]]) -> Samples:
        """Durations in seconds of (pipeline, sizes), (jobs, DRAWS)."""
        drawn = np.empty((len(jobs), DRAWS))
        places: dict[str, list[int]] = {}
        for place, (pipeline, _) in enumerate(jobs):
            places.setdefault(pipeline, []).append(place)
        for pipeline, which in places.items():
            line = self._line(pipeline)
            rows = np.array([line.row(jobs[place][1]) for place in which])
            drawn[which] = line.draw(rows, self._draws)
        return drawn

    def remaining(self, job: Running) -> Samples:
        """Seconds until the end of a running job, (DRAWS,): what is known of its like, and its progress."""
        line = self._line(job.pipeline)
        mean, variance = line.believed(line.row(job.sizes))
        elapsed = max(job.elapsed_seconds, 1e-3)
        if job.fraction > 0:
            told = math.log(elapsed / job.fraction)
            # What comes before and after the phase is not known, and weighs more the less of it is done. A
            # phase that is nearly over may not even be the last one: what contradicts counts for little.
            outside = _OUTSIDE_PHASE * (1 - job.fraction) / job.fraction
            spread = max(_PROGRESS_SPREAD + outside, abs(told - mean) / 2)
            weight = variance / (variance + spread**2)
            mean, variance = mean + weight * (told - mean), variance * (1 - weight)
        # One that is long overdue is not what it was taken for: nothing says that it ends this moment.
        normal = NormalDist(
            max(mean, math.log(elapsed) - _OVERDUE * math.sqrt(variance)), math.sqrt(variance)
        )
        # It takes longer than it has taken so far.
        past = min(normal.cdf(math.log(elapsed)), 1 - 1e-6)
        chances = past + (1 - past) * (np.arange(DRAWS) + 0.5) / DRAWS
        whole = np.exp(
            np.minimum([normal.inv_cdf(min(chance, 1 - 1e-9)) for chance in chances], _LONGEST_LOG)
        )
        remaining: Samples = np.maximum(whole - elapsed, 0.0)
        return self._draws.permutation(remaining)


class Forecast:
    """The near future of a pool.

    Args:
        durations: how long its jobs take.
        running: what its workers hold.
        workers: those that live and are in service, with and without a job.
        queue: (pipeline, sizes) in the order in which they will be leased.
    """

    def __init__(
        self,
        durations: Durations,
        running: Sequence[Running],
        workers: int,
        queue: Sequence[tuple[str, Sizes]],
    ) -> None:
        self._durations = durations
        self._starts: Samples | None = None
        if durations.known and workers:
            self._starts = self._play(running, max(workers, len(running)), queue)

    def _play(self, running: Sequence[Running], workers: int, queue: Sequence[tuple[str, Sizes]]) -> Samples:
        """When the first, second, ... of the queue starts, and who comes after it, (places + 1, DRAWS)."""
        free = np.zeros((workers, DRAWS))
        for place, job in enumerate(running):
            free[place] = self._durations.remaining(job)
        drawn = self._durations.draw(queue)
        starts = np.empty((len(queue) + 1, DRAWS))
        every = np.arange(DRAWS)
        played = min(len(queue), MOST_PLAYED)
        for place in range(played):
            first = free.argmin(axis=0)
            starts[place] = free[first, every]
            free[first, every] += drawn[place]
        starts[played] = free.min(axis=0)
        if played < len(queue):
            starts[played + 1 :] = starts[played] + np.cumsum(drawn[played:], axis=0) / workers
        return starts

    def of_waiting(self, jobs: Sequence[Waiting], now: datetime) -> list[tuple[Interval, Interval] | None]:
        """When each starts and ends; None where nothing is known."""
        if self._starts is None or not jobs:
            return [None] * len(jobs)
        last = len(self._starts) - 1
        starts = self._starts[[min(job.position, last) for job in jobs]]
        ends = starts + self._durations.draw([(job.pipeline, job.sizes) for job in jobs])
        return list(zip(_intervals(starts, now), _intervals(ends, now), strict=True))

    def of_running(self, jobs: Sequence[Running], now: datetime) -> list[Interval | None]:
        """When each ends; None where nothing is known."""
        if not self._durations.known or not jobs:
            return [None] * len(jobs)
        return list(_intervals(np.array([self._durations.remaining(job) for job in jobs]), now))


def _intervals(samples: Samples, now: datetime) -> list[Interval]:
    """Of seconds from now, (jobs, DRAWS)."""
    ordered = np.sort(samples, axis=1)
    return [
        Interval(*(now + timedelta(seconds=float(row[place])) for place in (_MIDDLE, _EARLY, _LATE)))
        for row in np.minimum(ordered, math.exp(_LONGEST_LOG))
    ]
