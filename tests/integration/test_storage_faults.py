"""What may go wrong around storage, and in it: nothing is lost, and nothing is left over."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import pytest
import urllib3
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import insert

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import identity_pb2
from guidehall.contracts.models.v1 import models_pb2
from guidehall.contracts.results.v1 import results_pb2, staging_pb2
from guidehall.core.errors import (
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from guidehall.core.postgres import create_engine, transaction
from guidehall.local.backing import BackingServers
from services.storage.database import Database
from services.storage.garbage import Collector
from services.storage.objects import ObjectStore, new_key
from services.storage.settings import StorageSettings
from services.storage.tables import objects
from tests.fixtures.storage import (
    MIB,
    READY,
    People,
    StorageSite,
    Stubs,
    eventually,
    job_name,
    manifest,
    model_name,
    received,
    sha256,
    upload,
    weights,
)
from tests.fixtures.trainer import refused
from tests.processes import Server

pytestmark = pytest.mark.slow


async def begin(stubs: Stubs, dataset: str, megabytes: int, **header: Any) -> Any:
    """An upload that has sent so much and goes on when it is told to."""
    call = stubs.datasets.UploadDatasetVersion(timeout=60)
    await call.write(upload(dataset, b"", **header)[0])
    for number in range(megabytes):
        await call.write(chunk(number * MIB, bytes(MIB)))
    return call


def chunk(offset: int, data: bytes) -> datasets_pb2.UploadDatasetVersionRequest:
    return datasets_pb2.UploadDatasetVersionRequest(chunk=common_pb2.Chunk(offset_bytes=offset, data=data))


async def stored_states(site: StorageSite) -> list[str]:
    return [row["state"] for row in await site.fetch("SELECT state FROM storage.objects")]


async def logged(process: Server, text: str) -> None:
    """Returns once a process has logged something."""

    async def found() -> bool:
        return any(text in line for line in process.log)

    await eventually(found)


async def test_large_transfers_take_little_memory(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    process = site.start()

    async def transfer(dataset: str, size: int) -> int:
        """Uploads and downloads; gives the most memory that storage has held so far."""
        version = await ada.upload(dataset, bytes(size))
        request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name)
        _, content = await received(ada.datasets.DownloadDatasetVersion(request))
        assert len(content) == size
        return process.peak_bytes()

    async with site.user("ada") as ada:
        start = process.peak_bytes()
        first = await transfer("first", 64 * MIB)
        second = await transfer("second", 256 * MIB)

    # A part of 8 MiB for each of the threads that took turns, and their allocators' habits.
    assert first - start < 96 * MIB
    assert second - first < 96 * MIB


async def test_a_file_above_the_limit_is_refused_as_soon_as_it_shows(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage()
    site.start(LIMITS__MAX_OBJECT_BYTES=2 * MIB)
    async with site.user("ada") as ada:
        await ada.upload("fits", bytes(2 * MIB))
        claims = await begin(ada, "claims", 0, size_bytes=2_000_000_000)
        async with refused(InvalidArgument) as refusal:
            # Without another byte, and without the end.
            await claims
        async with refused(InvalidArgument):
            await ada.upload("grows", bytes(2 * MIB + 1))

    assert "2097152" in refusal[0].message
    assert len(await site.without_leaks()) == 1


async def is_writing(site: StorageSite) -> None:
    """Returns once an upload has reached storage."""

    async def begun() -> bool:
        return "writing" in await stored_states(site)

    await eventually(begun)


async def test_the_object_store_goes_away_in_the_middle_of_an_upload(
    backing: BackingServers, people: People
) -> None:
    site, ada, name = people.site, people.user(), people.name("d")
    before = await site.without_leaks()
    call = await begin(ada, name, 9)
    await is_writing(site)
    backing.kill("s3")
    try:
        async with refused(Unavailable) as refusal:
            # Storage answers as soon as it knows.
            with suppress(asyncio.InvalidStateError):
                for number in range(9, 30):
                    await call.write(chunk(number * MIB, bytes(MIB)))
            await call
    finally:
        backing.restart("s3")

    assert refusal[0].reason == "OBJECT_STORE_UNAVAILABLE"
    assert refusal[0].retry_after_seconds
    site.processes[0].wait_serving()
    assert await site.without_leaks() == before
    # The same again now works.
    assert (await ada.upload(name, bytes(9 * MIB))).version == 1
    assert len(await site.without_leaks()) == len(before) + 1


async def test_no_transaction_waits_for_the_object_store(backing: BackingServers, people: People) -> None:
    site, ada = people.site, people.user()

    async def tried() -> bool:
        # The removal hangs: for all that time the database must not have to wait with it.
        waiting = await site.fetch(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND xact_start < clock_timestamp() - interval '1 s'"
        )
        assert not waiting
        rows = await site.fetch("SELECT tries FROM storage.objects WHERE state = 'garbage'")
        return bool(rows) and all(row["tries"] > 0 for row in rows)

    call = await begin(ada, people.name("d"), 1)
    await is_writing(site)
    backing.pause("s3")
    try:
        call.cancel()
        await eventually(tried)
    finally:
        backing.resume("s3")
    await site.without_leaks()


async def test_health_follows_what_is_needed(backing: BackingServers, people: People) -> None:
    ada, process = people.user(), people.site.processes[0]
    stub: Any = health_pb2_grpc.HealthStub(ada.channel)

    async def serving(service: str) -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return bool(answer.status == answer.SERVING)

    async def not_ready() -> bool:
        return not await serving(READY)

    version = await ada.upload(people.name("d"), b"data")
    request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name)
    backing.kill("s3")
    try:
        await eventually(not_ready)
        others = [await serving(service) for service in ("", "guidehall.identity.v1.IdentityService")]
        who = await ada.identity.WhoAmI(identity_pb2.WhoAmIRequest())
        async with refused(Unavailable):
            await received(ada.datasets.DownloadDatasetVersion(request))
    finally:
        backing.restart("s3")
    process.wait_serving()

    assert others == [True, True]
    assert who.subject == people.name("ada")
    assert (await received(ada.datasets.DownloadDatasetVersion(request)))[1] == b"data"


async def test_the_database_goes_away_and_comes_back(backing: BackingServers, people: People) -> None:
    site, ada = people.site, people.user()
    before = await site.without_leaks()
    call = await begin(ada, people.name("d"), 9)
    await is_writing(site)
    backing.kill("postgres")
    try:
        end = datasets_pb2.UploadEnd(size_bytes=9 * MIB, sha256=sha256(bytes(9 * MIB)))
        await call.write(datasets_pb2.UploadDatasetVersionRequest(end=end))
        await call.done_writing()
        async with refused(Unavailable):
            await call
        async with refused(Unavailable):
            await ada.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest())
    finally:
        backing.restart("postgres")
    site.processes[0].wait_serving()

    assert await site.without_leaks() == before
    assert (await ada.upload(people.name("d"), b"data")).version == 1


async def test_an_upload_whose_beginning_committed_unheard_leaves_nothing(
    backing: BackingServers, own_storage: Callable[..., StorageSite]
) -> None:
    site = own_storage()
    site.start()

    async def configure(*settings: str) -> None:
        for sql in (*settings, "SELECT pg_reload_conf()"):
            await asyncio.to_thread(backing.postgres.run_sql, f"{sql};")

    async def is_committing() -> bool:
        sql = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'SyncRep'"
        return bool(await site.fetch(sql, site.database.database))

    async def has_committed() -> bool:
        return await stored_states(site) == ["writing"]

    async with site.user("ada") as ada:
        # A commit is durable now, and its answer waits for a standby that there is not.
        await configure("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        try:
            call = await begin(ada, "d", 0)
            await eventually(is_committing)
            call.cancel()
            await eventually(has_committed)
        finally:
            await configure("ALTER SYSTEM RESET synchronous_standby_names")

        # Not after the sweep's two hours.
        assert await site.without_leaks() == set()


async def test_an_upload_is_given_up_before_its_beginning_commits(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage()
    settings = StorageSettings.load(site.environ)
    engine = create_engine(settings.postgres)
    store = ObjectStore(settings.s3, settings.transfer)
    key = new_key()

    async def is_waiting() -> bool:
        sql = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'"
        return bool(await site.fetch(sql, site.database.database)) or given_up.done()

    try:
        collector = Collector(Database(engine), store, settings.upkeep)
        async with transaction(engine) as connection:
            row = {"key": key, "state": "writing", "media_type": "text/plain"}
            await connection.execute(insert(objects).values(row))
            collector.give_up(key)
            given_up = asyncio.create_task(collector.settle())
            await eventually(is_waiting)
        await given_up
    finally:
        await store.close()
        await engine.dispose()

    assert await stored_states(site) == ["garbage"]


async def test_what_a_killed_process_was_receiving_is_swept(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    process = site.start()
    async with site.user("ada") as ada:
        calls = [await begin(ada, f"d{number}", megabytes) for number, megabytes in enumerate((1, 9, 17))]

        async def begun() -> bool:
            return len(await stored_states(site)) == 3

        await eventually(begun)
        os.kill(process.pid, signal.SIGKILL)
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError):
                await call
    site.processes.pop().stop()
    assert await stored_states(site) == ["writing"] * 3

    site.start(TRANSFER__UPLOAD_SECONDS=0.05, UPKEEP__WRITING_MAX_AGE_SECONDS=0.1)

    assert await site.without_leaks() == set()


async def test_a_promotion_that_was_cut_off_is_repeated_to_the_same_end(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage()
    process = site.start()
    requests = []
    for number in range(12):
        job = str(uuid.uuid4())
        async with site.job(job, 1) as token:
            outputs = {
                "result": await token.stage_result(job, 1, {"number": number}),
                "film": await token.stage(job, 1, "model", "film", weights(fill=number)),
            }
        requests.append(
            staging_pb2.PromoteRequest(job=job_name(job), lease_epoch=1, owner="ada", outputs=outputs)
        )

    async with site.service("trainer") as trainer:
        calls = [trainer.staging.Promote(request) for request in requests]
        await calls[0]
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.gather(*calls, return_exceptions=True)
    site.processes.pop().stop()
    site.start()
    async with site.service("trainer") as trainer:
        answers = [await trainer.staging.Promote(request) for request in requests]

    versions = [int(answer.model_versions[0].rpartition("/")[2]) for answer in answers]
    assert sorted(versions) == list(range(1, 13))
    assert len(await site.without_leaks()) == 12


async def test_a_drain_lets_a_running_upload_end(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    process = site.start()
    async with site.user("ada") as ada:
        call = await begin(ada, "d", 1)
        await is_writing(site)
        stopped = asyncio.create_task(asyncio.to_thread(process.stop))
        await logged(process, "draining")
        end = datasets_pb2.UploadEnd(size_bytes=MIB, sha256=sha256(bytes(MIB)))
        await call.write(datasets_pb2.UploadDatasetVersionRequest(end=end))
        await call.done_writing()
        version = await call

    assert version.version == 1
    assert await stopped == 0
    site.processes.pop()


async def test_an_upload_that_outlasts_the_drain_is_given_up(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    process = site.start(GRPC__DRAIN_SECONDS=0.2)
    async with site.user("ada") as ada:
        call = await begin(ada, "d", 9)
        await is_writing(site)
        status = await asyncio.to_thread(process.stop)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    site.processes.pop()

    assert status == 0
    assert await stored_states(site) == ["garbage"]
    site.start()
    assert await site.without_leaks() == set()


async def test_two_processes_share_the_work(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    targets = [site.start().target for _ in range(2)]
    assert len(set(targets)) == 2
    job = str(uuid.uuid4())
    tokens = [site.job(job, 1, target=target) for target in targets]
    people = [site.user("ada", target=target) for target in targets]

    published = await asyncio.gather(
        *(people[number % 2].publish("film", weights(fill=number)) for number in range(12)),
        *(tokens[number % 2].stage(job, 1, "checkpoint", "1", b"%d" % number) for number in range(12)),
    )
    for stubs in (*tokens, *people):
        await stubs.channel.close()

    assert sorted(version.version for version in published[:12]) == list(range(1, 13))
    # Twelve models, and the last of twelve checkpoints under one name.
    assert len(await site.without_leaks()) == 13


async def test_a_sender_that_falls_silent_is_given_up(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    site.start(TRANSFER__IDLE_SECONDS=0.3)
    async with site.user("ada") as ada:
        call = await begin(ada, "d", 9)
        async with refused(DeadlineExceeded) as refusal:
            await call

    assert refusal[0].reason == "UPLOAD_STALLED"
    assert await site.without_leaks() == set()


async def test_one_transfer_too_many_is_refused_at_once(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    site.start(LIMITS__MAX_TRANSFERS=2)
    async with site.user("ada") as ada:
        calls = [await begin(ada, f"d{number}", 1) for number in range(2)]

        async def begun() -> bool:
            return len(await stored_states(site)) == 2

        await eventually(begun)
        async with refused(ResourceExhausted) as refusal:
            await ada.upload("late", b"data")
        for call in calls:
            call.cancel()
        assert await site.without_leaks() == set()
        await ada.upload("late", b"data")

    assert refusal[0].retry_after_seconds == 1.0


async def is_admitted(ada: Stubs, dataset: str) -> None:
    """Returns once a caller has room for one more transfer."""

    async def admitted() -> bool:
        try:
            await ada.upload(dataset, b"data")
        except grpc.aio.AioRpcError as error:
            return error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED
        return True

    await eventually(admitted)


async def test_nobody_keeps_out_the_others(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    site.start(LIMITS__MAX_TRANSFERS_PER_CALLER=1, TRANSFER__BLOCK_BYTES=MIB)
    async with site.user("ada") as ada, site.user("bob") as bob:
        version = await ada.upload("d", bytes(40 * MIB))
        request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name)
        slow = ada.datasets.DownloadDatasetVersion(request)
        await slow.read()
        async with refused(ResourceExhausted):
            await ada.upload("e", b"data")
        await bob.upload("f", b"data")
        slow.cancel()

        # Whoever hangs up is free to begin anew.
        await is_admitted(ada, "e")


async def test_a_receiver_that_takes_nothing_keeps_out_nobody_but_itself(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage()
    site.start(LIMITS__MAX_TRANSFERS=1, LIMITS__MAX_TRANSFERS_PER_CALLER=1, TRANSFER__IDLE_SECONDS=1.0)
    async with site.user("ada") as ada, site.user("bob") as bob:
        version = await ada.upload("d", bytes(40 * MIB))
        request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name)
        for reads_on in (True, False):
            stalled = ada.datasets.DownloadDatasetVersion(request)
            await stalled.read()
            async with refused(ResourceExhausted):
                await bob.upload("e", b"data")
            await is_admitted(bob, "e")
            # What its receiver has not taken is still held in memory.
            async with refused(ResourceExhausted):
                await ada.upload("e", b"data")
            if reads_on:
                async with refused(DeadlineExceeded) as refusal:
                    while await stalled.read() is not grpc.aio.EOF:
                        pass
            else:
                stalled.cancel()
            await is_admitted(ada, "e")

    assert refusal[0].reason == "DOWNLOAD_STALLED"


async def test_people_leave_room_for_jobs(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    site.start(LIMITS__MAX_TRANSFERS=4)
    job = str(uuid.uuid4())
    async with site.user("ada") as ada, site.user("bob") as bob, site.job(job, 1) as token:
        calls = [await begin(ada, f"d{number}", 1) for number in range(3)]

        async def begun() -> bool:
            return len(await stored_states(site)) == 3

        await eventually(begun)
        async with refused(ResourceExhausted):
            await bob.upload("late", b"data")
        await token.stage(job, 1, "artifact", "a.txt", b"data")
        for call in calls:
            call.cancel()


async def test_the_bucket_is_made_at_the_first_start(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(S3__BUCKET=f"new-{uuid.uuid4().hex[:12]}")
    site.start()
    async with site.user("ada") as ada:
        assert (await ada.upload("d", b"data")).version == 1


async def test_a_presigned_url_gives_the_content_and_nothing_else(
    backing: BackingServers, own_storage: Callable[..., StorageSite]
) -> None:
    site = own_storage(S3__PUBLIC_ENDPOINT=f"http://{backing.s3.endpoint}")
    site.start()
    async with site.user("ada") as ada, site.user("bob") as bob:
        version = await ada.upload("d", b"the content")
        request = datasets_pb2.CreateDatasetVersionUrlRequest(name=version.name, expires_in_seconds=60)
        answer = await ada.datasets.CreateDatasetVersionUrl(request)
        async with refused(NotFound):
            await bob.datasets.CreateDatasetVersionUrl(request)
        for seconds in (-1, 86_401):
            async with refused(InvalidArgument):
                request.expires_in_seconds = seconds
                await ada.datasets.CreateDatasetVersionUrl(request)

    def get(url: str) -> tuple[int, bytes]:
        pool = urllib3.PoolManager(timeout=5.0, retries=False)
        try:
            reply = pool.request("GET", url)
            return reply.status, reply.data
        finally:
            pool.clear()

    assert answer.expires_in_seconds == 60
    assert await asyncio.to_thread(get, answer.url) == (200, b"the content")
    assert (await asyncio.to_thread(get, answer.url.partition("?")[0]))[0] >= 400


# Ten results of a thousand files each, without their content.
_RESULTS_OF_MANY_FILES = """
WITH made AS (
    INSERT INTO storage.results
        (project, id, lease_epoch, pipeline, document, document_sha256, model_versions, owner)
    SELECT 'default', gen_random_uuid(), 1, 'toy.line', '{}', '', '[]', 'ada' FROM generate_series(1, 10)
    RETURNING id
), files AS (
    INSERT INTO storage.objects (key, state, size_bytes, sha256, media_type)
    SELECT id || '/' || number, 'kept', 1, '', 'text/plain' FROM made, generate_series(1, 1000) AS number
    RETURNING key
)
INSERT INTO storage.artifacts (project, result, id, object_key)
SELECT 'default', split_part(key, '/', 1)::uuid, split_part(key, '/', 2), key FROM files
"""


async def test_a_list_of_large_rows_comes_in_pages_of_bounded_size(
    own_storage: Callable[..., StorageSite],
) -> None:
    site = own_storage()
    site.start()
    async with site.user("ada") as ada:
        for number in range(20):
            content = weights(fill=number)
            large = manifest(content, arguments={"text": "x" * 1_000_000})
            await ada.publish("film", content, manifest=large)
        request = models_pb2.ListModelVersionsRequest(parent=model_name("film"), page_size=1000)
        first = await ada.models.ListModelVersions(request)
        request.page_token = first.next_page_token
        second = await ada.models.ListModelVersions(request)
        await site.fetch(_RESULTS_OF_MANY_FILES)
        results = await ada.results.ListResults(results_pb2.ListResultsRequest(page_size=1000))

    assert first.ByteSize() < 18 * MIB
    versions = [version.version for version in (*first.versions, *second.versions)]
    assert versions == list(range(20, 0, -1))
    assert not second.next_page_token
    assert results.next_page_token
    assert sum(len(result.artifacts) for result in results.results) == 4000


async def test_strays_in_the_bucket_are_found_and_deleted(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    site.start()
    async with site.user("ada") as ada:
        version = await ada.upload("d", b"data")
    (kept,) = site.stored_keys()
    site.put(new_key(), b"stray")
    site.stop()

    suspicious = site.start(
        UPKEEP__STRAY_MAX_AGE_SECONDS=0.1, UPKEEP__MAX_STRAYS=0, UPKEEP__RECONCILE_SECONDS=0.2
    )
    await logged(suspicious, "it is not touched")
    untouched = site.stored_keys()
    site.stop()
    site.start(UPKEEP__STRAY_MAX_AGE_SECONDS=0.1, UPKEEP__RECONCILE_SECONDS=0.2)

    assert await site.without_leaks() == {kept}
    assert len(untouched) == 2
    async with site.user("ada") as ada:
        request = datasets_pb2.DownloadDatasetVersionRequest(name=version.name)
        assert (await received(ada.datasets.DownloadDatasetVersion(request)))[1] == b"data"


async def test_what_forgotten_jobs_staged_goes(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    site.start()
    old, new, back = (str(uuid.uuid4()) for _ in range(3))
    for job in (old, new, back):
        async with site.job(job, 1) as token:
            await token.stage(job, 1, "checkpoint", "1", b"state")
            await token.stage_result(job, 1, {"a": 1})
    aged = "SET create_time = now() - interval '31 days' WHERE job = $1"

    async def sweep_waits() -> bool:
        return bool(await site.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))

    async def only_the_others() -> bool:
        rows = await site.fetch(
            "SELECT job::text FROM storage.staged_objects UNION SELECT job::text FROM storage.staged_results"
        )
        return {row["job"] for row in rows} == {new, back}

    async with site.connection() as stager, stager.transaction():
        # Old until this commits, for whoever looks before.
        await stager.execute("SELECT pg_advisory_xact_lock(7102, hashtext($1))", job_name(back))
        await site.fetch("UPDATE storage.staged_objects " + aged, back)
        await site.fetch("UPDATE storage.staged_results " + aged, back)
        await eventually(sweep_waits)
        await stager.execute("UPDATE storage.staged_results SET create_time = now() WHERE job = $1", back)
    await site.fetch("UPDATE storage.staged_objects " + aged, old)
    await site.fetch("UPDATE storage.staged_results " + aged, old)

    await eventually(only_the_others)
    await site.without_leaks()


async def test_an_object_that_is_gone_is_data_loss_and_shows_no_key(storage: StorageSite) -> None:
    async with storage.user(f"ada-{uuid.uuid4().hex[:8]}") as ada:
        name = f"d-{uuid.uuid4().hex[:8]}"
        version = await ada.upload(name, b"data")
        (row,) = await storage.fetch(
            "SELECT object_key FROM storage.dataset_versions WHERE dataset = $1", name
        )
        storage.remove(row["object_key"])
        try:
            async with refused(DataLoss) as refusal:
                await received(
                    ada.datasets.DownloadDatasetVersion(
                        datasets_pb2.DownloadDatasetVersionRequest(name=version.name)
                    )
                )
        finally:
            storage.put(row["object_key"], b"data")

    assert row["object_key"] not in refusal[0].message


async def test_secrets_are_neither_logged_nor_shown(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage()
    process = site.start()
    shown = site.run("config", "show")
    async with site.user("ada") as ada:
        key = await ada.identity.CreateApiKey(identity_pb2.CreateApiKeyRequest(parent="users/ada"))
        async with refused(InvalidArgument):
            await ada.upload("../../etc", b"data")
    site.processes.pop()
    process.stop()

    written = "".join(process.log) + shown.stdout + shown.stderr
    assert shown.returncode == 0
    assert '"bucket"' in shown.stdout
    for secret in (site.database.password, site.backing.s3.secret_key, key.secret):
        assert secret not in written
