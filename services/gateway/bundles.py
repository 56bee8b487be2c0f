"""A result and all of its artifacts as one ZIP archive, made while it is sent."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.contracts.results.v1 import results_pb2
from services.gateway.backends import Backends
from services.gateway.messages import to_json

MEDIA_TYPE = "application/zip"


class Bundle:
    """The archive of a result: `result.json`, `job.json` where the caller may read the job, `artifacts/…`."""

    def __init__(self, backends: Backends, result: results_pb2.Result, job: jobs_pb2.Job | None) -> None:
        self._backends = backends
        self._result = result
        self._job = job
        self._call: Any = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The archive, piece by piece.

        Nothing is compressed, so that no piece is held longer than it takes to pass it on.

        Raises:
            grpc.aio.AioRpcError: a file could not be read; what was given so far is no whole archive.
        """
        sent, result = _Sent(), self._result
        # Dates of ZIP archives are in no time zone, begin in 1980 and have steps of two seconds.
        date = result.create_time.ToDatetime(UTC)
        with zipfile.ZipFile(sent, "w") as archive:
            archive.writestr(_entry("result.json", date), json.dumps(to_json(result), indent=2))
            if self._job is not None:
                archive.writestr(_entry("job.json", date), json.dumps(to_json(self._job), indent=2))
            yield sent.taken()
            for artifact in result.artifacts:
                request = results_pb2.DownloadArtifactRequest(name=artifact.name)
                self._call = self._backends.results.DownloadArtifact(
                    request, timeout=self._backends.timeouts.transfer
                )
                entry = _entry(f"artifacts/{artifact.filename}", date)
                with archive.open(entry, "w", force_zip64=True) as target:
                    async for message in self._call:
                        target.write(message.chunk.data)
                        yield sent.taken()
        yield sent.taken()

    def cancel(self) -> None:
        """Ends what is being read."""
        if self._call is not None:
            self._call.cancel()


async def bundle(backends: Backends, result: results_pb2.Result) -> Bundle:
    """The archive of a result, once it is known what goes in.

    Raises:
        grpc.aio.AioRpcError: the job could not be asked for now.
    """
    return Bundle(backends, result, await _job(backends, result.job))


async def _job(backends: Backends, name: str) -> jobs_pb2.Job | None:
    """The job; None when it is deleted, or not for the caller, as it is for a key with other scopes."""
    try:
        job: jobs_pb2.Job = await backends.jobs.GetJob(
            jobs_pb2.GetJobRequest(name=name), timeout=backends.timeouts.call
        )
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
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
