"""Looks at a platform from outside after it was hurt, and says everything that is not as it has to be.

It reads both schemas, the bucket, the processes of the machine and the public API, and trusts no code of the
services: every rule is written down here once more.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from minio import Minio

from guidehall.client import Client, Job
from guidehall.client.errors import AppError, NotFound
from guidehall.local.descendants import descendants
from guidehall.local.files import Secrets, read_json
from guidehall.local.s3 import ACCESS_KEY, BUCKET
from guidehall.local.services import DATABASES
from tests.chaos.site import WORKERS, Expected, Site, numbers_of

Row = Mapping[str, Any]
_FINAL = {"SUCCEEDED", "FAILED", "CANCELLED"}
_HELD = {"LEASED", "RUNNING"}
# Attempts that ended so do not count: the job was handed back.
_UNCOUNTED = {"RELEASED", "PAUSED"}
# By schema, what is read.
TABLES = {
    "trainer": ("jobs", "attempts", "job_events", "checkpoints", "outbox", "request_ids"),
    "storage": (
        "objects", "staged_objects", "staged_results", "results", "artifacts", "job_logs", "model_versions",
        "dataset_versions", "requests", "outbox",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ApiJob:
    """A job as the public API shows it."""

    state: str
    # None where there is none to be had.
    document: Mapping[str, Any] | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)
    # By model version, the SHA-256 of the weights.
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """A platform at one time.

    Attributes:
        tables: rows by "schema.table".
        bucket: size in bytes by key.
        api: by id, every job that the API lists.
        listed: how often the API lists each id.
        strays: processes of the platform that its supervisor did not start, with their command lines.
        folders: what lies in the workers' folder for temporary files.
    """

    tables: Mapping[str, list[Row]]
    bucket: Mapping[str, int]
    api: Mapping[str, ApiJob]
    listed: Counter[str]
    strays: Mapping[int, str]
    folders: list[str]


def settled_findings(site: Site, seconds: float) -> list[str]:
    """What is wrong once nothing is under way any more, or after `seconds` if something still is."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = findings(observe(site), site.expected, site.undisturbed)
        except (AppError, OSError, asyncpg.PostgresError) as error:
            found = [f"the platform cannot be looked at: {type(error).__name__}: {error}"]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


# Looking --------------------------------------------------------------------------------------------------


def observe(site: Site) -> Observation:
    """Reads everything."""
    tables = asyncio.run(_tables(site))
    api, listed = _api(site)
    temporary = site.data / "tmp"
    folders = [path.name for path in temporary.iterdir()] if temporary.exists() else []
    return Observation(tables, _bucket(site), api, listed, _strays(site), folders)


async def connect(site: Site, service: str) -> asyncpg.Connection:
    """A service's database, as the superuser and not by the way that the service takes."""
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=read_json(site.data / "ports.json")["postgres"],
        user="postgres",
        password=Secrets(site.data / "secrets").text("postgres-superuser"),
        database=DATABASES[service],
        timeout=5,
        command_timeout=30,
    )
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await connection.set_type_codec("uuid", encoder=str, decoder=str, schema="pg_catalog", format="text")
    return connection


async def _tables(site: Site) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {}
    for schema, names in TABLES.items():
        connection = await connect(site, schema)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                for name in names:
                    found = await connection.fetch(f"SELECT * FROM {schema}.{name}")  # noqa: S608
                    rows[f"{schema}.{name}"] = [dict(row) for row in found]
        finally:
            await connection.close()
    return rows


def s3(site: Site) -> Minio:
    """The bucket's server, not by the way that storage takes."""
    port = read_json(site.data / "ports.json")["s3"]
    secret = Secrets(site.data / "secrets").text("s3-secret-key")
    return Minio(f"127.0.0.1:{port}", ACCESS_KEY, secret, secure=False, region="us-east-1")


def _bucket(site: Site) -> dict[str, int]:
    listed = s3(site).list_objects(BUCKET, prefix="objects/", recursive=True)
    return {str(item.object_name): item.size or 0 for item in listed}


def _api(site: Site) -> tuple[dict[str, ApiJob], Counter[str]]:
    found: dict[str, ApiJob] = {}
    listed: Counter[str] = Counter()
    with site.client() as client:
        for job in client.jobs():
            listed[job.id] += 1
            found[job.id] = ApiJob(job.state.value)
            if job.result:
                # What is not there is for the judge.
                with suppress(NotFound):
                    found[job.id] = _api_result(client, job)
    return found, listed


def _api_result(client: Client, job: Job) -> ApiJob:
    result = client.result(job.id)
    files = {a.filename: a.object.sha256 for a in result.artifacts if a.filename != "job.log"}
    versions = [client.model_version(name) for name in result.model_versions]
    weights = {version.name: version.weights.sha256 for version in versions}
    return ApiJob(job.state.value, result.document, files, weights)


def _strays(site: Site) -> dict[int, str]:
    """Processes that carry the mark of this platform but do not descend from its supervisor, us."""
    mark = str(site.faults.folder).encode()
    ours = {os.getpid(), *descendants(os.getpid())}
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ours:
            continue
        try:
            if mark in (entry / "environ").read_bytes():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = command[:200]
        except OSError:
            continue  # gone, or not ours
    return found


# Judging --------------------------------------------------------------------------------------------------


def findings(
    seen: Observation, expected: Mapping[str, Expected], undisturbed: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Everything that is wrong, one line each."""
    return [
        *_jobs(seen, expected),
        *_results(seen, expected, undisturbed),
        *_attempts(seen),
        *_events(seen),
        *_left_over(seen),
        *_objects(seen),
        *(f"process {pid} is nobody's: {command}" for pid, command in seen.strays.items()),
    ]


def _jobs(seen: Observation, expected: Mapping[str, Expected]) -> Iterator[str]:
    """Every job there, once, in one right final state."""
    rows = {row["id"]: row for row in seen.tables["trainer.jobs"]}
    requests: dict[str, list[str]] = defaultdict(list)
    for row in seen.tables["trainer.request_ids"]:
        requests[row["request_id"]].append(row["job_id"])
    for job, wanted in expected.items():
        row = rows.get(job)
        if row is None:
            yield f"job {job} is lost"
            continue
        if row["state"] not in wanted.states:
            yield f"job {job} is {row['state']}, not {' or '.join(sorted(wanted.states))}"
        if (row["state"] in _FINAL) != (row["end_reason"] is not None and row["end_time"] is not None):
            yield f"job {job} is {row['state']} with end reason {row['end_reason']} at {row['end_time']}"
        if row["worker_id"] is not None or row["lease_until"] is not None:
            yield f"job {job} is {row['state']} and still leased"
        if seen.listed[job] != 1:
            yield f"job {job} is listed {seen.listed[job]} times by the API"
        elif seen.api[job].state != row["state"]:
            yield f"job {job} is {row['state']} but the API says {seen.api[job].state}"
        if requests[wanted.request_id] != [job]:
            yield f"request {wanted.request_id} made the jobs {requests[wanted.request_id]}, not {job} alone"
    for job in rows.keys() - expected.keys():
        yield f"job {job} was submitted by nobody"


def _results(
    seen: Observation, expected: Mapping[str, Expected], undisturbed: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """One promoted result for each job that succeeded, with the numbers of the undisturbed run."""
    jobs = {row["id"]: row for row in seen.tables["trainer.jobs"]}
    results: dict[str, list[Row]] = defaultdict(list)
    for row in seen.tables["storage.results"]:
        results[row["id"]].append(row)
    versions: dict[str, list[Row]] = defaultdict(list)
    for row in seen.tables["storage.model_versions"]:
        versions[row["job"].rpartition("/")[2]].append(row)
    for job, row in jobs.items():
        count = 1 if row["state"] == "SUCCEEDED" else 0
        if len(results[job]) != count:
            yield f"job {job} is {row['state']} with {len(results[job])} results"
        if len(versions[job]) != count:
            yield f"job {job} is {row['state']} with {len(versions[job])} model versions"
        if (row["result"] is not None) != bool(count):
            yield f"job {job} is {row['state']} with the result {row['result']}"
        for result in results[job]:
            if result["lease_epoch"] != row["lease_epoch"]:
                yield f"job {job} ended at epoch {row['lease_epoch']}, {result['lease_epoch']} was promoted"
        if count and job in expected:
            wrong = _wrong_numbers(seen.api.get(job), expected[job], undisturbed)
            yield from (f"job {job}: {what} differs from the undisturbed run" for what in wrong)
    for job in (results.keys() | versions.keys()) - jobs.keys():
        if results[job] or versions[job]:
            yield f"results or models of job {job}, which does not exist"


def _wrong_numbers(
    shown: ApiJob | None, expected: Expected, undisturbed: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    right = undisturbed.get(expected.numbers)
    if right is None:
        return
    if shown is None or shown.document is None:
        yield "the result, which is not there,"
        return
    if numbers_of(shown.document) != {"document": right["document"]}:
        yield f"document {dict(shown.document)}"
    if dict(shown.artifacts) != right["artifacts"]:
        yield f"artifacts {sorted(shown.artifacts)}"
    if list(shown.weights.values()) != [right["weights"]]:
        yield f"weights of {sorted(shown.weights)}"


def _attempts(seen: Observation) -> Iterator[str]:
    """Attempts are numbered without gaps, each is over, and they explain the job's counts."""
    by_job: dict[str, list[Row]] = defaultdict(list)
    for row in seen.tables["trainer.attempts"]:
        by_job[row["job_id"]].append(row)
    for row in seen.tables["trainer.jobs"]:
        job, mine = row["id"], sorted(by_job[row["id"]], key=lambda attempt: attempt["epoch"])
        if [attempt["epoch"] for attempt in mine] != list(range(1, row["lease_epoch"] + 1)):
            yield f"job {job} at epoch {row['lease_epoch']} has attempts {[a['epoch'] for a in mine]}"
        for attempt in mine:
            if attempt["end_time"] is None or attempt["end_reason"] is None:
                yield f"attempt {attempt['epoch']} at job {job} is not over"
        counted = sum(attempt["end_reason"] not in _UNCOUNTED for attempt in mine)
        if row["state"] in _FINAL and counted != row["attempt_count"]:
            yield f"job {job} counts {row['attempt_count']} attempts, {counted} were made"
        winners = [a["epoch"] for a in mine if a["end_reason"] in {"COMPLETED", "STOPPED_EARLY"}]
        if row["state"] == "SUCCEEDED" and winners != [row["lease_epoch"]]:
            yield f"job {job} succeeded at epoch {row['lease_epoch']} but {winners} completed it"


def _events(seen: Observation) -> Iterator[str]:
    by_job: dict[str, list[Row]] = defaultdict(list)
    for row in seen.tables["trainer.job_events"]:
        by_job[row["job_id"]].append(row)
    for row in seen.tables["trainer.jobs"]:
        events = sorted(by_job[row["id"]], key=lambda event: event["seq"])
        yield from (f"job {row['id']}: {wrong}" for wrong in _story(row, events))


def _story(job: Row, events: list[Row]) -> Iterator[str]:
    """One job's events: no gap, one end, nothing from an attempt that did not hold the job, little lost."""
    if [event["seq"] for event in events] != list(range(job["first_seq"], job["last_seq"] + 1)):
        yield f"events {[event['seq'] for event in events]}, but its newest is {job['last_seq']}"
    state, epoch, ends, published = "", 0, 0, 0
    step = saved = 0
    for event in events:
        seq, payload = event["seq"], event["payload"]
        match event["kind"]:
            case "state_change":
                if state in _FINAL:
                    yield f"event {seq} changes the state after the end"
                if payload["lease_epoch"] != epoch + (payload["state"] == "LEASED" and state != "LEASED"):
                    yield f"event {seq} is of epoch {payload['lease_epoch']} after {epoch}"
                if payload["state"] == "LEASED" and state != "LEASED":
                    # The attempt goes on from the newest checkpoint.
                    step = saved
                state, epoch = payload["state"], payload["lease_epoch"]
                ends += state in _FINAL
            case "progress":
                if state != "RUNNING":
                    yield f"event {seq} is progress of a job that is {state}"
                if payload["step"] <= step:
                    yield f"event {seq} is of step {payload['step']} again, after {step}"
                step = payload["step"]
            case "checkpoint":
                if state not in _HELD:
                    yield f"event {seq} is a checkpoint of a job that is {state}"
                if payload["step"] < saved:
                    yield f"event {seq} is a checkpoint of step {payload['step']} after one of {saved}"
                saved = payload["step"]
            case "published":
                published += 1
                if state != "SUCCEEDED":
                    yield f"event {seq} publishes a result of a job that is {state}"
            case "log_line":
                if state not in _HELD:
                    yield f"event {seq} is a line of a job that is {state}"
    if state != job["state"] or epoch != job["lease_epoch"]:
        yield f"is {job['state']} at epoch {job['lease_epoch']}, its events say {state} at {epoch}"
    if ends != 1:
        yield f"ended {ends} times"
    if published != (job["state"] == "SUCCEEDED"):
        yield f"is {job['state']} and was published {published} times"


def _left_over(seen: Observation) -> Iterator[str]:
    """Nothing is under way once everything has ended."""
    for table in ("trainer.outbox", "trainer.checkpoints", "storage.staged_results", "storage.outbox"):
        for row in seen.tables[table]:
            yield f"{table} still has { ({k: row[k] for k in list(row)[:6]}) }"
    for row in seen.tables["storage.staged_objects"]:
        yield f"{row['kind']} {row['object_id']} of job {row['job']} at epoch {row['epoch']} is still staged"
    succeeded = {row["id"] for row in seen.tables["trainer.jobs"] if row["state"] == "SUCCEEDED"}
    ended = {row["id"] for row in seen.tables["trainer.jobs"] if row["state"] in {"FAILED", "CANCELLED"}}
    for row in seen.tables["storage.job_logs"]:
        if row["job"] not in ended:
            yield f"the log of job {row['job']} is kept, which has not ended without a result"
    for row in seen.tables["storage.requests"]:
        if row["method"] == "Discard" and row["request_id"] in succeeded:
            yield f"job {row['request_id']} succeeded and its outputs were discarded"
    workers = [name for name in seen.folders if name.startswith("guidehall-worker-")]
    if len(workers) > len(WORKERS):
        yield f"workers left folders behind: {sorted(workers)}"


def _objects(seen: Observation) -> Iterator[str]:
    """Every object of the bucket is kept for exactly one purpose, and whatever is kept is in the bucket."""
    uses = Counter(
        row["object_key"]
        for table in ("staged_objects", "artifacts", "job_logs", "model_versions", "dataset_versions")
        for row in seen.tables[f"storage.{table}"]
    )
    rows = {row["key"]: row for row in seen.tables["storage.objects"]}
    for key in seen.bucket.keys() - rows.keys():
        yield f"object {key} is in the bucket and in no table"
    for key, row in rows.items():
        if row["state"] != "kept":
            yield f"object {key} is still {row['state']}"
        elif uses[key] != 1:
            yield f"object {key} is kept for {uses[key]} purposes"
        elif seen.bucket.get(key) != row["size_bytes"]:
            yield f"object {key} has {seen.bucket.get(key)} bytes, not {row['size_bytes']}"
