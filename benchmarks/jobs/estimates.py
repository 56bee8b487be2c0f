"""Estimated starts and ends, on a replay of jobs by a simulated clock, held against medians of durations."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from benchmarks.rows import Row, at_least
from services.trainer.estimates import Durations, Finished, Forecast, Running, Waiting

_WORKERS = 2
_SEED = 1
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# Of each pipeline, the newest: as the service remembers them.
_HISTORY_JOBS = 100
# Until so many have finished nobody knows anything: neither counts.
_FIRST_FINISHED = 10


@dataclass
class _Job:
    """One of the replay; times in seconds from its beginning."""

    pipeline: str
    sizes: dict[str, float]
    seconds: float
    arrival: float
    start: float = math.nan
    # Guesses made when it arrived: of the start, the baseline's, and whether the intervals held.
    guess: float = math.nan
    baseline: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    end_interval: tuple[float, float] = (math.nan, math.nan)


@dataclass
class _Site:
    """What the service would know."""

    waiting: list[_Job] = field(default_factory=list)
    running: list[_Job] = field(default_factory=list)
    finished: list[_Job] = field(default_factory=list)


def run(quick: bool) -> list[Row]:
    """500 jobs of five pipelines on two workers, in the order of their arrival."""
    jobs = _arrivals(120 if quick else 500, np.random.default_rng(_SEED))
    _replay(jobs)
    # Of a job that starts at once there is nothing to guess.
    known = [job for job in jobs if not math.isnan(job.guess) and job.start > job.arrival]
    error = statistics.fmean(abs(job.guess - job.start) for job in known)
    baseline = statistics.fmean(abs(job.baseline - job.start) for job in known)
    starts = statistics.fmean(job.interval[0] <= job.start <= job.interval[1] for job in known)
    ends = statistics.fmean(
        job.end_interval[0] <= job.start + job.seconds <= job.end_interval[1] for job in known
    )
    note = f"{len(known)} of {len(jobs)} jobs had to wait when something was known"
    return [
        at_least("start error below that by median durations", 100 * (1 - error / baseline), "%", 30, note),
        Row("mean absolute error of the estimated start", error, "s"),
        Row("the same by median durations of each pipeline", baseline, "s"),
        _within("80 % interval of the start holds it", 100 * starts),
        _within("80 % interval of the end holds it", 100 * ends),
    ]


def _within(name: str, value: float) -> Row:
    return Row(name, value, "%", "70 to 90", 70 <= value <= 90)


def _arrivals(count: int, draws: np.random.Generator) -> list[_Job]:
    """Pipelines whose durations go with steps and curves, or not at all, with scatter of their own."""
    kinds = (
        # name, share, seconds of a step and curve, exponents of steps and curves, scatter
        ("train", 0.35, 2e-3, 1.0, 0.5, 0.12),
        ("chain", 0.15, 4e-3, 0.9, 0.6, 0.25),
        ("simulate", 0.25, 0.02, 0.0, 0.8, 0.2),
        ("import", 0.15, 8.0, 0.0, 0.0, 0.5),
        ("plan", 0.10, 0.5, 0.8, 0.0, 0.3),
    )
    jobs = []
    arrival = 0.0
    for _ in range(count):
        name, _, scale, by_steps, by_curves, scatter = kinds[
            int(draws.choice(len(kinds), p=[kind[1] for kind in kinds]))
        ]
        steps, curves = float(np.exp(draws.uniform(3, 8))), float(np.exp(draws.uniform(4, 9)))
        # Parameters that change nothing are there too.
        sizes = {".steps": steps, ".curves": curves, ".rate": float(np.exp(draws.uniform(-9, -5)))}
        seconds = scale * steps**by_steps * curves**by_curves * math.exp(draws.normal(0, scatter))
        jobs.append(_Job(name, sizes, seconds, 0.0))
    # Two workers are busy for 95 of 100 seconds, in waves.
    between = statistics.fmean(job.seconds for job in jobs) / _WORKERS / 0.95
    for number, job in enumerate(jobs):
        arrival += draws.exponential(between * (0.5 if number // 25 % 2 else 1.5))
        job.arrival = arrival
    return jobs


def _replay(jobs: Sequence[_Job]) -> None:
    """Plays them through, and asks at each arrival when the job will start and end."""
    site = _Site()
    ends: list[tuple[float, int, _Job]] = []
    for number, job in enumerate(jobs):
        while ends and ends[0][0] <= job.arrival:
            _end(site, ends)
        site.waiting.append(job)
        if len(site.finished) >= _FIRST_FINISHED:
            _guess(site, job)
        if len(site.running) < _WORKERS:
            _begin(site, ends, job.arrival, number)
    while ends:
        _end(site, ends)


def _begin(site: _Site, ends: list[tuple[float, int, _Job]], now: float, number: int) -> None:
    job = site.waiting.pop(0)
    job.start = now
    site.running.append(job)
    heapq.heappush(ends, (now + job.seconds, number, job))


def _end(site: _Site, ends: list[tuple[float, int, _Job]]) -> None:
    now, number, job = heapq.heappop(ends)
    site.running.remove(job)
    site.finished.append(job)
    if site.waiting:
        _begin(site, ends, now, number)


def _guess(site: _Site, job: _Job) -> None:
    now, before = job.arrival, site.waiting[:-1]
    known = [
        Finished(item.pipeline, item.sizes, item.seconds)
        for name in {item.pipeline for item in site.finished}
        for item in [one for one in site.finished if one.pipeline == name][-_HISTORY_JOBS:]
    ]
    running = [
        Running(item.pipeline, item.sizes, now - item.start, _fraction(item, now)) for item in site.running
    ]
    forecast = Forecast(Durations(known), running, _WORKERS, [(item.pipeline, item.sizes) for item in before])
    told = forecast.of_waiting([Waiting(job.pipeline, job.sizes, len(before))], _at(now))[0]
    assert told is not None
    start, end = told
    job.guess = _seconds(start.middle)
    job.interval = _seconds(start.earliest), _seconds(start.latest)
    job.end_interval = _seconds(end.earliest), _seconds(end.latest)
    job.baseline = now + _by_medians(known, running, before)


def _fraction(job: _Job, now: float) -> float:
    """As pipelines report it: whole steps of the last phase, which begins after a tenth of the time."""
    done = (now - job.start) / job.seconds
    return max(0.0, math.floor(20 * (done - 0.1) / 0.9) / 20) if job.pipeline != "import" else 0.0


def _by_medians(known: Sequence[Finished], running: Sequence[Running], before: Sequence[_Job]) -> float:
    """Seconds until a worker is free, if every job takes as long as the median one of its pipeline."""
    everything = statistics.median(job.seconds for job in known)

    def usual(pipeline: str) -> float:
        own = [job.seconds for job in known if job.pipeline == pipeline]
        return statistics.median(own) if own else everything

    free = [max(0.0, usual(job.pipeline) - job.elapsed_seconds) for job in running]
    free += [0.0] * (_WORKERS - len(free))
    heapq.heapify(free)
    for job in before:
        heapq.heappush(free, heapq.heappop(free) + usual(job.pipeline))
    return free[0]


def _at(seconds: float) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)


def _seconds(time: datetime) -> float:
    return (time - _EPOCH).total_seconds()
