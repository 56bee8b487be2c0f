"""The checker finds what is planted: each kind of fault is made on the real platform, reported, undone."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from guidehall.client import JobState
from guidehall.core import faults
from guidehall.local.s3 import BUCKET
from tests.chaos.checker import TABLES, connect, findings, observe, s3, settled_findings
from tests.chaos.site import WORKERS, Site

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(240)]

SEED = 5
PARAMS = {"steps": 20, "step_seconds": 0.05, "checkpoint_every": 6}
_OBJECT = "INSERT INTO storage.objects (key, state, size_bytes, sha256, media_type) "


@dataclass(frozen=True)
class Plant:
    """Statements that break something of job $1, and what the checker has to say."""

    says: str
    trainer: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()


def _event(kind: str, payload: str) -> tuple[str, ...]:
    """One more event at the end."""
    return (
        "INSERT INTO trainer.job_events (job_id, seq, kind, payload) "  # noqa: S608
        f"SELECT id, last_seq + 1, '{kind}', '{payload}' FROM trainer.jobs WHERE id = $1",
        "UPDATE trainer.jobs SET last_seq = last_seq + 1 WHERE id = $1",
    )


PLANTS = {
    "lost job": Plant("is lost", trainer=("DELETE FROM trainer.jobs WHERE id = $1",)),
    "wrong state": Plant(
        "is FAILED, not SUCCEEDED", trainer=("UPDATE trainer.jobs SET state = 'FAILED' WHERE id = $1",)
    ),
    "unexplained end": Plant(
        "with end reason None", trainer=("UPDATE trainer.jobs SET end_reason = NULL WHERE id = $1",)
    ),
    "second end": Plant(
        "ended 2 times",
        trainer=_event("state_change", '{"state": "FAILED", "lease_epoch": 1}'),
    ),
    "stale event": Plant(
        "is progress of a job that is SUCCEEDED", trainer=_event("progress", '{"step": 21, "total": 20}')
    ),
    "stale checkpoint": Plant(
        "is a checkpoint of a job that is SUCCEEDED", trainer=_event("checkpoint", '{"step": 30}')
    ),
    "second publication": Plant("was published 2 times", trainer=_event("published", "{}")),
    "gap in the events": Plant(
        "but its newest is", trainer=("DELETE FROM trainer.job_events WHERE job_id = $1 AND seq = 3",)
    ),
    "work done twice": Plant(
        "is of step 1 again",
        trainer=(
            "UPDATE trainer.job_events SET payload = jsonb_set(payload, '{step}', '1') WHERE job_id = $1 "
            "AND seq = (SELECT max(seq) FROM trainer.job_events WHERE job_id = $1 AND kind = 'progress')",
        ),
    ),
    "request of two jobs": Plant(
        "made the jobs",
        trainer=(
            "INSERT INTO trainer.request_ids (subject, request_id, content_digest, job_id) "
            "SELECT 'somebody', request_id, content_digest, (SELECT id FROM trainer.jobs WHERE id <> $1 "
            "LIMIT 1) FROM trainer.request_ids WHERE job_id = $1",
        ),
    ),
    "attempt without end": Plant(
        "is not over", trainer=("UPDATE trainer.attempts SET end_time = NULL WHERE job_id = $1",)
    ),
    "attempt gone": Plant("has attempts []", trainer=("DELETE FROM trainer.attempts WHERE job_id = $1",)),
    "attempt of another end": Plant(
        "but [] completed it",
        trainer=("UPDATE trainer.attempts SET end_reason = 'LEASE_LOST' WHERE job_id = $1",),
    ),
    "miscounted attempts": Plant(
        "counts 2 attempts", trainer=("UPDATE trainer.jobs SET attempt_count = 2 WHERE id = $1",)
    ),
    "message never told": Plant(
        "trainer.outbox still has",
        trainer=(
            "INSERT INTO trainer.outbox (kind, subject, payload, next_time) "
            "SELECT 'promote', id::text, '{}', now() + interval '1 hour' FROM trainer.jobs WHERE id = $1",
        ),
    ),
    "checkpoint left": Plant(
        "trainer.checkpoints still has",
        trainer=(
            "INSERT INTO trainer.checkpoints (job_id, epoch, ordinal, step, sha256, size_bytes, media_type) "
            "VALUES ($1, 1, 9, 18, '0', 1, 'x/y')",
        ),
    ),
    "doubled result": Plant(
        "with 2 results",
        storage=(
            "INSERT INTO storage.results (project, id, lease_epoch, pipeline, document, document_sha256, "
            "model_versions, owner) SELECT 'twin', id, lease_epoch, pipeline, document, document_sha256, "
            "model_versions, owner FROM storage.results WHERE id = $1",
        ),
    ),
    "result gone": Plant(
        "with 0 results",
        storage=(
            "DELETE FROM storage.artifacts WHERE result = $1",
            "DELETE FROM storage.results WHERE id = $1",
        ),
    ),
    "doubled model": Plant(
        "with 2 model versions",
        storage=(
            f"{_OBJECT} VALUES ('objects/xx/x', 'kept', 1, $1, 'x/y')",
            "INSERT INTO storage.model_versions (project, model, version, architecture, manifest, "
            "manifest_sha256, object_key, job, labels) SELECT project, model, version + 1, architecture, "
            "manifest, manifest_sha256, 'objects/xx/x', job, labels FROM storage.model_versions "
            "WHERE job LIKE '%' || $1",
        ),
    ),
    "result of another attempt": Plant(
        "7 was promoted", storage=("UPDATE storage.results SET lease_epoch = 7 WHERE id = $1",)
    ),
    "wrong number": Plant(
        "differs from the undisturbed run",
        storage=("UPDATE storage.results SET document = jsonb_set(document, '{slope}', '9') WHERE id = $1",),
    ),
    "wrong weights": Plant(
        "weights of",
        storage=(
            "UPDATE storage.objects SET sha256 = 'f' WHERE key IN "
            "(SELECT object_key FROM storage.model_versions WHERE job LIKE '%' || $1)",
        ),
    ),
    "wrong artifact": Plant(
        "artifacts ['points.npy'] differs",
        storage=(
            "UPDATE storage.objects SET sha256 = 'f' WHERE key IN "
            "(SELECT object_key FROM storage.artifacts WHERE result = $1)",
        ),
    ),
    "object without a row": Plant("is in the bucket and in no table"),
    "object without a use": Plant(
        "is kept for 0 purposes", storage=(f"{_OBJECT} VALUES ('objects/xx/x', 'kept', 1, $1, 'x/y')",)
    ),
    "object of another size": Plant(
        "bytes, not 3",
        storage=(
            "UPDATE storage.objects SET size_bytes = 3 WHERE key IN "
            "(SELECT object_key FROM storage.artifacts WHERE result = $1)",
        ),
    ),
    "upload left": Plant(
        "is still writing", storage=(f"{_OBJECT} VALUES ('objects/xx/x', 'writing', 1, $1, 'x/y')",)
    ),
    "staged object left": Plant(
        "is still staged",
        storage=(
            f"{_OBJECT} VALUES ('objects/xx/x', 'kept', 1, $1, 'x/y')",
            "INSERT INTO storage.staged_objects (project, job, epoch, kind, object_id, object_key) "
            "VALUES ('default', $1, 1, 'artifact', 'a.npy', 'objects/xx/x')",
        ),
    ),
    "staged result left": Plant(
        "storage.staged_results still has",
        storage=(
            "INSERT INTO storage.staged_results (project, job, epoch, pipeline, document, sha256, "
            "size_bytes) VALUES ('default', $1, 1, 'toy.line', '{}', '0', 2)",
        ),
    ),
    "discarded success": Plant(
        "its outputs were discarded",
        storage=(
            "INSERT INTO storage.requests (caller, method, request_id, content_digest, resource) "
            "VALUES ('x', 'Discard', $1, '', 'x')",
        ),
    ),
    "stray process": Plant("is nobody's"),
    "folders left": Plant("left folders behind"),
    "job of nobody": Plant("was submitted by nobody"),
}


@pytest.fixture(scope="module")
def job(site: Site) -> str:
    """A job that went well, on a platform that is well; there is another one, too."""
    site.wait_ready()
    with site.client() as client:
        site.learn(client, "checker", PARAMS | {"model_name": "checker-1"}, SEED)
        job = site.submit(client, PARAMS | {"model_name": "checker-2"}, numbers="checker", seed=SEED)
        assert client.wait(job.id, timeout=90).state is JobState.SUCCEEDED
    assert settled_findings(site, 60) == []
    return job.id


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_reported(site: Site, job: str, name: str) -> None:
    plant = PLANTS[name]
    expected = dict(site.expected)

    async def look() -> list[str]:
        async with restored(site):
            for schema in ("trainer", "storage"):
                connection = await connect(site, schema)
                try:
                    for statement in getattr(plant, schema):
                        await connection.execute(statement, job)
                finally:
                    await connection.close()
            return await asyncio.to_thread(lambda: findings(observe(site), expected, site.undisturbed))

    if name == "job of nobody":
        del expected[job]
    with _OUTSIDE.get(name, _nothing)(site):
        found = asyncio.run(look())
    assert any(plant.says in line for line in found), found
    assert settled_findings(site, 30) == [], "not undone"


# Outside the database -------------------------------------------------------------------------------------


@contextmanager
def _nothing(site: Site) -> Iterator[None]:
    yield


@contextmanager
def _object(site: Site) -> Iterator[None]:
    key = "objects/xx/orphan"
    s3(site).put_object(BUCKET, key, io.BytesIO(b"orphan"), 6)
    try:
        yield
    finally:
        s3(site).remove_object(BUCKET, key)


@contextmanager
def _process(site: Site) -> Iterator[None]:
    environ = os.environ | {faults.VARIABLE: str(site.faults.folder)}
    command = ["sh", "-c", "sleep 120 >/dev/null 2>&1 & echo $!"]
    # Its parent ends at once.
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=10)
    try:
        yield
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


@contextmanager
def _folders(site: Site) -> Iterator[None]:
    folders = [site.data / "tmp" / f"guidehall-worker-left-{number}" for number in range(len(WORKERS) + 1)]
    for folder in folders:
        folder.mkdir()
    try:
        yield
    finally:
        for folder in folders:
            folder.rmdir()


_OUTSIDE: dict[str, Callable[[Site], Any]] = {
    "object without a row": _object,
    "stray process": _process,
    "folders left": _folders,
}


# Undoing --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def restored(site: Site) -> AsyncIterator[None]:
    """Whatever the block does to the tables that are checked is undone."""
    for schema in TABLES:
        await _each(site, schema, "CREATE TABLE kept.{name} AS TABLE {schema}.{name}", "CREATE SCHEMA kept")
    try:
        yield
    finally:
        for schema in TABLES:
            # Without the foreign keys: every row comes back as it was.
            await _each(
                site,
                schema,
                "DELETE FROM {schema}.{name}; "
                "INSERT INTO {schema}.{name} OVERRIDING SYSTEM VALUE TABLE kept.{name}",
                "SET LOCAL session_replication_role = replica",
                "DROP SCHEMA kept CASCADE",
            )


async def _each(site: Site, schema: str, statement: str, *around: str) -> None:
    """One statement for each table, after the first of `around` and before the second."""
    of_tables = [statement.format(schema=schema, name=name) for name in TABLES[schema]]
    connection = await connect(site, schema)
    try:
        async with connection.transaction():
            for text in (*around[:1], *of_tables, *around[1:]):
                await connection.execute(text)
    finally:
        await connection.close()
