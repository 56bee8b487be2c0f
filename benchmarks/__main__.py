"""`./run bench [NAME] [--quick] [--json]`: runs benchmarks and rewrites benchmarks/RESULTS.md."""

from __future__ import annotations

import os

# A figure of CPU seconds is one of one core. Read when numpy and torch are imported.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import importlib
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.rows import Row

GROUPS = (
    "gateway.reading",
    "jobs.dispatch",
    "jobs.estimates",
    "jobs.reading",
    "platform",
    "reflectometry.cnn",
    "reflectometry.contrasts",
    "reflectometry.generation",
    "reflectometry.posterior",
    "reflectometry.refinement",
    "reflectometry.resolution",
    "reflectometry.training",
)
NAMES = (*GROUPS, "gateway", "jobs", "reflectometry")
# What is promised for hardware that most machines lack: group, figure, unit, bar, and what it takes.
NOT_MEASURED = (
    ("reflectometry.generation", "CUDA torch kernel R+SLD", "curves/s", ">= 3e+06", "needs a CUDA GPU"),
    ("reflectometry.cnn", "step, pyreflect / ours, bfloat16", "times", ">= 4", "needs bfloat16 in hardware"),
)
# In the order of their urgency.
_VERDICTS = ("no", "not measured", "", "yes")
RESULTS = Path(__file__).with_name("RESULTS.md")


def _markdown(name: str, command: str, rows: list[Row]) -> str:
    lines = [
        f"## {name}",
        "",
        f"`{command}`, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "",
        "| figure | value | unit | bar | met | note |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = "" if row.met is None else ("yes" if row.met else "no")
        lines.append(f"| {row.name} | {row.value:.4g} | {row.unit} | {row.bar} | {met} | {row.note} |")
    return "\n".join(lines) + "\n"


def _cells(section: str) -> list[dict[str, str]]:
    """The rows of a section's table, by column; older sections may have fewer columns."""
    lines = [line.strip()[1:-1].split("|") for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def _bars(sections: dict[str, str]) -> str:
    """The section of all that is held against a bar, what is not met first."""
    found = [
        {"group": name, "note": "", **row} for name in sorted(sections) for row in _cells(sections[name])
    ]
    rows = [row for row in found if row["bar"]]
    judged = {(row["group"], row["figure"]) for row in rows if row["met"]}
    for group, figure, unit, bar, note in NOT_MEASURED:
        if (group, figure) not in judged:
            columns = {"group": group, "figure": figure, "value": "", "unit": unit, "bar": bar, "note": note}
            rows.append({**columns, "met": "not measured"})
    rows.sort(key=lambda row: _VERDICTS.index(row["met"]))
    columns = ("met", "group", "figure", "value", "unit", "bar", "note")
    lines = ["## Bars", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _rewrite_results(sections: dict[str, str]) -> None:
    """Replaces the sections that were just measured and keeps the others."""
    kept: dict[str, str] = {}
    if RESULTS.exists():
        for part in RESULTS.read_text().split("\n## ")[1:]:
            kept[part.split("\n", 1)[0]] = "## " + part.rstrip("\n") + "\n"
    kept.update(sections)
    head = "# Measured\n\nMedians, where a figure was measured several times; CPU-s are of one core.\n"
    head += "RQ and Celery stand in `jobs` where a redis-server was installed.\n\n"
    kept = {name: kept[name] for name in sorted(kept) if name in GROUPS}
    RESULTS.write_text(head + "\n".join([_bars(kept), *kept.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="one benchmark; all of them when left out")
    parser.add_argument("--quick", action="store_true", help="smaller sizes; RESULTS.md is left alone")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments = parser.parse_args()

    records, sections = [], []
    for name in (group for group in GROUPS if group.startswith(arguments.name or "")):
        command = f"./run bench {name}" + (" --quick" if arguments.quick else "")
        print(f"benchmark: {name}", file=sys.stderr)
        rows = importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick)
        sections.append(_markdown(name, command, rows))
        records += [{**asdict(row), "command": command} for row in rows]
        # At once: the next group may take half an hour.
        if not arguments.quick:
            _rewrite_results({name: sections[-1]})
    print(json.dumps(records, indent=2) if arguments.json else "\n".join(sections))


if __name__ == "__main__":
    main()
