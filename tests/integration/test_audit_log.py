"""The audit log's chain in real rows: sealed by replicas side by side, tampered with, exported, filtered."""

# ruff: noqa: S608 (statements are put together from names that stand here)

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from guidehall.contracts.datasets.v1 import datasets_pb2
from guidehall.contracts.identity.v1 import audit_pb2, identity_pb2
from guidehall.core import audit_chain
from guidehall.core.auth import Role
from guidehall.core.errors import DataLoss, InvalidArgument, NotFound, PermissionDenied
from guidehall.core.postgres import create_engine
from services.storage.audit.export import export
from services.storage.database import Database
from services.storage.settings import StorageSettings
from tests.fixtures.storage import People, StorageSite, dataset_name, eventually
from tests.fixtures.trainer import refused

pytestmark = pytest.mark.slow

_TABLES = ("events", "seals")
_QUICK = {"AUDIT__SEAL_SECONDS": 0.2, "AUDIT__SEAL_EVENTS": 5}


def event(**fields: Any) -> audit_pb2.AuditEvent:
    known = {
        "event_id": str(uuid.uuid4()),
        "service": "trainer",
        "subject": "ada",
        "kind": identity_pb2.PRINCIPAL_KIND_USER,
        "method": "/guidehall.jobs.v1.JobsService/SubmitJob",
        "resource": "projects/default/jobs/1",
        "outcome": "OK",
        "count": 1,
        "time": Timestamp(seconds=1_700_000_000),
    }
    return audit_pb2.AuditEvent(**(known | fields))


async def append(site: StorageSite, count: int) -> None:
    async with site.service("trainer") as trainer:
        request = audit_pb2.AppendAuditEventsRequest(events=[event() for _ in range(count)])
        await trainer.audit.AppendAuditEvents(request)


async def all_sealed(site: StorageSite) -> None:
    async def sealed() -> bool:
        sql = (
            "SELECT coalesce((SELECT max(sequence) FROM audit.events), 0) AS events, "
            "coalesce((SELECT max(last_sequence) FROM audit.seals), 0) AS sealed"
        )
        (row,) = await site.fetch(sql)
        return bool(row["events"] == row["sealed"])

    await eventually(sealed)


async def damage(site: StorageSite, *statements: str) -> None:
    """What somebody does who owns the database."""
    async with site.connection() as connection, connection.transaction():
        for switch in ("DISABLE", "ENABLE"):
            for table in _TABLES:
                await connection.execute(f"ALTER TABLE audit.{table} {switch} TRIGGER USER")
            if switch == "DISABLE":
                for statement in statements:
                    await connection.execute(statement)


async def check(site: StorageSite, noted: str = "") -> str:
    """What the check of the log says, as the command does."""
    engine = create_engine(StorageSettings.load(site.environ).postgres)
    expected = audit_chain.parse_seal(noted) if noted else None
    try:
        return str(await audit_chain.verify_stream(export(Database(engine)), expected))
    except DataLoss as error:
        return error.message
    finally:
        await engine.dispose()


_COPY = (
    "SELECT {at}, gen_random_uuid(), time, service, subject, kind, actor, method, resource, outcome,"
    " etag_before, etag_after, trace_id, request_id, job, count, digest FROM audit.events WHERE sequence = 6"
)
_INSERT = (
    "INSERT INTO audit.events (sequence, event_id, time, service, subject, kind, actor, method, resource,"
    " outcome, etag_before, etag_after, trace_id, request_id, job, count, digest) "
)
_DAMAGES = {
    "an event was changed": (
        ["UPDATE audit.events SET subject = 'eve' WHERE sequence = 7"],
        "event 7 is not what was written down (batch 2)",
    ),
    "an event and its digest were changed": (
        ["UPDATE audit.events SET subject = 'eve', digest = $digest WHERE sequence = 7"],
        "batch 2 is not what was sealed",
    ),
    "an event was removed": (["DELETE FROM audit.events WHERE sequence = 7"], "event 7 is missing (batch 2)"),
    "the first event was removed": (["DELETE FROM audit.events WHERE sequence = 1"], "event 1 is missing"),
    "an event was put in before all": (
        [_INSERT + _COPY.format(at=0)],
        "event 0 was put in",
    ),
    "an event was put in and the later ones moved": (
        [
            "UPDATE audit.events SET sequence = sequence + 1000 WHERE sequence >= 7",
            "UPDATE audit.events SET sequence = sequence - 999 WHERE sequence >= 1007",
            _INSERT + _COPY.format(at=7),
        ],
        "event 7 is not what was written down",
    ),
    "events changed places": (
        [
            "UPDATE audit.events SET sequence = -1 WHERE sequence = 7",
            "UPDATE audit.events SET sequence = 7 WHERE sequence = 8",
            "UPDATE audit.events SET sequence = 8 WHERE sequence = -1",
        ],
        "event 7 is not what was written down",
    ),
    "a batch was removed whole": (
        [
            "DELETE FROM audit.events WHERE sequence BETWEEN 6 AND 10",
            "DELETE FROM audit.seals WHERE number = 2",
        ],
        "event 6 is missing",
    ),
    "the beginning was removed": (
        ["DELETE FROM audit.events WHERE sequence <= 10", "DELETE FROM audit.seals WHERE number < 2"],
        "begins after seal 2, and retention removed up to 0",
    ),
    "a seal was removed": (["DELETE FROM audit.seals WHERE number = 2"], "seal 2 is missing"),
    "a seal was changed": (
        ["UPDATE audit.seals SET time = time + interval '1 s' WHERE number = 3"],
        "seal 3 was changed",
    ),
    "the newest were cut off": (
        ["DELETE FROM audit.events WHERE sequence > 10", "DELETE FROM audit.seals WHERE number > 2"],
        "it ends at seal 2, before the expected seal 4",
    ),
    "the newest seals were written anew": (
        ["DELETE FROM audit.seals WHERE number > 2", "$reseal"],
        "seal 4 is not the expected one",
    ),
}


async def test_every_kind_of_tampering_is_found(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**_QUICK)
    site.start()
    await append(site, 20)
    await all_sealed(site)
    site.stop()
    whole = site.run("audit", "verify")
    assert whole.returncode == 0, whole.stderr
    assert "20 events under 4 seals, 0 not sealed yet; newest seal 4:" in whole.stdout
    noted = whole.stdout.split("newest seal ")[1].strip()
    assert "holds from its beginning" in await check(site, noted)
    for table in _TABLES:
        await site.fetch(f"CREATE TABLE public.{table} AS SELECT * FROM audit.{table}")

    for what, (statements, told) in _DAMAGES.items():
        for statement in statements:
            if statement == "$reseal":
                site.start()
                await all_sealed(site)
                site.stop()
            else:
                if "$digest" in statement:
                    statement = statement.replace("$digest", await forged_digest(site, 7))
                await damage(site, statement)
        assert told in await check(site, noted), what
        await damage(
            site,
            *(f"DELETE FROM audit.{table}" for table in _TABLES),
            *(f"INSERT INTO audit.{table} SELECT * FROM public.{table}" for table in _TABLES),
        )
        assert "holds from its beginning" in await check(site, noted), what
    await damage(site, "DELETE FROM audit.events WHERE sequence = 7")
    broken = site.run("audit", "verify")
    assert broken.returncode != 0
    assert broken.stderr.splitlines()[-1] == "the audit log is broken: event 7 is missing (batch 2)"


async def forged_digest(site: StorageSite, sequence: int) -> str:
    """The digest that an event would have with another subject."""
    columns = (
        "event_id, time, service, subject, kind, actor, method, resource, outcome, etag_before, etag_after"
    )
    (row,) = await site.fetch(
        f"SELECT {columns}, trace_id, request_id, job, count, sequence FROM audit.events WHERE sequence = $1",
        sequence,
    )
    fields = dict(row) | {"subject": "eve", "event_id": str(row["event_id"])}
    made = audit_chain.digest(fields | {"time": audit_chain.timestamp(row["time"])})
    return f"'\\x{made.hex()}'::bytea"


async def test_rows_cannot_be_changed_or_removed_by_slip(storage: StorageSite) -> None:
    await append(storage, 1)
    for table in _TABLES:
        for statement in (
            f"UPDATE audit.{table} SET time = now()",
            f"DELETE FROM audit.{table}",
            f"TRUNCATE audit.{table}",
        ):
            if table == "seals":
                await all_sealed(storage)
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only appended to"):
                await storage.fetch(statement)


async def test_replicas_do_not_fork_the_chain(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**(_QUICK | {"AUDIT__SEAL_SECONDS": 0.05}))
    site.start()
    site.start()
    targets = [process.target for process in site.processes]

    async def write(target: str) -> None:
        async with site.caller("trainer", "trainer", "service", target=target) as trainer:
            for _ in range(20):
                request = audit_pb2.AppendAuditEventsRequest(events=[event() for _ in range(3)])
                await trainer.audit.AppendAuditEvents(request)

    await asyncio.gather(*(write(target) for target in targets for _ in range(2)))
    await all_sealed(site)

    told = await check(site)
    assert "240 events" in told
    assert "0 not sealed" in told
    assert [row["n"] for row in await site.fetch("SELECT count(*) AS n FROM audit.people")] == [1]


async def exported(site: StorageSite, after_seal: int = 0) -> list[str]:
    async with site.user("olga", Role.OPERATOR) as olga:
        call = olga.audit.ExportAuditEvents(audit_pb2.ExportAuditEventsRequest(after_seal=after_seal))
        return [line async for answer in call for line in answer.lines]


async def test_an_export_can_be_checked_elsewhere(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**_QUICK)
    site.start()
    await append(site, 12)
    await all_sealed(site)

    lines = await exported(site)
    verdict = audit_chain.verify(lines)
    later = await exported(site, after_seal=1)

    assert (verdict.begins_after, verdict.events, verdict.unsealed) == (0, 12, 0)
    assert verdict.seal is not None
    part = audit_chain.verify(later, (verdict.seal.number, verdict.seal.seal), whole=False)
    assert part.begins_after == 1
    assert '"names": {"~' in lines[0]
    with pytest.raises(DataLoss, match="cut off"):
        audit_chain.verify(lines[:-1])
    with pytest.raises(DataLoss, match="event 3 is not what was written down"):
        audit_chain.verify([*lines[:2], lines[2].replace("SubmitJob", "DeleteJob"), *lines[3:]])
    async with site.user("olga", Role.OPERATOR) as olga, refused(InvalidArgument):
        await olga.audit.ExportAuditEvents(audit_pb2.ExportAuditEventsRequest(after_seal=99)).read()
    async with site.user("ada") as ada, refused(PermissionDenied):
        await ada.audit.ExportAuditEvents(audit_pb2.ExportAuditEventsRequest()).read()


async def test_old_batches_go_whole_and_the_chain_goes_on(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**_QUICK)
    site.start()
    await append(site, 11)
    await all_sealed(site)
    before = audit_chain.verify(await exported(site))
    site.stop()
    site.start(AUDIT__KEEP_DAYS=1e-6)

    async def removed() -> bool:
        return not await site.fetch("SELECT FROM audit.events WHERE sequence <= 11")

    await eventually(removed)
    site.stop()
    site.start()
    await append(site, 3)
    await all_sealed(site)

    after = audit_chain.verify(await exported(site))
    assert f"from after seal {after.begins_after}" in await check(site)
    assert before.seal is not None
    assert after.begins_after >= before.seal.number
    assert after.events >= 4
    # Of before, only retention can have removed it.
    noted = f"{before.seal.number}:{before.seal.seal.hex()}"
    assert "holds from after" in await check(site, noted)
    await damage(site, "DELETE FROM audit.events WHERE method LIKE '%Retention'")
    assert "is broken" in await check(site)


async def test_filters_orders_and_pages(people: People) -> None:
    ada, bob, olga = people.user(), people.user("bob"), people.user("olga", Role.OPERATOR)
    mine, name = people.name("ada"), people.name("d")
    for number in range(3):
        await ada.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset_id=f"{name}-{number}"))
    await bob.datasets.CreateDataset(datasets_pb2.CreateDatasetRequest(dataset_id=f"{name}-bob"))

    async def listed(stubs: Any, filter: str, **more: Any) -> audit_pb2.ListAuditEventsResponse:
        return await stubs.audit.ListAuditEvents(audit_pb2.ListAuditEventsRequest(filter=filter, **more))

    found = (await listed(olga, f'subject = "{mine}"')).events
    assert [item.resource for item in found] == [dataset_name(f"{name}-{number}") for number in (2, 1, 0)]
    assert {item.subject for item in found} == {mine}
    rising = await listed(olga, f'subject = "{mine}"', order_by="sequence", page_size=2)
    rest = await listed(
        olga, f'subject = "{mine}"', order_by="sequence", page_size=2, page_token=rising.next_page_token
    )
    assert [*rising.events, *rest.events] == list(reversed(found))
    assert not rest.next_page_token
    oldest = found[-1]
    since = oldest.time.ToDatetime().isoformat() + "Z"
    for terms, count in (
        (f'resource : "{name}" AND method : "CreateDataset"', 4),
        (f'resource : "{name}" AND subject != "{mine}"', 1),
        (f'subject = "{mine}" AND time >= "{since}"', 3),
        (f'subject = "{mine}" AND time < "{since}"', 0),
        (f'subject = "{mine}" AND outcome = "NOT_FOUND"', 0),
        (f'subject = "{mine}" AND request_id = "{oldest.request_id}"', 1),
        (f'subject = "{mine}" AND trace_id = "{oldest.trace_id}"', 1),
    ):
        assert len((await listed(olga, terms)).events) == count, terms
    # Others see what they did themselves.
    assert {item.subject for item in (await listed(bob, f'resource : "{name}"')).events} == {
        people.name("bob")
    }
    for wrong in ("time > yesterday", "etag = x", "subject"):
        async with refused(InvalidArgument):
            await listed(olga, wrong)
    async with refused(InvalidArgument):
        await listed(olga, "", order_by="time")


async def test_reads_are_written_down_when_the_service_ends(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**_QUICK)
    site.start()
    async with site.user("ada") as ada:
        for _ in range(3):
            await ada.datasets.ListDatasets(datasets_pb2.ListDatasetsRequest())
        async with refused(NotFound):
            await ada.datasets.GetDataset(datasets_pb2.GetDatasetRequest(name=dataset_name("none")))
    site.stop()

    rows = await site.fetch("SELECT method, resource, outcome, count FROM audit.events ORDER BY method")
    # The minute may have turned meanwhile.
    counts = {(row["method"].rpartition("/")[2], row["resource"], row["outcome"]): 0 for row in rows}
    for row in rows:
        counts[row["method"].rpartition("/")[2], row["resource"], row["outcome"]] += row["count"]
    assert counts == {
        ("ListDatasets", "", "OK"): 3,
        ("GetDataset", dataset_name("none"), "NOT_FOUND"): 1,
    }


async def test_a_log_of_before_is_taken_over(own_storage: Callable[..., StorageSite]) -> None:
    site = own_storage(**_QUICK)
    assert site.run("migrate", "--down-to", "0003").returncode == 0
    for sequence, resource in ((1, "users/ada/apiKeys/1"), (2, "projects/default/datasets/d")):
        await site.fetch(
            "INSERT INTO audit.events VALUES ($1, gen_random_uuid(), now(), 'storage', 'ada', 'user', '',"
            " '/guidehall.x/Y', $2, 'OK', '', '', '', 1, '\\x00')",
            sequence,
            resource,
        )
    assert site.run("migrate").returncode == 0
    site.start()
    await all_sealed(site)

    assert "holds from its beginning: 2 events" in await check(site)
    assert await site.fetch("SELECT FROM audit.events WHERE resource LIKE '%ada%' OR subject = 'ada'") == []
    async with site.user("ada") as ada:
        listed = await ada.audit.ListAuditEvents(audit_pb2.ListAuditEventsRequest())
    assert [event.resource for event in listed.events][-1] == "users/ada/apiKeys/1"
    site.stop()
    assert site.run("migrate", "--down-to", "0003").returncode == 0
    rows = await site.fetch(
        "SELECT subject, resource FROM audit.events WHERE sequence <= 2 ORDER BY sequence"
    )
    assert [tuple(row) for row in rows] == [
        ("ada", "users/ada/apiKeys/1"),
        ("ada", "projects/default/datasets/d"),
    ]
