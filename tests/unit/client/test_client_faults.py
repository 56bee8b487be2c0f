"""What the client makes of connections that break, against a gRPC server that breaks them on purpose.

The real services answer it in the integration tests; none of those fails at the third message when told to.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest

from guidehall.client import AsyncClient, Client, JobState, Timeouts
from guidehall.client.errors import DataLoss, DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from guidehall.contracts.datasets.v1 import datasets_pb2, datasets_pb2_grpc
from guidehall.contracts.jobs.v1 import jobs_pb2, jobs_pb2_grpc
from guidehall.contracts.workers.v1 import workers_pb2_grpc

JOB = "projects/default/jobs/0a1b2c3d-0000-4000-8000-000000000000"
RESULT = "projects/default/results/0a1b2c3d-0000-4000-8000-000000000000"
HASTY = Timeouts(
    call_seconds=10, watch_seconds=10, reconnect_seconds=5, first_pause_seconds=0.01, last_pause_seconds=0.02
)
CONTENT = bytes(range(256)) * 40


@dataclass
class Peer(
    jobs_pb2_grpc.JobsServiceServicer,
    datasets_pb2_grpc.DatasetsServiceServicer,
    workers_pb2_grpc.PoolsServiceServicer,
):
    """One job with ten events, one dataset, and a script of how each stream in turn ends early."""

    # For each stream: how many messages it gives before it ends with this status. Later ones play no tricks.
    breaks: list[tuple[int, grpc.StatusCode]] = field(default_factory=list)
    events: int = 10
    final: jobs_pb2.JobState = jobs_pb2.JOB_STATE_SUCCEEDED
    asked_after: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=lambda: [JOB])
    page_sizes: list[int] = field(default_factory=list)
    digest: str = hashlib.sha256(CONTENT).hexdigest()
    filename: str = "curve.dat"
    chunk_bytes: int = 1000
    uploads: list[bytes] = field(default_factory=list)
    # Whether a watch stays open after its events, and what tells that its reader has gone.
    holds_on: bool = False
    answers_after: Event | None = None
    # How often it is away when it is asked for a job.
    absences: int = 0
    left: Event = field(default_factory=Event)
    upload_ids: set[str] = field(default_factory=set)
    credentials: int = 0

    def CreateWorkerCredential(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        assert request.parent
        self.credentials += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "away, after it was made")

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> jobs_pb2.Job:  # noqa: N802
        if self.absences > 0:
            self.absences -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        if self.answers_after is not None:
            self.answers_after.wait(30)
        return jobs_pb2.Job(name=request.name, state=self.final, last_seq=self.events, result=RESULT)

    def ListJobs(self, request: Any, _: grpc.ServicerContext) -> jobs_pb2.ListJobsResponse:  # noqa: N802
        self.page_sizes.append(request.page_size)
        start = int(request.page_token or 0)
        page = self.jobs[start : start + 3]
        token = str(start + 3) if start + 3 < len(self.jobs) else ""
        return jobs_pb2.ListJobsResponse(
            jobs=[jobs_pb2.Job(name=name) for name in page], next_page_token=token
        )

    def WatchJob(self, request: Any, context: grpc.ServicerContext) -> Iterator[jobs_pb2.JobEvent]:  # noqa: N802
        self.asked_after.append(request.after_seq)
        context.add_callback(self.left.set)
        yield from self._broken(map(self._event, range(request.after_seq + 1, self.events + 1)), context)
        if self.holds_on:
            self.left.wait(30)

    def _event(self, seq: int) -> jobs_pb2.JobEvent:
        event = jobs_pb2.JobEvent(job=JOB, seq=seq)
        if seq < self.events:
            event.log_line.line = f"line {seq}"
        else:
            event.published.result = RESULT
        return event

    def DownloadDatasetVersion(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.asked_after.append(request.offset_bytes)
        yield from self._broken(self._pieces(request.offset_bytes), context)

    def _pieces(self, offset: int) -> Iterator[Any]:
        head = datasets_pb2.DownloadDatasetVersionResponse()
        head.header.filename = self.filename
        head.header.object.sha256 = self.digest
        head.header.object.size_bytes = len(CONTENT)
        yield head
        for start in range(offset, len(CONTENT), self.chunk_bytes):
            piece = datasets_pb2.DownloadDatasetVersionResponse()
            piece.chunk.offset_bytes = start
            piece.chunk.data = CONTENT[start : start + self.chunk_bytes]
            yield piece

    def UploadDatasetVersion(self, requests: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        received = b""
        for request in self._broken(requests, context):
            if request.WhichOneof("message") == "header":
                self.upload_ids.add(request.header.request_id)
            elif request.WhichOneof("message") == "chunk":
                assert request.chunk.offset_bytes == len(received)
                received += request.chunk.data
            else:
                assert request.end.sha256 == hashlib.sha256(received).hexdigest()
        self.uploads.append(received)
        return datasets_pb2.DatasetVersion(version=1)

    def _broken(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        if not self.breaks:
            yield from messages
            return
        left, code = self.breaks.pop(0)
        for _, message in zip(range(left), messages, strict=False):
            yield message
        if code is not grpc.StatusCode.OK:
            context.abort(code, "broken on purpose")


@dataclass(frozen=True)
class Caller:
    """Either client, asked in the same way."""

    asyncio: bool
    target: str
    timeouts: Timeouts = HASTY

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What one method answers."""
        if not self.asyncio:
            with self._client(Client) as client:
                return getattr(client, method)(*args, **kwargs)

        async def ask() -> Any:
            async with self._client(AsyncClient) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(ask())

    def items(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Everything that one method gives to who iterates."""
        if not self.asyncio:
            with self._client(Client) as client:
                return list(getattr(client, method)(*args, **kwargs))

        async def ask() -> list[Any]:
            async with self._client(AsyncClient) as client:
                return [item async for item in getattr(client, method)(*args, **kwargs)]

        return asyncio.run(ask())

    def _client(self, kind: type[Any]) -> Any:
        return kind({"trainer": self.target, "storage": self.target}, timeout=self.timeouts)


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture(params=["blocking", "asyncio"])
def caller(request: pytest.FixtureRequest, peer: Peer) -> Iterator[Caller]:
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    jobs_pb2_grpc.add_JobsServiceServicer_to_server(peer, server)
    datasets_pb2_grpc.add_DatasetsServiceServicer_to_server(peer, server)
    workers_pb2_grpc.add_PoolsServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Caller(request.param == "asyncio", f"127.0.0.1:{port}")
    server.stop(None).wait()


def test_watch_gives_each_event_once_whatever_breaks(peer: Peer, caller: Caller) -> None:
    peer.breaks = [
        (3, grpc.StatusCode.UNAVAILABLE),
        (0, grpc.StatusCode.UNAVAILABLE),
        (2, grpc.StatusCode.OK),
        (1, grpc.StatusCode.CANCELLED),
    ]

    events = caller.items("watch", JOB)

    assert [event.seq for event in events] == list(range(1, 11))
    assert peer.asked_after == [0, 3, 3, 5, 6]


def test_watch_goes_on_after_its_stream_has_lived_long_enough(peer: Peer, caller: Caller) -> None:
    peer.breaks = [(4, grpc.StatusCode.DEADLINE_EXCEEDED)]

    assert [event.seq for event in caller.items("watch", JOB)] == list(range(1, 11))


def test_watch_starts_after_the_given_event(peer: Peer, caller: Caller) -> None:
    assert [event.seq for event in caller.items("watch", JOB, after_seq=8)] == [9, 10]


def test_watch_of_a_job_that_is_over_ends(peer: Peer, caller: Caller) -> None:
    assert caller.items("watch", JOB, after_seq=10) == []


def test_watch_gives_up_when_nothing_comes_back(peer: Peer, caller: Caller) -> None:
    peer.breaks = [(0, grpc.StatusCode.UNAVAILABLE)] * 1000
    impatient = replace(caller, timeouts=replace(HASTY, reconnect_seconds=0.2))

    with pytest.raises(Unavailable):
        impatient.items("watch", JOB)


def test_watch_raises_what_will_not_pass(peer: Peer, caller: Caller) -> None:
    peer.breaks = [(2, grpc.StatusCode.NOT_FOUND)]

    with pytest.raises(NotFound):
        caller.items("watch", JOB)


def test_wait_answers_with_the_job_when_it_is_over(peer: Peer, caller: Caller) -> None:
    peer.breaks = [(0, grpc.StatusCode.UNAVAILABLE)]

    assert caller.call("wait", JOB).state is JobState.SUCCEEDED


def test_wait_outlasts_a_service_that_is_away(peer: Peer, caller: Caller) -> None:
    # More than the channel repeats by itself.
    peer.absences = 6

    assert caller.call("wait", JOB).state is JobState.SUCCEEDED


def test_wait_ends_at_its_deadline(peer: Peer, caller: Caller) -> None:
    peer.final = jobs_pb2.JOB_STATE_RUNNING
    peer.breaks = [(0, grpc.StatusCode.OK)] * 10_000

    with pytest.raises(DeadlineExceeded) as caught:
        caller.call("wait", JOB, timeout=0.3)

    assert caught.value.reason == "JOB_NOT_OVER"


def test_leaving_a_watch_early_ends_its_stream(peer: Peer, caller: Caller) -> None:
    peer.holds_on, peer.events = True, 3
    # The last event would end it otherwise.
    peer.breaks = [(2, grpc.StatusCode.OK)]

    async def leave() -> None:
        async with AsyncClient({"trainer": caller.target}) as client:
            async with aclosing(client.watch(JOB)) as events:
                assert (await anext(events)).seq == 1
            assert await asyncio.to_thread(peer.left.wait, 10)

    if caller.asyncio:
        asyncio.run(leave())
        return
    with Client({"trainer": caller.target}) as client:
        for event in client.watch(JOB):
            assert event.seq == 1
            break
        assert peer.left.wait(10)


def test_pages_are_asked_for_as_needed(peer: Peer, caller: Caller) -> None:
    peer.jobs = [f"projects/default/jobs/{number:08x}-0000-4000-8000-000000000000" for number in range(8)]

    assert [job.name for job in caller.items("jobs")] == peer.jobs
    peer.page_sizes.clear()
    assert len(caller.items("jobs", limit=4)) == 4
    assert peer.page_sizes == [4, 1]
    assert caller.items("jobs", limit=0) == []


def test_short_id_names_the_one_job_that_begins_like_it(peer: Peer, caller: Caller) -> None:
    peer.jobs = [
        "projects/default/jobs/aaaa0000-0000-4000-8000-000000000000",
        "projects/default/jobs/aaaa1111-0000-4000-8000-000000000000",
        "projects/default/jobs/bbbb1111-0000-4000-8000-000000000000",
        "projects/default/jobs/cccc1111-0000-4000-8000-000000000000",
    ]

    assert caller.call("job", "CCCC").name == peer.jobs[3]
    with pytest.raises(InvalidArgument, match="2 jobs begin with aaaa"):
        caller.call("job", "aaaa")
    with pytest.raises(NotFound, match="dddd"):
        caller.call("job", "dddd")


@pytest.mark.parametrize("text", ["abc", "", "film", "projects/default/models/x", "a b c d"])
def test_what_cannot_be_a_job_is_not_looked_for(peer: Peer, caller: Caller, text: str) -> None:
    with pytest.raises(InvalidArgument):
        caller.call("job", text)

    assert peer.page_sizes == []


def test_download_goes_on_where_it_broke(peer: Peer, caller: Caller, tmp_path: Path) -> None:
    peer.breaks = [(4, grpc.StatusCode.UNAVAILABLE), (1, grpc.StatusCode.UNAVAILABLE)]

    path = caller.call("download_dataset", "curves@1", tmp_path)

    assert path == tmp_path / "curve.dat"
    assert path.read_bytes() == CONTENT
    assert peer.asked_after == [0, 3000, 3000]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda peer: setattr(peer, "digest", "0" * 64),
        lambda peer: setattr(peer, "breaks", [(2, grpc.StatusCode.OK)]),
        lambda peer: setattr(peer, "breaks", [(0, grpc.StatusCode.OK)]),
        lambda peer: setattr(peer, "filename", "../evil"),
        lambda peer: setattr(peer, "filename", ".bashrc"),
        lambda peer: setattr(peer, "filename", ""),
    ],
)
def test_what_arrives_damaged_leaves_nothing_behind(
    peer: Peer, caller: Caller, tmp_path: Path, spoil: Callable[[Peer], None]
) -> None:
    spoil(peer)
    folder = tmp_path / "in"
    folder.mkdir()

    with pytest.raises(DataLoss):
        caller.call("download_dataset", "curves", folder)

    assert list(tmp_path.rglob("*")) == [folder]


def test_download_needs_a_place_to_go(peer: Peer, caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="path"):
        caller.call("download_dataset", "curves", tmp_path / "missing" / "file")

    assert peer.asked_after == []


@pytest.mark.parametrize("content", [b"", CONTENT, b"x" * (2 << 20)])
@pytest.mark.parametrize("from_file", [False, True])
def test_upload_starts_again_under_the_same_request_id(
    peer: Peer, caller: Caller, tmp_path: Path, content: bytes, from_file: bool
) -> None:
    peer.breaks = [(1, grpc.StatusCode.UNAVAILABLE)]
    source: Any = content
    if from_file:
        source = tmp_path / "source.dat"
        source.write_bytes(content)

    version = caller.call("upload_dataset", source, "curves")

    assert version.version == 1
    assert peer.uploads == [content]
    assert len(peer.upload_ids) == 1


def test_a_credential_is_not_made_twice(peer: Peer, caller: Caller) -> None:
    with pytest.raises(Unavailable):
        caller.call("create_worker_credential", "cpu")

    assert peer.credentials == 1


def test_upload_of_a_file_that_cannot_be_read_says_why(caller: Caller) -> None:
    # It can be opened, and nothing is where it begins.
    with pytest.raises(OSError, match="Input/output error"):
        caller.call("upload_dataset", Path("/proc/self/mem"), "curves")


def test_upload_of_a_missing_file_is_refused(caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"gone\.dat"):
        caller.call("upload_dataset", tmp_path / "gone.dat", "curves")


def test_service_that_does_not_answer_in_time_is_named(peer: Peer, caller: Caller) -> None:
    peer.answers_after = Event()

    with pytest.raises(DeadlineExceeded, match=f"trainer service at {caller.target} did not answer"):
        replace(caller, timeouts=Timeouts(call_seconds=0.2)).call("job", JOB)

    peer.answers_after.set()


def test_closed_client_says_so(caller: Caller) -> None:
    with Client({"trainer": caller.target}) as client:
        client.job(JOB)

    with pytest.raises(RuntimeError, match="closed"):
        client.job(JOB)
