"""`guidehall audit`, `people`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._output import clean, emit, table, timestamp

if TYPE_CHECKING:
    from guidehall.client import Erasure


@click.group(
    epilog="""\b
Examples
  guidehall audit list --filter 'subject = "ada" AND outcome != OK'
  guidehall audit export > audit.jsonl
  guidehall audit verify audit.jsonl --expect 1207:9f2c…
"""
)
def audit() -> None:
    """Look who did what, take the log elsewhere, check that nobody has changed it."""


@audit.command("list")
@click.option(
    "--filter",
    "filter_",
    default="",
    help="Terms joined by AND over subject, kind, actor, service, method, resource, outcome, job, "
    "request_id, trace_id, time.",
)
@click.option("--oldest-first", is_flag=True, help="In the order in which it happened.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="So many at most.")
@json_option
def list_(filter_: str, oldest_first: bool, limit: int, as_json: bool) -> None:
    """List events, newest first. Without an operator's role only what concerns yourself."""
    with connect() as client:
        found = list(client.audit(filter_, "sequence" if oldest_first else "sequence desc", limit))
    if as_json:
        emit(found)
        return
    rows = [
        (
            event.sequence,
            timestamp(event.time),
            event.subject,
            event.method.rpartition("/")[2],
            event.resource,
            event.outcome,
            event.count if event.count > 1 else "",
        )
        for event in found
    ]
    table(("EVENT", "TIME", "WHO", "DID", "TO", "OUTCOME", "TIMES"), rows, empty="no events")


@audit.command()
@click.option("--after-seal", type=click.IntRange(min=0), default=0, help="Begin after this batch.")
def export(after_seal: int) -> None:
    """Write the log with its seals to standard output, as lines of JSON. For operators."""
    with connect() as client:
        for line in client.export_audit(after_seal):
            sys.stdout.write(f"{line}\n")


@audit.command()
@click.argument("file", required=False, type=click.File("r", encoding="utf-8"))
@click.option("--expect", default="", metavar="NUMBER:SEAL", help="A seal of before, which has to be there.")
@click.option("--partial", is_flag=True, help="FILE begins after a seal, as with export --after-seal.")
@json_option
def verify(file: TextIO | None, expect: str, partial: bool, as_json: bool) -> None:
    """Check every event and seal of FILE, an export, or, without one, of the server's log.

    The check is made here, not by the server. Keep the newest seal that it tells, and give it as --expect
    the next time: that shows, too, whether the newest part was cut off or written anew.
    """
    from guidehall.core import audit_chain

    noted = audit_chain.parse_seal(expect) if expect else None
    if file is not None:
        verdict = audit_chain.verify(file, noted, whole=not partial)
    else:
        with connect() as client:
            verdict = audit_chain.verify(client.export_audit(), noted)
    if as_json:
        newest = verdict.seal
        emit(
            {
                "begins_after": verdict.begins_after,
                "seals": verdict.seals,
                "events": verdict.events,
                "unsealed": verdict.unsealed,
                "newest_seal": "" if newest is None else f"{newest.number}:{newest.seal.hex()}",
            }
        )
    else:
        click.echo(str(verdict))


@click.group(
    epilog="""\b
Examples
  guidehall people export > me.jsonl
  guidehall people erase ada --hand-over-to bob
  guidehall people erasure 5c0d91aa-0b5e-4f0e-9d6c-2f6f7d6a4f11
"""
)
def people() -> None:
    """Tell all that is kept about a person, or erase it."""


@people.command("export")
@click.argument("user", default="")
def export_person(user: str) -> None:
    """Write all that is kept about USER, or yourself, to standard output, as lines of JSON."""
    with connect() as client:
        for line in client.export_person(user):
            sys.stdout.write(f"{line}\n")


@people.command()
@click.argument("user")
@click.option(
    "--hand-over-to", default="", metavar="USER", help="Who gets what was theirs. [default: it goes]"
)
@click.option("--yes", is_flag=True, help="Erase without asking.")
@json_option
def erase(user: str, hand_over_to: str, yes: bool, as_json: bool) -> None:
    """Close USER's account at once and erase what is kept about them. For administrators."""
    if as_json and not yes:
        raise click.UsageError("--json needs --yes: nobody can be asked")
    if not yes:
        what = f"goes to {hand_over_to}" if hand_over_to else "is deleted"
        click.confirm(f"Erase {user}? What was theirs {what}, for good.", err=True, abort=True)
    with connect() as client:
        begun = client.erase_person(user, hand_over_to)
    _show(begun, as_json)


@people.command()
@click.argument("name")
@json_option
def erasure(name: str, as_json: bool) -> None:
    """Show how far the erasure NAME is."""
    with connect() as client:
        found = client.erasure(name)
    _show(found, as_json)


def _show(erasure: Erasure, as_json: bool) -> None:
    if as_json:
        emit(erasure)
        return
    if erasure.done_time:
        click.echo(f"{erasure.name} is done; the audit log calls the person {erasure.pseudonym}")
        return
    done, left = ", ".join(erasure.steps_done), ", ".join(erasure.steps_left)
    due = timestamp(erasure.due_time)
    click.echo(clean(f"{erasure.name} of {erasure.user}: done {done}; to come {left}, not before {due}"))


COMMANDS = (audit, people)
