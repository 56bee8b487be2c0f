"""`guidehall attempts`, `dead`, `delete`, `purge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._exit import ExitCode
from guidehall.cli._flags import DURATION
from guidehall.cli._output import age, clean, duration, emit, short, table
from guidehall.cli.jobs import checked_job, job_argument

if TYPE_CHECKING:
    from guidehall.client import Attempt, Client, Purge

_DEAD = 'end_reason = "ATTEMPTS_EXHAUSTED"'
_PURGEABLE = ("SUCCEEDED", "FAILED", "CANCELLED", "QUEUED", "PAUSED")
_WAITING = ("QUEUED", "PAUSED")


@click.command(epilog="\b\nExample\n  guidehall attempts 3f2a91c0")
@job_argument
@json_option
def attempts(job: str, as_json: bool) -> None:
    """List who worked on JOB, how long, and how that ended, newest first."""
    with connect() as client:
        found = list(client.attempts(job))
    if as_json:
        emit(found)
        return
    rows = [
        (
            attempt.lease_epoch,
            attempt.number,
            short(attempt.worker),
            age(attempt.lease_time),
            _ran(attempt),
            attempt.end_reason.lower().replace("_", " ") or "works on it",
            f"step {attempt.checkpoint.step}" if attempt.checkpoint else "",
            attempt.error.message if attempt.error else "",
        )
        for attempt in found
    ]
    headings = ("LEASE", "ATTEMPT", "WORKER", "AGE", "RAN", "ENDED", "CHECKPOINT", "ERROR")
    table(headings, rows, empty="no attempt yet")


def _ran(attempt: Attempt) -> str:
    if attempt.start_time is None:
        return ""
    end = attempt.end_time or datetime.now(timezone.utc)
    return duration((end - attempt.start_time).total_seconds())


@click.command(
    epilog="""\b
Examples
  guidehall dead
  guidehall dead --redrive 3f2a91c0   submit it once more
  guidehall dead --redrive --all      every one that was not yet
"""
)
@click.argument("jobs", nargs=-1, metavar="[JOB]...", callback=checked_job)
@click.option("--redrive", is_flag=True, help="Submit these jobs once more.")
@click.option("--all", "every", is_flag=True, help="With --redrive: every dead job that was not yet.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="List so many at most."
)
@json_option
def dead(jobs: tuple[str, ...], redrive: bool, every: bool, limit: int, as_json: bool) -> None:
    """List jobs that failed on every attempt, or submit them once more.

    A job that is submitted once more goes on from its last checkpoint where that is kept.
    """
    if redrive and bool(jobs) == every:
        raise click.UsageError("--redrive takes either jobs or --all")
    if not redrive and (jobs or every):
        raise click.UsageError("jobs and --all go with --redrive")
    with connect() as client:
        if redrive:
            _redrive(client, jobs, as_json)
            return
        found = list(client.jobs(_DEAD, limit=limit))
    if as_json:
        emit(found)
        return
    rows = [
        (
            short(job.name),
            job.display_name,
            job.pipeline,
            f"{job.attempt_count} of {job.max_attempts}",
            age(job.end_time),
            job.owner,
            short(job.latest_retry),
            job.error.message if job.error else "",
        )
        for job in found
    ]
    headings = ("JOB", "NAME", "PIPELINE", "ATTEMPTS", "ENDED", "OWNER", "RETRY", "ERROR")
    table(headings, rows, empty="no dead jobs")


def _redrive(client: Client, texts: Sequence[str], as_json: bool) -> None:
    """Submits the named jobs once more, or each dead one that nobody has."""
    dead = list(map(client.job, texts)) if texts else list(client.jobs(_DEAD))
    again = []
    for job in dead:
        if not texts and job.latest_retry:
            continue
        if job.end_reason != "ATTEMPTS_EXHAUSTED":
            raise click.UsageError(
                f"job {short(job.name)} is {job.status} and has not failed on every attempt; "
                f"submit it once more with: guidehall retry {short(job.name)}"
            )
        again.append(client.retry(job.name))
        if not as_json:
            click.echo(f"job {short(job.name)} is submitted once more as {short(again[-1].name)}")
    if as_json:
        emit(again)
    elif not again:
        click.echo("no dead jobs")


@click.command(epilog="\b\nExample\n  guidehall delete 3f2a91c0 77b10f3e")
@click.argument("jobs", nargs=-1, required=True, metavar="JOB...", callback=checked_job)
@json_option
def delete(jobs: tuple[str, ...], as_json: bool) -> None:
    """Delete each JOB, which must have ended. Results and models stay."""
    with connect() as client:
        # All are looked up first: a wrong one is found before anything is gone.
        found = list(map(client.job, jobs))
        for job in found:
            client.delete(job.name)
            if not as_json:
                click.echo(f"job {short(job.name)} is deleted")
    if as_json:
        emit({"deleted": [job.name for job in found]})


@click.command(
    epilog="""\b
Examples
  guidehall purge --older-than 30d
  guidehall purge --state failed --state cancelled --yes
  guidehall purge --filter 'labels.run = "12"' --include-queued
"""
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice(_PURGEABLE, case_sensitive=False),
    help="Only jobs in this state; may repeat.",
)
@click.option(
    "--older-than", type=DURATION, default=0, help="Only jobs that have not changed for so long, such as 30d."
)
@click.option(
    "--filter", "filter_", default="", help="Only these: terms joined by AND, as in `guidehall jobs`."
)
@click.option("--include-queued", is_flag=True, help="Cancel and delete queued and paused jobs too.")
@click.option("--yes", is_flag=True, help="Delete without asking.")
@json_option
def purge(
    states: tuple[str, ...], older_than: int, filter_: str, include_queued: bool, yes: bool, as_json: bool
) -> int:
    """Delete your own jobs that have ended; says how many, and asks first. Results and models stay.

    With --json nothing is asked: without --yes the answer only counts.
    """
    waiting = [state for state in states if state.upper() in _WAITING]
    if waiting and not include_queued:
        raise click.UsageError(f"--state {waiting[0]} needs --include-queued")
    terms = [filter_] if filter_ else []
    if older_than:
        before = datetime.now(timezone.utc) - timedelta(seconds=older_than)
        terms.append(f'update_time < "{before.isoformat()}"')
    filters = [" AND ".join([*terms, f'state = "{state.upper()}"']) for state in states] or [
        " AND ".join(terms)
    ]
    with connect() as client:
        if not yes:
            counted = _purge(client, filters, include_queued, force=False)
            if as_json:
                emit(_sums(counted, forced=False))
                return ExitCode.DONE
            click.echo(_told(counted, "would be deleted"), err=True)
            if not counted.deleted:
                return ExitCode.DONE
            question = f"Delete {_jobs(counted.deleted)}? Results and models stay."
            if not click.confirm(question, err=True):
                click.echo("nothing was deleted")
                return ExitCode.FAILED
        done = _purge(client, filters, include_queued, force=True)
    if as_json:
        emit(_sums(done, forced=True))
    else:
        click.echo(_told(done, "deleted"))
    return ExitCode.DONE


def _purge(client: Client, filters: Sequence[str], include_queued: bool, force: bool) -> Purge:
    from guidehall.client import Purge

    done = [client.purge(text, include_queued=include_queued, force=force) for text in filters]
    return Purge(
        sum(one.deleted for one in done),
        sum(one.skipped_running for one in done),
        sum(one.skipped_queued for one in done),
        sum(one.skipped_publishing for one in done),
    )


def _sums(purge: Purge, forced: bool) -> dict[str, int | bool]:
    return {"forced": forced, **asdict(purge)}


def _told(purge: Purge, what: str) -> str:
    left = {
        "held by a worker": purge.skipped_running,
        "queued or paused": purge.skipped_queued,
        "with a result that is still being published": purge.skipped_publishing,
    }
    stay = ", ".join(f"{count} {which}" for which, count in left.items() if count)
    return clean(f"{_jobs(purge.deleted)} {what}" + (f"; left alone: {stay}" if stay else ""))


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


COMMANDS = (attempts, dead, delete, purge)
