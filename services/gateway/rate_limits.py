"""How often one caller may ask for something: so many times in any minute.

Each process counts for itself and refuses what is too much for it alone. What it would let through storage
counts too, for all gateways together, in windows that begin with their first call. While storage cannot be
asked, what the process counts is all that counts.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from starlette.requests import Request

from guidehall.contracts.identity.v1 import identity_pb2
from guidehall.core.auth import current_principal
from guidehall.core.errors import ResourceExhausted, from_rpc_error
from services.gateway.backends import Backends
from services.gateway.callers import as_platform
from services.gateway.settings import GatewaySettings, LegacySettings

if TYPE_CHECKING:
    from guidehall.contracts.identity.v1.identity_pb2_grpc import IdentityServiceAsyncStub

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
# A count is not worth a longer wait.
_ASK_SECONDS = 1.0


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

    def take_back(self, caller: str) -> None:
        """The last one of a caller's does not count."""
        if times := self._times.get(caller):
            times.pop()

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


class SharedRateLimit:
    """A limit that several gateways keep together.

    Args:
        what: is counted, as a refusal says it.
        most: in any minute; 0 admits all.
    """

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._most = most
        self._own = RateLimit(what, most)
        self._is_away = False

    async def admit(self, caller: str, identity: IdentityServiceAsyncStub | None) -> None:
        """Counts one more of a caller's.

        Args:
            caller: whose it is.
            identity: where the gateways count together; None where there is but one.

        Raises:
            ResourceExhausted: it is one too many; says when it would not be.
        """
        self._own.admit(caller)
        if not self._most or identity is None:
            return
        counted = await self._ask(caller, identity)
        if counted is not None and not counted.admitted:
            self._own.take_back(caller)
            raise ResourceExhausted(
                f"{self._what}: more than {self._most} in {WINDOW_SECONDS:g} seconds;"
                f" allowed: {self._most}; try again later",
                reason="RATE_LIMITED",
                retry_after_seconds=math.ceil(counted.retry_after_seconds),
            )

    async def _ask(
        self, caller: str, identity: IdentityServiceAsyncStub
    ) -> identity_pb2.AdmitCallResponse | None:
        """What storage says; None while it says nothing."""
        request = identity_pb2.AdmitCallRequest(
            caller=caller, what=self._what, most=self._most, window_seconds=WINDOW_SECONDS
        )
        try:
            # By the gateway itself: who calls may be a guest, and says nothing about limits.
            with as_platform():
                counted = await identity.AdmitCall(request, timeout=_ASK_SECONDS)
        except grpc.aio.AioRpcError as error:
            if not self._is_away:
                logger.warning(
                    "%s: each gateway counts for itself, storage does not: %s",
                    self._what,
                    from_rpc_error(error).message,
                )
            self._is_away = True
            return None
        if self._is_away:
            logger.info("%s: counted for all gateways together again", self._what)
        self._is_away = False
        return counted


def _caller_of(request: Request) -> str:
    """Whose requests count together: those of a user, or, of guests, those from one address."""
    principal = current_principal()
    if principal.kind == "guest":
        return f"address:{request.client.host if request.client else ''}"
    return f"user:{principal.subject}"


@dataclass(frozen=True)
class RateLimits:
    """All that is counted."""

    upload: SharedRateLimit
    jobs_submit: SharedRateLimit

    @classmethod
    def of(cls, settings: LegacySettings) -> RateLimits:
        """As set."""
        return cls(
            upload=SharedRateLimit("uploads", settings.upload_per_minute),
            jobs_submit=SharedRateLimit("submitted jobs", settings.jobs_submit_per_minute),
        )


async def admit_upload(request: Request) -> None:
    """Counts a form with files.

    Raises:
        ResourceExhausted: it is one too many.
    """
    await _limits(request).upload.admit(_caller_of(request), _shared(request))


async def admit_job(request: Request) -> None:
    """Counts a job that a request is about to make.

    Raises:
        ResourceExhausted: it is one too many.
    """
    await _limits(request).jobs_submit.admit(_caller_of(request), _shared(request))


def _limits(request: Request) -> RateLimits:
    limits: RateLimits = request.app.state.rate_limits
    return limits


def _shared(request: Request) -> IdentityServiceAsyncStub | None:
    settings: GatewaySettings = request.app.state.settings
    # One machine has one gateway.
    if settings.auth.mode == "single":
        return None
    backends: Backends = request.app.state.backends
    return backends.identity
