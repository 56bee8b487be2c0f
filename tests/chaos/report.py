"""What was done to the platform and what came of it: printed, and written as JSON if a variable says so."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

# A file to write; none when it is not set.
VARIABLE = "GUIDEHALL_CHAOS_REPORT"


@dataclass(frozen=True)
class Fault:
    """Something that was done to a part.

    Attributes:
        time: Unix time in seconds.
        phase: label of the point that the victim passed last; of any part's where it has no points.
        running: jobs that were leased or running then.
    """

    time: float
    victim: str
    action: str
    phase: str
    running: int


@dataclass(frozen=True)
class Storm:
    """One seeded run."""

    seed: int
    jobs: int
    outcome: dict[str, int]
    attempts: int
    seconds: float
    faults: list[Fault]
    findings: list[str]

    def lines(self) -> list[str]:
        """For people."""
        kinds = Counter(f"{fault.action} {fault.victim}" for fault in self.faults)
        phases = Counter(fault.phase for fault in self.faults)
        return [
            f"storm, seed {self.seed}: {self.jobs} jobs in {self.seconds:.0f} s, {self.attempts} attempts: "
            + ", ".join(f"{count} {state}" for state, count in sorted(self.outcome.items())),
            f"  {len(self.faults)} faults: " + ", ".join(f"{count}x {kind}" for kind, count in kinds.items()),
            "  phases hit: " + ", ".join(f"{label or '(none)'} {count}" for label, count in phases.items()),
            f"  findings: {len(self.findings)}" + "".join(f"\n    {line}" for line in self.findings[:20]),
        ]


@dataclass
class Report:
    """Collects.

    Attributes:
        points: every labelled point -> how often a process was killed there.
    """

    points: dict[str, int] = field(default_factory=dict)
    storms: list[Storm] = field(default_factory=list)

    def finish(self) -> None:
        """Prints, and writes."""
        if self.points:
            hit = sum(bool(count) for count in self.points.values())
            print(f"\nlabelled points: {hit} of {len(self.points)} were hit by a kill")
        for storm in self.storms:
            print("\n" + "\n".join(storm.lines()))
        if path := os.environ.get(VARIABLE):
            Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")
