"""`guidehall jobs`, `job`, `watch`, `result`, `job-log`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._output import (
    age,
    clean,
    duration,
    emit,
    estimate,
    pairs,
    roughly,
    short,
    size,
    table,
    timestamp,
)
from guidehall.cli._result import show

if TYPE_CHECKING:
    from guidehall.client import Client, Job, Result

_JOB_ID = re.compile(r"[0-9a-f-]{4,36}")
_STATES = ("QUEUED", "LEASED", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED")


def checked_job(_: click.Context, __: click.Parameter, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Refuses what can be the name of no job, before a service is asked."""
    for text in (given,) if isinstance(given, str) else given:
        if "/" not in text and not _JOB_ID.fullmatch(text.strip().lower()):
            raise click.BadParameter(
                f"{text!r} is neither a job's name, nor its id, nor the first 4 or more hexadecimal digits "
                "of its id."
            )
    return given


job_argument = click.argument("job", callback=checked_job)


@click.command(
    epilog="""\b
Examples
  guidehall jobs --state running
  guidehall jobs --filter 'pipeline = "reflectometry.nr_sld" AND labels.run = "1234"' --limit 5
"""
)
@click.option("--state", type=click.Choice(_STATES, case_sensitive=False), help="Only jobs in this state.")
@click.option(
    "--filter", "filter_", default="", help="Terms joined by AND over state, pipeline, owner, pool, batch, …"
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many at most.")
@json_option
def jobs(state: str | None, filter_: str, limit: int, as_json: bool) -> None:
    """List jobs, newest first. Times with ~ are estimates."""
    terms = [f'state = "{state.upper()}"'] if state else []
    with connect() as client:
        found = list(client.jobs(" AND ".join([*terms, filter_] if filter_ else terms), limit=limit))
    if as_json:
        emit(found)
        return
    rows = [
        (
            short(job.name),
            job.display_name,
            job.pipeline,
            job.status,
            progress(job),
            roughly(job.start_estimate),
            roughly(job.end_estimate),
            age(job.create_time),
            job.owner,
        )
        for job in found
    ]
    headings = ("JOB", "NAME", "PIPELINE", "STATE", "PROGRESS", "STARTS", "ENDS", "AGE", "OWNER")
    table(headings, rows, empty="no jobs")


def progress(job: Job) -> str:
    """How far a job has come: its place in the queue, or its step; empty when it is over."""
    if job.queue_position >= 0:
        return f"{job.queue_position} in front"
    if job.progress is None or job.state.final:
        return ""
    work = job.progress
    return f"{work.phase} {work.step}/{work.total}" if work.total else f"{work.phase} {work.step}"


@click.command(epilog="\b\nExample\n  guidehall job 3f2a91c0")
@job_argument
@json_option
def job(job: str, as_json: bool) -> None:
    """Show one JOB: its name, its id, or the first four or more hexadecimal digits of its id."""
    with connect() as client:
        found = client.job(job)
    if as_json:
        emit(found)
    else:
        _show_job(found)


def _show_job(job: Job) -> None:
    last = job.end_time or job.update_time
    ran = duration((last - job.start_time).total_seconds()) if job.start_time and last else ""
    pairs(
        {
            "job": job.id,
            "name": job.display_name,
            "pipeline": f"{job.pipeline} {job.pipeline_version}",
            "state": job.status,
            "ended": job.end_reason.lower().replace("_", " "),
            "progress": progress(job),
            "starts": estimate(job.start_estimate),
            "ends": estimate(job.end_estimate),
            "log": job.last_log_line,
            "pool": f"{job.pool} (asked for {job.device_class})" if job.device_class else job.pool,
            "priority": job.priority.lower(),
            "worker": short(job.worker),
            "owner": job.owner,
            "group": job.group,
            "seed": job.seed,
            "attempts": f"{job.attempt_count} of {job.max_attempts}",
            "timeout": duration(job.timeout_seconds) if job.timeout_seconds else "",
            "checkpoint": f"step {job.checkpoint.step}" if job.checkpoint else "",
            "repeats": job.retried_from,
            "batch": job.batch,
            "created": timestamp(job.create_time),
            "ran": ran,
            "inputs": ", ".join(f"{role}: {name}" for role, name in job.inputs.items()),
            "labels": ", ".join(f"{key}={value}" for key, value in job.labels.items()),
            "tells": ", ".join(job.notifications),
            "result": job.result,
        }
    )
    if job.error is not None:
        click.echo(f"error     {clean(job.error.message)}")
        for violation in job.error.violations:
            click.echo(f"  {clean(violation.field)}: {clean(violation.description)}")
        if job.error.error_id:
            click.echo(f"  error id for the operator: {clean(job.error.error_id)}")


@click.command(
    epilog="\b\nExample\n  guidehall watch 3f2a91c0\n\nExits with 0 when the job succeeded, else with 1."
)
@job_argument
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only events after this number.")
@json_option
@click.pass_context
def watch(ctx: click.Context, job: str, after: int, as_json: bool) -> None:
    """Follow JOB until it is over: progress, losses, log."""
    from guidehall.cli._watch import follow

    with connect() as client:
        ctx.exit(follow(client, job, after, as_json))


@click.command(epilog="\b\nExample\n  guidehall result 3f2a91c0 --artifacts out/")
@job_argument
@click.option(
    "--artifacts",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write every file of the result into this folder.",
)
@json_option
def result(job: str, artifacts: Path | None, as_json: bool) -> None:
    """Show what JOB left: what its document says, as tables, and its files."""
    with connect() as client:
        found = _result(client, job)
        if artifacts is not None:
            _save(client, found, artifacts)
        schema = {} if as_json else _result_schema(client, found.pipeline)
    if as_json:
        emit(found)
        return
    pairs({"pipeline": found.pipeline, "models": ", ".join(found.model_versions)})
    show(found.document, schema)
    click.echo()
    rows = [(item.filename, item.object.media_type, size(item.object.size_bytes)) for item in found.artifacts]
    table(("FILE", "TYPE", "SIZE"), rows, empty="no files")
    if artifacts is not None:
        click.echo(f"{len(rows)} files written to {artifacts}")


def _result(client: Client, text: str) -> Result:
    """The result of a job; where there is none, the error says how the job is."""
    from guidehall.client import JobState
    from guidehall.client.errors import FailedPrecondition, NotFound

    try:
        return client.result(text)
    except NotFound:
        if "/results/" in text:
            raise
        job = client.job(text)
        said = f"job {short(job.name)}"
        if not job.state.final:
            raise NotFound(f"{said} is {job.status}: its result comes when it has succeeded") from None
        if job.state is JobState.SUCCEEDED:
            raise
        ended = "was cancelled" if job.state is JobState.CANCELLED else "has failed"
        reason = f": {job.error.message}" if job.error is not None else ""
        raise FailedPrecondition(f"{said} {ended}, so it has no result{reason}") from None


def _result_schema(client: Client, pipeline: str) -> dict[str, Any]:
    """How the document of a result is shown; a pipeline that is gone, or a trainer, takes nothing from it."""
    from guidehall.client.errors import AppError

    try:
        return client.pipeline(pipeline).result_schema
    except AppError:
        return {}


def _save(client: Client, result: Result, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for artifact in result.artifacts:
        client.download_artifact(result.name, artifact.filename, folder)


@click.command(
    "job-log",
    epilog="\b\nExamples\n  guidehall job-log 3f2a91c0\n  guidehall job-log 3f2a91c0 --output job.log",
)
@job_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write it to this file, or into this folder, instead of showing it.",
)
@json_option
def job_log(job: str, output: Path | None, as_json: bool) -> None:
    """Show the whole log of JOB, which has ended: succeeded, failed, timed out or cancelled."""
    with connect() as client:
        if output is not None:
            path = client.download_log(job, output)
            if as_json:
                emit({"path": str(path)})
            else:
                click.echo(f"written to {path}")
            return
        with tempfile.TemporaryDirectory() as folder:
            lines = client.download_log(job, folder).read_text("utf-8", "replace").split("\n")[:-1]
    if as_json:
        emit({"lines": lines})
        return
    for line in lines:
        click.echo(clean(line))


COMMANDS = (jobs, job, watch, result, job_log)
