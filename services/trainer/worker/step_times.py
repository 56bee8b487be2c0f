"""How long the steps of jobs take, for operators."""

from __future__ import annotations

from prometheus_client import Histogram

from services.trainer.worker.messages import Progressed

_SECONDS = Histogram(
    "guidehall_worker_step_seconds",
    "Mean time of a step between two reports of a job's progress",
    ["pipeline"],
    buckets=(0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)


class StepTimes:
    """Of one attempt. A report may leave out steps, and those of another phase say nothing of this one's."""

    def __init__(self, pipeline: str) -> None:
        self._seconds = _SECONDS.labels(pipeline)
        self._phase, self._step, self._time = "", 0, 0.0

    def stepped(self, progress: Progressed, now: float) -> None:
        """A step was reported at `now` (monotonic seconds)."""
        steps = progress.step - self._step
        if progress.phase == self._phase and steps > 0 and self._time:
            self._seconds.observe((now - self._time) / steps)
        self._phase, self._step, self._time = progress.phase, progress.step, now
