"""The supervisor in a process of its own: what `guidehall up --detach` starts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from guidehall.local.errors import StackError
from guidehall.local.stack import AUTH_MODES, Options, up
from guidehall.local.supervisor import silent

# As the command line has it.
_INTERRUPTED = 130


def main() -> int:
    """Runs the stack until told to end."""
    parser = argparse.ArgumentParser(prog="python -m guidehall.local")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--auth-mode", choices=AUTH_MODES, required=True)
    arguments = parser.parse_args()
    try:
        # Its steps go to the supervisor's log.
        up(Options(arguments.data, arguments.workers, arguments.auth_mode), silent)
    except StackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
