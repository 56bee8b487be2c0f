"""The root of the command line, its exit codes, and what becomes of errors.

Every module that is imported here must be quick to import: what a command needs is imported when it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import guidehall
from guidehall.cli import (
    account,
    audit,
    control,
    data,
    demo,
    groups,
    jobs,
    local,
    platform,
    predict,
    queue,
    reflectometry,
    submit,
    upkeep,
    workers,
)
from guidehall.cli._exit import ExitCode, exit_code
from guidehall.cli._extras import needs_more

if TYPE_CHECKING:
    from guidehall.core.errors import AppError

_EPILOG = """\b
Examples
  guidehall up                                  start a platform on this machine
  guidehall submit reflectometry.nr_sld --help  every parameter, with unit, default and range
  guidehall submit reflectometry.nr_sld --from examples/film.yml --training.epochs 5 --watch
  guidehall simulate --from examples/simulate.yml --plot film.png
  guidehall predict measured.dat --dq fwhm --refine --plot fit.png

\b
Exit codes
  0 done   1 the job failed, or an error was answered   2 wrong arguments   3 not found
  4 not reachable, or too slow   5 not allowed   130 interrupted

\b
Completion (bash; zsh and fish alike)
  eval "$(_GUIDEHALL_COMPLETE=bash_source guidehall)"
"""


class _Interrupted(Exception):
    """Somebody pressed Ctrl-C; may carry what to say about that."""


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # click itself would print an empty line.
            raise _Interrupted(*error.args) from error


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=_EPILOG,
)
@click.option(
    "--endpoints",
    metavar="TEXT",
    help="Where the services are: trainer=HOST:PORT,storage=…,inference=…, or an endpoints.json. "
    "Else $GUIDEHALL_ENDPOINTS, else where `guidehall login` was, else the stack of this machine.",
)
@click.option("--project", default="default", show_default=True, help="Project that ids belong to.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one call may take.",
)
@click.version_option(guidehall.__version__, message="%(prog)s %(version)s")
def cli(**_: object) -> None:
    """Measured curves in, physics out: jobs, models and answers of a Guidehall.

    Who calls: as `guidehall login` has kept it, unless $GUIDEHALL_TOKEN holds a token or an API key, or
    $GUIDEHALL_TOKEN_FILE names a file with one; for the stack of this machine the token of its administrator
    is found.
    """


for _module in (
    submit, jobs, control, upkeep, queue, workers, predict, data, reflectometry, platform, account, groups,
    audit, local, demo,
):  # fmt: skip
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and gives back its exit code; what went wrong is said without a traceback."""
    try:
        answer = cli.main(list(arguments), prog_name="guidehall", standalone_mode=False)
        sys.stdout.flush()
        return answer if isinstance(answer, int) else ExitCode.DONE
    except click.ClickException as error:
        if "--json" in arguments:
            click.echo(_as_json(_refused(error)), err=True)
        else:
            error.show()
        return error.exit_code
    except (_Interrupted, KeyboardInterrupt, click.Abort) as error:
        if sys.stderr.isatty() and isinstance(error, _Interrupted):
            # Behind the ^C.
            click.echo(err=True)
        for line in (*error.args, "interrupted"):
            click.echo(line, err=True)
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone, as `head` does: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception as error:
        return _failed(error, as_json="--json" in arguments)


def _failed(error: Exception, as_json: bool) -> int:
    from guidehall.core.errors import AppError, Internal, Unimplemented

    if os.environ.get("GUIDEHALL_DEBUG"):
        raise error
    if isinstance(error, ModuleNotFoundError):
        error = Unimplemented(needs_more(error.name), reason="NOT_INSTALLED")
    elif isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        error = Internal(what, reason="LOCAL_FILE")
    if not isinstance(error, AppError):
        kind = type(error).__name__
        error = Internal(f"{kind} inside the command line; set GUIDEHALL_DEBUG=1 to see where", reason="BUG")
    click.echo(_as_json(error) if as_json else _as_lines(error), err=True)
    return exit_code(error)


def _refused(error: click.ClickException) -> AppError:
    """What is wrong with the command line, as a service would say it."""
    from guidehall.core.errors import InvalidArgument, Violation

    message = error.format_message()
    parameter = error.param if isinstance(error, click.BadParameter) else None
    violations = [Violation(parameter.opts[0], error.message or message)] if parameter else []
    return InvalidArgument(message, reason="USAGE", violations=violations)


def _as_lines(error: AppError) -> str:
    from guidehall.cli._output import clean

    violations = [f"{item.field}: {item.description}" for item in error.violations]
    rest = message = error.message
    for violation in violations:
        rest = rest.replace(violation, "")
    if violations and not rest.strip(" ;"):
        # It says no more than the violations do, and may not say all of them.
        message = violations.pop() if len(violations) == 1 else "these are refused:"
    lines = [*message.splitlines(), *(violation for violation in violations if violation not in message)]
    return "\n  ".join(["guidehall: " + clean(lines[0] if lines else ""), *map(clean, lines[1:])])


def _as_json(error: AppError) -> str:
    return json.dumps(
        {
            "error": {
                "code": error.code.name,
                "reason": error.reason,
                "message": str(error),
                "metadata": dict(error.metadata),
                "violations": [
                    {"field": item.field, "description": item.description} for item in error.violations
                ],
            }
        }
    )
