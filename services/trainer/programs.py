"""The trainer's programs that hold its database: `migrate`, `api`, `enrol`, `revoke`, and `config`."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from guidehall.core.auth import KeyPair, TokenIssuer
from guidehall.core.errors import AppError
from guidehall.core.migrations import migrate
from guidehall.core.postgres import create_engine, wait_until_ready
from guidehall.core.settings import SettingsError, config_command, log_settings
from guidehall.core.telemetry import configure_logging, configure_tracing
from guidehall.science.registry import RegistryError
from services.trainer import credentials
from services.trainer.api import serve
from services.trainer.database import Database
from services.trainer.settings import POOL_NAME, TrainerSettings
from services.trainer.tellers import SERVICE
from services.trainer.wakes import Wakes

logger = logging.getLogger(__name__)
_DAY_SECONDS = 86_400.0


def run(arguments: Sequence[str]) -> int:
    """Runs one of them.

    Returns:
        Exit status.
    """
    if arguments[:1] == ["config"]:
        config_command(TrainerSettings, list(arguments[1:]))
        return 0
    chosen = _parser().parse_args(arguments)
    try:
        settings = TrainerSettings.load()
        configure_logging(settings.log, SERVICE)
        configure_tracing(settings.telemetry, SERVICE)
        uvloop.run(_run(settings, chosen))
    except (SettingsError, RegistryError, AppError, OSError) as error:
        print(f"trainer {chosen.program}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer", epilog="also: worker, config show | describe"
    )
    programs = parser.add_subparsers(dest="program", required=True)
    programs.add_parser("api", help="serve jobs and workers")
    schema = programs.add_parser("migrate", help="bring the database to the newest schema")
    schema.add_argument("--down-to", metavar="STEP", help="go back to a step's number instead, or to base")
    enrolment = programs.add_parser("enrol", help="make a credential for the workers of a pool")
    enrolment.add_argument("--pool", required=True, type=_pool)
    enrolment.add_argument(
        "--out",
        required=True,
        help="file for the credential, which only its owner reads, or - for standard output",
    )
    enrolment.add_argument(
        "--days", type=float, default=365.0, help="how long it holds (default: %(default)g)"
    )
    enrolment.add_argument("--note", default="", help="whose it is, for people")
    ending = programs.add_parser("revoke", help="end a credential")
    ending.add_argument("credential", help="its id, as `enrol` printed it")
    return parser


def _pool(text: str) -> str:
    if not re.fullmatch(POOL_NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} does not match {POOL_NAME}")
    return text


async def _run(settings: TrainerSettings, chosen: argparse.Namespace) -> None:
    match chosen.program:
        case "api":
            log_settings(settings)
            await serve(settings, _issuer(settings))
        case "migrate":
            await migrate(settings, "services.trainer", chosen.down_to)
        case _:
            await _with_database(settings, chosen)


def _issuer(settings: TrainerSettings) -> TokenIssuer:
    """Mints the tokens of workers and jobs.

    Raises:
        SettingsError: there is no key to sign them with.
    """
    path = settings.auth.service_key_file
    if path is None:
        raise SettingsError(
            "GUIDEHALL_TRAINER__AUTH__SERVICE_KEY_FILE is needed, to sign the tokens of workers and jobs"
        )
    return TokenIssuer(SERVICE, KeyPair.load(path))


async def _with_database(settings: TrainerSettings, chosen: argparse.Namespace) -> None:
    engine = create_engine(settings.postgres)
    try:
        await wait_until_ready(engine, settings.start_seconds)
        database = Database(engine, Wakes())
        if chosen.program == "enrol":
            await _enrol(database, _issuer(settings), chosen)
        else:
            await credentials.revoke(database, chosen.credential)
            print(f"revoked {chosen.credential}")
    finally:
        await engine.dispose()


async def _enrol(database: Database, issuer: TokenIssuer, chosen: argparse.Namespace) -> None:
    credential = await credentials.enrol(
        database, issuer, chosen.pool, chosen.days * _DAY_SECONDS, chosen.note
    )
    made = f"credential {credential.id} for pool {chosen.pool}"
    if chosen.out == "-":
        # The token alone: it goes into a file or another program.
        print(made, file=sys.stderr)
        print(credential.token)
    else:
        _write_secret(Path(chosen.out), credential.token)
        print(f"{made}: {chosen.out}")


def _write_secret(path: Path, text: str) -> None:
    """Writes a file that only its owner reads, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)
