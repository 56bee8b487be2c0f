"""What is counted for the audit log, and that every rpc has its class."""

from __future__ import annotations

from collections.abc import Sequence

from guidehall.contracts.identity.v1 import audit_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.audit import CLASSES, Counts
from guidehall.core.auth import Principal
from guidehall.core.errors import Unavailable
from tests.rpcs import full_name, methods

_GET = "/guidehall.jobs.v1.JobsService/GetJob"
_SUBMIT = "/guidehall.jobs.v1.JobsService/SubmitJob"
_ADA = Principal("ada", "user")


def job(name: str) -> jobs_pb2.GetJobRequest:
    return jobs_pb2.GetJobRequest(name=f"projects/default/jobs/{name}")


class Log:
    """Takes events, or is away."""

    def __init__(self) -> None:
        self.events: list[audit_pb2.AuditEvent] = []
        self.away = False

    async def send(self, events: Sequence[audit_pb2.AuditEvent]) -> None:
        if self.away:
            raise Unavailable("storage does not answer")
        self.events += events


def test_every_rpc_of_every_service_has_a_class() -> None:
    assert {full_name(method) for method in methods()} == set(CLASSES)


async def test_reads_and_refusals_are_counted_by_caller_resource_and_outcome() -> None:
    log = Log()
    counts = Counts("trainer", log.send)
    for name in ("a", "a", "b"):
        counts.call(_ADA, _GET, job(name), "OK")
    counts.call(_ADA, _GET, job("a"), "NOT_FOUND")
    counts.call(_ADA, _SUBMIT, jobs_pb2.SubmitJobRequest(), "PERMISSION_DENIED")
    # Written down by itself, with what it changed.
    counts.call(_ADA, _SUBMIT, jobs_pb2.SubmitJobRequest(), "OK")
    counts.call(None, _GET, job("a"), "UNAUTHENTICATED")
    counts.call(Principal("gateway", "service"), _GET, job("a"), "OK")

    await counts.flush(everything=True)

    told = {(event.resource.rpartition("/")[2], event.outcome): event.count for event in log.events}
    assert told == {("a", "OK"): 2, ("b", "OK"): 1, ("a", "NOT_FOUND"): 1, ("", "PERMISSION_DENIED"): 1}
    assert {event.subject for event in log.events} == {"ada"}
    assert all(event.time.seconds % 60 == 0 for event in log.events)


async def test_the_minute_at_hand_stays_open() -> None:
    log = Log()
    counts = Counts("trainer", log.send)
    counts.call(_ADA, _GET, job("a"), "OK")

    await counts.flush()
    assert len(log.events) <= 1  # the minute may have turned just now
    await counts.flush(everything=True)

    assert sum(event.count for event in log.events) == 1


async def test_what_storage_does_not_take_is_sent_again_with_the_same_ids() -> None:
    log = Log()
    log.away = True
    counts = Counts("trainer", log.send)
    counts.call(_ADA, _GET, job("a"), "OK")
    await counts.flush(everything=True)
    counts.call(_ADA, _GET, job("a"), "OK")
    await counts.flush(everything=True)
    assert log.events == []
    log.away = False

    await counts.flush(everything=True)

    assert [event.count for event in log.events] == [1, 1]
    assert len({event.event_id for event in log.events}) == 2


async def test_memory_is_bounded_and_nothing_goes_uncounted() -> None:
    log = Log()
    counts = Counts("trainer", log.send, most=10)
    for number in range(1000):
        counts.call(Principal(f"user-{number % 100}", "user"), _GET, job(str(number)), "OK")

    await counts.flush(everything=True)

    assert len(log.events) <= 21
    assert sum(event.count for event in log.events) == 1000
