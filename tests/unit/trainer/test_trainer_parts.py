"""The small parts: documents, wakes, settings."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidehall.core.errors import InvalidArgument, Unavailable
from guidehall.core.settings import SettingsError
from services.trainer.documents import EXACT_INTEGERS, canonical, cleaned, digest, plain
from services.trainer.messages import document, struct
from services.trainer.settings import TrainerSettings
from services.trainer.wakes import Wakes

_NUMBERS = st.integers(-EXACT_INTEGERS + 1, EXACT_INTEGERS - 1) | st.floats(
    allow_nan=False, allow_infinity=False
)
_TEXTS = st.text(st.characters(exclude_characters="\x00", codec="utf-8"))
_DOCUMENTS = st.dictionaries(
    _TEXTS,
    st.recursive(
        st.none() | st.booleans() | _NUMBERS | _TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


@given(_DOCUMENTS)
def test_a_document_has_the_same_digest_after_it_has_travelled(value: dict[str, object]) -> None:
    here = plain(value, "params")
    there = plain(document(struct(here)), "params")
    assert there == here
    assert digest(there) == digest(here)
    assert json.loads(canonical(here)) == here


def test_the_digest_does_not_depend_on_the_order_of_keys_or_on_how_a_number_was_written() -> None:
    assert digest(plain({"a": 1, "b": 2.0}, "")) == digest(plain({"b": 2, "a": 1.0}, ""))
    # Fixed for ever: clients compare it.
    assert canonical(plain({"b": [1.0, 0.5, None], "a": "å"}, "")) == '{"a":"å","b":[1,0.5,null]}'


@pytest.mark.parametrize("value", [math.nan, -math.inf, EXACT_INTEGERS, -EXACT_INTEGERS, "a\x00b"])
def test_what_cannot_travel_is_refused_by_its_path(value: object) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        plain({"stack": {"layers": [{"sld": 1}, {"sld": value}]}}, "params")
    assert refusal.value.violations[0].field == "params.stack.layers[1].sld"


def test_a_key_is_a_text_too() -> None:
    with pytest.raises(InvalidArgument, match="NUL"):
        plain({"a": {"b\x00": 1}}, "preview")


def test_only_json_is_a_document() -> None:
    with pytest.raises(TypeError):
        plain({"q": object()}, "params")


def test_a_text_is_cut_to_its_longest() -> None:
    assert cleaned("x" * 10, 10) == "x" * 10
    assert cleaned("x" * 11, 10) == "x" * 9 + "…"


async def test_an_ear_hears_its_topics_and_no_others() -> None:
    wakes = Wakes()
    with wakes.listening("a", "b") as ear, wakes.listening("c") as other:
        wakes.ring("b")
        async with asyncio.timeout(1):
            await ear.listen(60)
        assert not ear.is_set()
        assert not other.is_set()
        wakes.ring_all()
        assert ear.is_set()
        assert other.is_set()
    wakes.ring("a")


async def test_what_rings_while_one_looks_is_not_missed() -> None:
    wakes = Wakes()
    with wakes.listening("a") as ear:
        ear.clear()
        wakes.ring("a")
        async with asyncio.timeout(1):
            await ear.listen(60)


async def test_nothing_rung_is_waited_for_no_longer_than_told() -> None:
    with Wakes().listening("a") as ear:
        async with asyncio.timeout(5):
            await ear.listen(0.01)


async def test_closing_wakes_everybody_and_lets_nobody_go_on() -> None:
    wakes = Wakes()
    wakes.require_open()
    with wakes.listening("a") as ear:
        wakes.close()
        assert ear.is_set()
    with pytest.raises(Unavailable):
        wakes.require_open()


_LEAST = {
    "GUIDEHALL_TRAINER__POSTGRES__DATABASE": "d",
    "GUIDEHALL_TRAINER__POSTGRES__USER": "u",
    "GUIDEHALL_TRAINER__STORAGE__TARGET": "storage:7102",
}


@pytest.mark.parametrize(
    "change",
    [
        {"LEASE__HEARTBEAT_SECONDS": "20"},
        {"LEASE__POLL_INTERVAL_SECONDS": "60"},
        {"LEASE__MAX_WAIT_SECONDS": "60"},
        {"RELAY__CLAIM_SECONDS": "10"},
        {"LEASE__SECOND": "10"},
        {"JOBS__DEFAULT_POOL": "no pool"},
        {"NOTIFY__WEBHOOK_ORIGINS": '["https://hooks.example.org"]'},
        {"NOTIFY__WEBHOOK_ORIGINS": '["hooks.example.org"]', "NOTIFY__WEBHOOK_SECRET": "x"},
        {"NOTIFY__WEBHOOK_ORIGINS": '["https://hooks.example.org/"]', "NOTIFY__WEBHOOK_SECRET": "x"},
        {"NOTIFY__WEBHOOK_ORIGINS": '["https://hooks.example.org:443"]', "NOTIFY__WEBHOOK_SECRET": "x"},
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(change: dict[str, str]) -> None:
    TrainerSettings.load(_LEAST)
    changed = {f"GUIDEHALL_TRAINER__{name}": value for name, value in change.items()}
    with pytest.raises(SettingsError):
        TrainerSettings.load(_LEAST | changed)


def test_without_a_key_the_api_says_which_setting_is_missing() -> None:
    command = [sys.executable, "-m", "services.trainer", "api"]
    done = subprocess.run(command, env=_LEAST, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "GUIDEHALL_TRAINER__AUTH__SERVICE_KEY_FILE" in done.stderr
    assert "Traceback" not in done.stderr
