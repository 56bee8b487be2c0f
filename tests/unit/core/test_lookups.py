"""What is remembered about callers: for how long, how many, and one question at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from guidehall.core.auth import Answer, Authenticator, Lookups, Principal
from guidehall.core.errors import Unauthenticated, Unavailable
from guidehall.core.settings import AuthSettings, LookupSettings

KEY = "gh_" + "a" * 43


class Asked:
    """Answers, and counts how often it was asked."""

    def __init__(self, *answers: Answer[str] | Exception) -> None:
        self._answers = list(answers)
        self.count = 0
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self) -> Answer[str]:
        self.count += 1
        await self.go_on.wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock."""
    passed = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    clock = SimpleNamespace(
        monotonic=lambda: time.monotonic() + passed,
        time=lambda: time.time() + passed,
    )
    monkeypatch.setattr("guidehall.core.auth.lookups.time", clock)
    return pass_by


async def test_what_was_found_and_what_was_not_are_kept_for_their_times(
    later: Callable[[float], None],
) -> None:
    lookups: Lookups[str] = Lookups(LookupSettings(keep_seconds=30, keep_missing_seconds=5))
    found, missing = Asked(Answer("ada"), Answer(None)), Asked(Answer(None), Answer("bob"))

    async def both() -> tuple[str | None, str | None]:
        return await lookups.get(b"a", found), await lookups.get(b"b", missing)

    assert await both() == await both() == ("ada", None)
    later(6)
    assert await both() == ("ada", "bob")
    later(25)
    assert await both() == (None, "bob")
    assert (found.count, missing.count) == (2, 2)


async def test_nothing_is_kept_beyond_its_own_end(later: Callable[[float], None]) -> None:
    lookups: Lookups[str] = Lookups(LookupSettings())
    asked = Asked(Answer("ada", time.time() + 10), Answer(None))

    assert await lookups.get(b"a", asked) == "ada"
    later(11)
    assert await lookups.get(b"a", asked) is None


async def test_who_asks_for_the_same_waits_for_one_answer_even_when_the_first_gives_up() -> None:
    lookups: Lookups[str] = Lookups(LookupSettings())
    asked = Asked(Answer("ada"))
    asked.go_on.clear()
    waiting = [asyncio.ensure_future(lookups.get(b"a", asked)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    asked.go_on.set()

    assert await asyncio.gather(*waiting[1:]) == ["ada"] * 4
    assert asked.count == 1


async def test_a_failure_is_told_to_all_and_not_kept() -> None:
    lookups: Lookups[str] = Lookups(LookupSettings())
    asked = Asked(Unavailable("away"), Answer("ada"))

    first, second = await asyncio.gather(
        lookups.get(b"a", asked), lookups.get(b"a", asked), return_exceptions=True
    )

    assert isinstance(first, Unavailable)
    assert isinstance(second, Unavailable)
    assert await lookups.get(b"a", asked) == "ada"


async def test_made_up_keys_push_out_nobody_who_is_known() -> None:
    lookups: Lookups[str] = Lookups(LookupSettings(max_entries=3))
    ada, nobody = Asked(Answer("ada")), Asked(Answer(None))

    await lookups.get(b"ada", ada)
    for number in range(20):
        await lookups.get(b"%d" % number, nobody)
    await lookups.get(b"ada", ada)

    assert ada.count == 1
    assert len(lookups._missing) == 3


async def test_so_many_questions_at_a_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidehall.core.auth.lookups._MAX_ASKED", 2)
    lookups: Lookups[str] = Lookups(LookupSettings())
    asked = Asked(Answer("ada"))
    asked.go_on.clear()
    waiting = [asyncio.ensure_future(lookups.get(b"%d" % number, asked)) for number in range(3)]
    await asyncio.sleep(0)
    asked.go_on.set()

    answers = await asyncio.gather(*waiting, return_exceptions=True)

    assert answers[:2] == ["ada", "ada"]
    assert isinstance(answers[2], Unavailable)


async def test_what_is_no_key_by_its_looks_is_never_looked_up() -> None:
    class Nobody:
        async def bearer(self, secret: str) -> Answer[Principal]:
            raise AssertionError(secret)

    authenticator = Authenticator(AuthSettings(mode="token"), "trainer", Nobody())
    for wrong in ("gh_", KEY[:-1], KEY + "a", KEY[:-1] + "é", KEY[:-1] + " "):
        with pytest.raises(Unauthenticated) as caught:
            await authenticator.authenticate({"authorization": f"Bearer {wrong}"}, "unknown")
        assert wrong not in str(caught.value)


async def test_nobody_acts_for_others_with_a_key() -> None:
    class Ada:
        async def bearer(self, _secret: str) -> Answer[Principal]:
            return Answer(Principal("ada", "user"))

    headers = {"authorization": f"Bearer {KEY}"}
    authenticator = Authenticator(AuthSettings(mode="token"), "trainer", Ada())

    assert (await authenticator.authenticate(headers, "unknown")).subject == "ada"
    with pytest.raises(Unauthenticated, match="may not act for others"):
        await authenticator.authenticate(headers | {"x-guidehall-on-behalf-of": "e30="}, "unknown")
    with pytest.raises(Unauthenticated, match="no API key counts here"):
        await Authenticator(AuthSettings(), "trainer").authenticate(headers, "unknown")
