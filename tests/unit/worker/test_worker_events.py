from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.trainer.worker.events import MAX_BATCH_EVENTS, TAIL_LINES, EventBuffer
from services.trainer.worker.messages import Previewed, Progressed


def step(number: int, phase: str = "train") -> Progressed:
    return Progressed(phase=phase, step=number, total=100, metrics={})


def lines(buffer: EventBuffer) -> list[object]:
    number, batch = buffer.take()
    shown = [event.payload if isinstance(event.payload, str) else event.payload.step for event in batch]
    return [number, *shown]


def test_events_are_numbered_from_one_and_go_once() -> None:
    buffer = EventBuffer(100, 1e6)
    buffer.add_line("a")
    buffer.add_progress(step(1))
    assert lines(buffer) == [1, "a", 1]
    assert buffer.sent_number == buffer.last_number
    buffer.add_line("b")
    assert lines(buffer) == [3, "b"]
    assert (buffer.stored_number, buffer.last_number) == (0, 3)


def test_what_was_not_stored_goes_again_with_the_same_numbers() -> None:
    buffer = EventBuffer(100, 1e6)
    for text in "abcd":
        buffer.add_line(text)
    buffer.take()
    buffer.stored(2)
    buffer.resend()
    assert lines(buffer) == [3, "c", "d"]
    buffer.stored(4)
    buffer.resend()
    assert buffer.sent_number == buffer.last_number
    assert buffer.stored_number == 4


def test_newer_progress_replaces_what_was_not_sent() -> None:
    buffer = EventBuffer(100, 1e6)
    for number in range(1, 5):
        buffer.add_progress(step(number))
    buffer.add_progress(step(1, "validate"))
    buffer.add_line("between")
    buffer.add_progress(step(2, "validate"))
    assert lines(buffer) == [1, 4, 1, "between", 2]


def test_progress_that_was_sent_is_never_replaced() -> None:
    buffer = EventBuffer(100, 1e6)
    buffer.add_progress(step(1))
    buffer.take()
    buffer.resend()
    buffer.add_progress(step(2))
    # The trainer may hold number 1 as it was, and would drop another event of that number.
    assert lines(buffer) == [1, 1, 2]


def test_a_flood_of_lines_is_counted_not_kept() -> None:
    buffer = EventBuffer(100, 1e6)
    for number in range(150):
        buffer.add_line(f"line {number}")
    assert buffer.last_number == 100
    buffer.take()
    buffer.stored(100)
    buffer.add_line("later")
    assert lines(buffer) == [
        101,
        "[50 lines are left out here; the log of the ended job has them]",
        "later",
    ]


def test_a_lasting_flood_is_thinned_to_the_rate() -> None:
    clock = iter(range(1000))
    buffer = EventBuffer(10_000, 2, lambda: next(clock) / 10)
    for number in range(700):
        buffer.add_line(f"line {number}")
    # 20 at once, then 2 a second for 70 seconds, each with a note of what came between.
    kept = [line for line in lines(buffer)[1:] if str(line).startswith("line")]
    assert len(kept) == pytest.approx(20 + 140, abs=2)
    assert kept[:20] == [f"line {number}" for number in range(20)]


def shown(buffer: EventBuffer) -> list[str]:
    return [
        event.payload.document if isinstance(event.payload, Previewed) else str(event.payload)
        for event in buffer.take()[1]
    ]


def test_the_last_lines_of_a_flood_can_be_had_after_all() -> None:
    buffer = EventBuffer(100, 1e6)
    for number in range(1000):
        buffer.add_line(f"line {number}")
    buffer.add_tail()
    last = shown(buffer)[100:]
    assert last == [
        f"[the last {TAIL_LINES} lines, all of them]",
        *(f"line {number}" for number in range(1000 - TAIL_LINES, 1000)),
    ]
    buffer.add_tail()
    assert buffer.sent_number == buffer.last_number


def test_lines_that_were_all_kept_do_not_come_again() -> None:
    buffer = EventBuffer(1000, 1e6)
    for number in range(TAIL_LINES + 50):
        buffer.add_line(f"line {number}")
    buffer.add_tail()
    assert len(shown(buffer)) == TAIL_LINES + 50


def test_a_newer_preview_replaces_one_of_its_sort_that_was_not_sent() -> None:
    buffer = EventBuffer(100, 1e6)
    buffer.add_preview(Previewed(sort="a", document="1"))
    buffer.take()
    buffer.add_preview(Previewed(sort="a", document="2"))
    buffer.add_line("between")
    buffer.add_preview(Previewed(sort="b", document="3"))
    buffer.add_preview(Previewed(sort="a", document="4"))
    assert shown(buffer) == ["4", "between", "3"]
    assert buffer.last_number == 4


def test_progress_of_many_phases_cannot_outgrow_the_buffer() -> None:
    buffer = EventBuffer(100, 1e6)
    for number in range(1000):
        buffer.add_progress(step(number, f"phase {number}"))
    assert buffer.last_number == 100
    assert lines(buffer)[-1] == 999


def test_batches_are_bounded() -> None:
    buffer = EventBuffer(10_000, 1e6)
    for _ in range(MAX_BATCH_EVENTS + 1):
        buffer.add_line("")
    assert len(buffer.take()[1]) == MAX_BATCH_EVENTS
    assert len(buffer.take()[1]) == 1
    for _ in range(500):
        buffer.add_line("x" * 4000)
    number, batch = buffer.take()
    assert number == MAX_BATCH_EVENTS + 2
    assert len(batch) == (1 << 20) // 4000


@given(st.lists(st.sampled_from(["line", "step", "take", "break", "store"]), max_size=60))
def test_the_trainer_gets_every_number_once_and_in_order(actions: list[str]) -> None:
    buffer = EventBuffer(1000, 1e6)
    stored: list[object] = []
    on_the_way: list[tuple[int, list[object]]] = []

    def deliver() -> None:
        for first, payloads in on_the_way:
            stored.extend(payloads[max(0, len(stored) + 1 - first) :])
        on_the_way.clear()

    sent: list[object] = []
    for count, action in enumerate(actions):
        if action == "line":
            buffer.add_line(f"line {count}")
            sent.append(f"line {count}")
        elif action == "step":
            buffer.add_progress(step(count))
        elif action == "take":
            number, batch = buffer.take()
            on_the_way.append((number, [event.payload for event in batch]))
        elif action == "break":
            # Whatever was on its way arrived, but nothing was heard of it.
            deliver()
            buffer.resend()
        else:
            deliver()
            buffer.stored(len(stored))
    buffer.resend()
    on_the_way.append((lambda taken: (taken[0], [event.payload for event in taken[1]]))(buffer.take()))
    deliver()
    assert len(stored) == buffer.last_number
    assert [payload for payload in stored if isinstance(payload, str)] == sent
    steps = [payload.step for payload in stored if isinstance(payload, Progressed)]
    assert steps == sorted(steps)
    newest = [count for count, action in enumerate(actions) if action == "step"]
    assert steps[-1:] == newest[-1:]
