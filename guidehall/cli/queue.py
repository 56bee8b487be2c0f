"""`guidehall queue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from guidehall.cli._context import connect, json_option
from guidehall.cli._output import age, duration, emit, roughly, short, table
from guidehall.cli.jobs import progress

if TYPE_CHECKING:
    from guidehall.client import Client, Job, Launcher, Pool


@click.command(
    epilog="""\b
Examples
  guidehall queue
  guidehall queue --by-pool   how full each pool is, and who works on it
"""
)
@click.option("--by-pool", is_flag=True, help="Sums for each pool in the place of its jobs.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="How many jobs of a state at most.",
)
@json_option
def queue(by_pool: bool, limit: int, as_json: bool) -> None:
    """Show the jobs that run and wait: progress, place in the queue, when they start and end.

    Times with ~ are estimates; `guidehall job JOB` shows how sure they are.
    """
    with connect() as client:
        if by_pool:
            pools = client.pools()
            emit(pools) if as_json else _show_pools(pools)
        else:
            found = _in_order(client, limit)
            emit(found) if as_json else _show_jobs(found)


def _in_order(client: Client, limit: int) -> list[Job]:
    """Running jobs, then waiting ones by their places in the queue."""
    running, leased, queued = (
        list(client.jobs(f'state = "{state}"', "create_time", limit))
        for state in ("RUNNING", "LEASED", "QUEUED")
    )
    queued.sort(key=lambda job: (job.pool, job.queue_position))
    return [*running, *leased, *queued]


def _show_jobs(jobs: list[Job]) -> None:
    rows = [
        (
            short(job.name),
            job.display_name,
            job.pipeline,
            job.pool,
            job.status,
            progress(job),
            roughly(job.start_estimate) or (f"{age(job.start_time)} ago" if job.start_time else ""),
            roughly(job.end_estimate),
            job.owner,
        )
        for job in jobs
    ]
    headings = ("JOB", "NAME", "PIPELINE", "POOL", "STATE", "PROGRESS", "START", "END", "OWNER")
    table(headings, rows, empty="nothing runs or waits")


def _show_pools(pools: list[Pool]) -> None:
    rows = [
        (
            pool.id,
            pool.device_class,
            pool.queued_jobs,
            duration(pool.oldest_wait_seconds) if pool.queued_jobs else "",
            pool.running_jobs,
            pool.paused_jobs,
            pool.live_workers,
            pool.idle_workers,
            "" if pool.launcher is None else _launches(pool.launcher),
        )
        for pool in pools
    ]
    headings = ("POOL", "DEVICE", "QUEUED", "OLDEST", "RUNNING", "PAUSED", "WORKERS", "IDLE", "LAUNCHES")
    table(headings, rows, empty="no pools")


def _launches(launcher: Launcher) -> str:
    """How workers are started, and why that does not happen or did not work."""
    if launcher.kind in ("", "none"):
        return ""
    words = [launcher.kind]
    if launcher.last_launch_time:
        words.append(f"{age(launcher.last_launch_time)} ago")
    if launcher.waiting_for:
        words.append(launcher.waiting_for)
    if launcher.last_error:
        words.append(f"failed: {launcher.last_error}")
    return ", ".join(words)


COMMANDS = (queue,)
