"""Draws what the lifecycle does, by walking it; `python -m tests.lifecycle_diagram` updates the docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from guidehall.core.errors import FailedPrecondition
from services.trainer.lifecycle import (
    FINAL,
    REASONS,
    CancelRequested,
    Desired,
    Event,
    Finished,
    JobFacts,
    Leased,
    LeaseExpired,
    Outcome,
    PauseRequested,
    Released,
    ResumeRequested,
    StaleEpoch,
    Started,
    State,
    StopRequested,
    Submitted,
    TimedOut,
    transition,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "explanation" / "jobs.md"
# After two attempts everything that can happen has happened.
_MAX_ATTEMPTS, _MOST_LEASES = 2, 4
_WISHES: tuple[Event, ...] = (PauseRequested(), ResumeRequested(), StopRequested(), CancelRequested())
_BEGIN, _END = "<!-- {}: written by tests/lifecycle_diagram.py -->", "<!-- end of {} -->"


def _events(epoch: int) -> Iterator[Event]:
    yield Leased()
    yield from (Started(epoch), LeaseExpired(epoch), TimedOut(epoch), Released(epoch))
    for outcome in Outcome:
        for reason in REASONS[outcome]:
            yield Finished(epoch, outcome, reason)
    yield from _WISHES


def _name(event: Event) -> str:
    if isinstance(event, Finished):
        return event.outcome.value.lower()
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(event).__name__.removesuffix("Requested"))
    return words.lower()


def walk() -> list[tuple[JobFacts | None, Event, JobFacts]]:
    """Every step that the lifecycle takes from anywhere it can get to."""
    submission = Submitted(_MAX_ATTEMPTS)
    first = transition(None, submission)[0]
    steps: list[tuple[JobFacts | None, Event, JobFacts]] = [(None, submission, first)]
    seen, waiting = {first}, [first]
    while waiting:
        job = waiting.pop()
        for event in _events(job.lease_epoch):
            try:
                after, _ = transition(job, event)
            except (FailedPrecondition, StaleEpoch):
                continue
            steps.append((job, event, after))
            if after not in seen and after.lease_epoch <= _MOST_LEASES:
                seen.add(after)
                waiting.append(after)
    return steps


def diagram() -> str:
    """The states and what leads from one to another, for Mermaid."""
    edges: dict[tuple[str, str], set[str]] = {}
    for before, event, after in walk():
        if before is None or before.state is not after.state:
            start = "[*]" if before is None else before.state.value
            edges.setdefault((start, after.state.value), set()).add(_name(event))
    order = ["[*]", *State.__members__]
    lines = ["```mermaid", "stateDiagram-v2"]
    for start, end in sorted(edges, key=lambda edge: (order.index(edge[0]), order.index(edge[1]))):
        lines.append(f"    {start} --> {end}: {', '.join(sorted(edges[start, end]))}")
    lines += [f"    {state.value} --> [*]" for state in State if state in FINAL]
    return "\n".join([*lines, "```"])


def wishes() -> str:
    """What becomes of each wish, by the state of the job and what is desired already."""
    outcomes: dict[tuple[State, Desired], dict[str, set[str]]] = {}
    for job in {after for *_, after in walk()}:
        row = outcomes.setdefault((job.state, job.desired), {})
        for event in _WISHES:
            row.setdefault(_name(event), set()).add(_outcome(job, event))
    names = [_name(event) for event in _WISHES]
    lines = [f"| state, desired | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    states, desires = list(State), list(Desired)
    for state, desired in sorted(outcomes, key=lambda key: (states.index(key[0]), desires.index(key[1]))):
        found = outcomes[state, desired]
        cells = [" or ".join(sorted(found[name])) for name in names]
        lines.append(f"| {state.value}, {desired.value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _outcome(job: JobFacts, event: Event) -> str:
    try:
        after, _ = transition(job, event)
    except FailedPrecondition:
        return "refused"
    if after == job:
        return "as it is"
    return f"{after.state.value}, {after.desired.value}"


def with_drawings(document: str) -> str:
    """The document with what stands between its markers written anew.

    Raises:
        ValueError: a marker is missing.
    """
    for name, drawing in (("diagram", diagram()), ("wishes", wishes())):
        begin, end = _BEGIN.format(name), _END.format(name)
        before, found, rest = document.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"no {begin} … {end}")
        document = f"{before}{begin}\n\n{drawing}\n\n{end}{after}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(with_drawings(DOCUMENT.read_text()))
