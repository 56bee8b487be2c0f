"""The command line: `guidehall …`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command in `sys.argv` and exits with its code."""
    from guidehall.cli._app import run

    sys.exit(run(sys.argv[1:]))
