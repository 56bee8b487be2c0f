"""`./run bench [NAME] [--quick] [--json]`: runs benchmarks and rewrites benchmarks/RESULTS.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.rows import Row

NAMES = ("reflectometry", "platform")
RESULTS = Path(__file__).with_name("RESULTS.md")


def _markdown(name: str, command: str, rows: list[Row]) -> str:
    lines = [
        f"## {name}",
        "",
        f"`{command}`",
        "",
        "| figure | value | unit | bar | met |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        met = "" if row.met is None else ("yes" if row.met else "no")
        lines.append(f"| {row.name} | {row.value:.4g} | {row.unit} | {row.bar} | {met} |")
    return "\n".join(lines) + "\n"


def _rewrite_results(sections: dict[str, str]) -> None:
    """Replaces the sections that were just measured and keeps the others."""
    kept: dict[str, str] = {}
    if RESULTS.exists():
        for part in RESULTS.read_text().split("\n## ")[1:]:
            kept[part.split("\n", 1)[0]] = "## " + part.rstrip("\n") + "\n"
    kept.update(sections)
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"
    head = f"# Measured\n\nMedians; CPU seconds where a row says so. Last machine: {machine}.\n\n"
    RESULTS.write_text(head + "\n".join(kept[name] for name in sorted(kept)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES, help="one benchmark; all of them when left out")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; RESULTS.md is left alone")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    arguments = parser.parse_args()

    sections, records = {}, []
    for name in [arguments.name] if arguments.name else NAMES:
        command = f"./run bench {name}" + (" --quick" if arguments.quick else "")
        print(f"benchmark: {name}", file=sys.stderr)
        rows = importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick)
        sections[name] = _markdown(name, command, rows)
        records += [{**asdict(row), "command": command} for row in rows]
    if not arguments.quick:
        _rewrite_results(sections)
    print(json.dumps(records, indent=2) if arguments.json else "\n".join(sections.values()))


if __name__ == "__main__":
    main()
