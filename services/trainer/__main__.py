"""The trainer: `python -m services.trainer migrate|api|worker|enrol|revoke|config`."""

import sys


def main() -> int:
    """Runs the program that the arguments name.

    Returns:
        Exit status.
    """
    program, *rest = sys.argv[1:] or [""]
    if program == "worker":
        # It has settings of its own, and neither database nor key: what those need is not even loaded.
        from services.trainer.worker.main import run

        return run(rest)
    from services.trainer import programs

    return programs.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
