"""The drawing in the docs is of the lifecycle as it is."""

from __future__ import annotations

from services.trainer.lifecycle import FINAL, State
from tests.lifecycle_diagram import DOCUMENT, walk, with_drawings


def test_the_drawings_are_current() -> None:
    text = DOCUMENT.read_text()
    assert text == with_drawings(text), "run: .venv/bin/python -m tests.lifecycle_diagram"


def test_the_walk_gets_everywhere_and_leaves_no_final_state() -> None:
    steps = walk()
    assert {after.state for *_, after in steps} == set(State)
    assert all(before is None or before.state not in FINAL or before == after for before, _, after in steps)
