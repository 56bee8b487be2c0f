"""The command line: `guidehall …`."""

from __future__ import annotations

import os
import sys

# What gRPC's own core has to say is nothing that a user can act on. Read when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def main() -> None:
    """Runs the command in `sys.argv` and exits with its code."""
    from guidehall.cli._app import run

    sys.exit(run(sys.argv[1:]))
