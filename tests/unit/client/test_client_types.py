"""What answers say of themselves, and what an older client makes of newer words."""

from __future__ import annotations

import pytest

from guidehall.client import JobState, LogLine, _decode
from guidehall.contracts.jobs.v1 import jobs_pb2


@pytest.mark.parametrize(
    ("state", "desired", "reason", "status"),
    [
        ("QUEUED", "RUN", "UNSPECIFIED", "queued"),
        ("RUNNING", "RUN", "UNSPECIFIED", "running"),
        ("RUNNING", "PAUSE", "UNSPECIFIED", "pausing"),
        ("PAUSED", "PAUSE", "UNSPECIFIED", "paused"),
        ("RUNNING", "STOP", "UNSPECIFIED", "stopping"),
        ("RUNNING", "CANCEL", "UNSPECIFIED", "cancelling"),
        ("CANCELLED", "CANCEL", "CANCELLED_BY_USER", "cancelled"),
        ("SUCCEEDED", "STOP", "STOPPED_EARLY", "stopped"),
        ("SUCCEEDED", "RUN", "COMPLETED", "succeeded"),
    ],
)
def test_status_tells_what_is_on_its_way(state: str, desired: str, reason: str, status: str) -> None:
    message = jobs_pb2.Job(
        state=jobs_pb2.JobState.Value(f"JOB_STATE_{state}"),
        desired_state=jobs_pb2.DesiredState.Value(f"DESIRED_STATE_{desired}"),
        end_reason=jobs_pb2.EndReason.Value(f"END_REASON_{reason}"),
    )

    assert _decode.job(message).status == status


def test_every_state_of_the_contract_has_its_word() -> None:
    for name, number in jobs_pb2.JobState.items():
        state = _decode.job(jobs_pb2.Job(state=number)).state
        assert state is (JobState.UNKNOWN if number == 0 else JobState(name.removeprefix("JOB_STATE_")))


def test_newer_words_are_unknown_and_no_error() -> None:
    job = _decode.job(jobs_pb2.Job(state=99, end_reason=99, priority=99))  # type: ignore[arg-type]
    event = _decode.job_event(jobs_pb2.JobEvent(seq=1))

    assert (job.state, job.end_reason, job.priority) == (JobState.UNKNOWN, "", "")
    assert (event.kind, event.payload, event.last) == ("unknown", None, False)


@pytest.mark.parametrize(
    ("payload", "last"),
    [
        ({"state_change": jobs_pb2.StateChange(state=jobs_pb2.JOB_STATE_SUCCEEDED)}, False),
        ({"state_change": jobs_pb2.StateChange(state=jobs_pb2.JOB_STATE_FAILED)}, True),
        ({"state_change": jobs_pb2.StateChange(state=jobs_pb2.JOB_STATE_CANCELLED)}, True),
        ({"published": jobs_pb2.ResultPublished(result="r")}, True),
        ({"log_line": jobs_pb2.LogLine(line="x")}, False),
    ],
)
def test_last_event_is_known(payload: dict[str, object], last: bool) -> None:
    assert _decode.job_event(jobs_pb2.JobEvent(seq=1, **payload)).last is last  # type: ignore[arg-type]


def test_answers_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        LogLine("x").line = "y"  # type: ignore[misc]
