"""How often one caller may ask for something: so many times in any minute.

Each process counts for itself: behind `n` gateways a caller gets up to `n` times as many.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from guidehall.core.auth import current_principal
from guidehall.core.errors import ResourceExhausted
from services.gateway.settings import LegacySettings

WINDOW_SECONDS = 60.0


class RateLimit:
    """Admits so many in any window of time, for each caller.

    Args:
        what: is counted, as a refusal says it.
        most: in a window; 0 admits all.
        window_seconds: how long each counts.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        what: str,
        most: int,
        window_seconds: float = WINDOW_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._most = most
        self._window_seconds = window_seconds
        self._clock = clock
        self._times: dict[str, deque[float]] = {}
        self._tidy_at = clock() + window_seconds

    def admit(self, caller: str) -> None:
        """Counts one more of a caller's. What is refused does not count.

        Raises:
            ResourceExhausted: it is one too many; says when it would not be.
        """
        if not self._most:
            return
        now = self._clock()
        self._tidy(now)
        times = self._times.setdefault(caller, deque())
        self._forget(times, now)
        if len(times) >= self._most:
            raise ResourceExhausted(
                f"{self._what}: {len(times)} in {self._window_seconds:g} seconds;"
                f" allowed: {self._most}; try again later",
                reason="RATE_LIMITED",
                retry_after_seconds=math.ceil(times[0] + self._window_seconds - now),
            )
        times.append(now)

    def _forget(self, times: deque[float], now: float) -> None:
        while times and times[0] <= now - self._window_seconds:
            times.popleft()

    def _tidy(self, now: float) -> None:
        """Forgets callers who have not come for a while: anybody could make up more and more of them."""
        if now < self._tidy_at:
            return
        self._tidy_at = now + self._window_seconds
        for caller, times in list(self._times.items()):
            self._forget(times, now)
            if not times:
                del self._times[caller]


def caller_of(request: Request) -> str:
    """Whose requests count together: those of a user, or, of guests, those from one address."""
    principal = current_principal()
    if principal.kind == "guest":
        return f"address:{request.client.host if request.client else ''}"
    return f"user:{principal.subject}"


@dataclass(frozen=True)
class RateLimits:
    """All that is counted."""

    upload: RateLimit
    jobs_submit: RateLimit

    @classmethod
    def of(cls, settings: LegacySettings) -> RateLimits:
        """As set."""
        return cls(
            upload=RateLimit("uploads", settings.upload_per_minute),
            jobs_submit=RateLimit("submitted jobs", settings.jobs_submit_per_minute),
        )


def rate_limits(request: Request) -> RateLimits:
    """Those of the gateway."""
    limits: RateLimits = request.app.state.rate_limits
    return limits


def admit_job(request: Request) -> None:
    """Counts a job that a request is about to make.

    Raises:
        ResourceExhausted: it is one too many.
    """
    rate_limits(request).jobs_submit.admit(caller_of(request))
