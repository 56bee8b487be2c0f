"""A result and all of its artifacts as one ZIP archive, made while it is sent."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import grpc.aio

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.results.v1 import results_pb2
from services.gateway.backends import Backends
from services.gateway.messages import to_json

MEDIA_TYPE = "application/zip"


async def parts(backends: Backends, result: results_pb2.Result) -> AsyncIterator[bytes]:
    """The archive, piece by piece: `result.json`, `job.json` while the job is kept, and `artifacts/…`.

    Nothing is compressed, so that no piece is held longer than it takes to pass it on.

    Raises:
        grpc.aio.AioRpcError: something could not be read; what was given so far is no whole archive.
    """
    sent = _Sent()
    # Dates of ZIP archives are in no time zone, begin in 1980 and have steps of two seconds.
    date = result.create_time.ToDatetime(UTC)
    with zipfile.ZipFile(sent, "w") as archive:
        archive.writestr(_entry("result.json", date), json.dumps(to_json(result), indent=2))
        job = await _job(backends, result.job)
        if job is not None:
            archive.writestr(_entry("job.json", date), json.dumps(to_json(job), indent=2))
        yield sent.taken()
        for artifact in result.artifacts:
            request = results_pb2.DownloadArtifactRequest(name=artifact.name)
            call = backends.results.DownloadArtifact(request, timeout=backends.timeouts.transfer)
            try:
                with archive.open(
                    _entry(f"artifacts/{artifact.filename}", date), "w", force_zip64=True
                ) as entry:
                    async for message in call:
                        entry.write(message.chunk.data)
                        yield sent.taken()
            finally:
                call.cancel()
    yield sent.taken()


async def _job(backends: Backends, name: str) -> jobs_pb2.Job | None:
    try:
        job: jobs_pb2.Job = await backends.jobs.GetJob(
            jobs_pb2.GetJobRequest(name=name), timeout=backends.timeouts.call
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise
    return job


def _entry(name: str, date: datetime) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, date.timetuple()[:6])


class _Sent(io.RawIOBase):
    """Where the archive is written to: keeps what was written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: object) -> int:
        self._pieces.append(bytes(memoryview(piece)))  # type: ignore[arg-type]
        return len(self._pieces[-1])

    def taken(self) -> bytes:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
