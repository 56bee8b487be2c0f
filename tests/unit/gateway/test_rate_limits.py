"""So many in any minute, for each caller."""

from __future__ import annotations

import pytest

from guidehall.core.errors import ResourceExhausted
from services.gateway.rate_limits import RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_window_slides(clock: Clock) -> None:
    limit = RateLimit("uploads", 2, clock=clock)
    limit.admit("ada")
    clock.now += 40
    limit.admit("ada")
    with pytest.raises(ResourceExhausted, match="uploads: 2 in 60 seconds; allowed: 2") as refusal:
        limit.admit("ada")
    assert refusal.value.retry_after_seconds == 20
    clock.now += 20
    limit.admit("ada")
    with pytest.raises(ResourceExhausted) as refusal:
        limit.admit("ada")
    assert refusal.value.retry_after_seconds == 40


def test_what_is_refused_does_not_count(clock: Clock) -> None:
    limit = RateLimit("uploads", 1, clock=clock)
    limit.admit("ada")
    for _ in range(5):
        clock.now += 10
        with pytest.raises(ResourceExhausted):
            limit.admit("ada")
    clock.now += 10
    limit.admit("ada")


def test_callers_are_counted_apart(clock: Clock) -> None:
    limit = RateLimit("uploads", 1, clock=clock)
    limit.admit("ada")
    limit.admit("bob")


def test_nought_is_no_limit(clock: Clock) -> None:
    limit = RateLimit("uploads", 0, clock=clock)
    for _ in range(1000):
        limit.admit("ada")


def test_callers_who_are_gone_are_forgotten(clock: Clock) -> None:
    limit = RateLimit("uploads", 1, clock=clock)
    for number in range(1000):
        limit.admit(f"guest {number}")
    clock.now += 60
    limit.admit("ada")
    assert len(limit._times) == 1
