"""Weights and descriptions on disk: what was fetched once need not be fetched again, even with storage away.

`weights/<sha256>` holds safetensors files by their digest, `versions/<that digest>-<sha256 of the name>.json`
what storage said of a version. Files appear whole or not at all. Blocking calls: run them in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from guidehall.science.pipeline import InvalidModel
from services.inference.versions import ModelKey, Published

_log = logging.getLogger(__name__)

_PART = ".part"


class IncomingWeights:
    """A file that is being written; its digest and length are checked before it becomes part of the cache."""

    def __init__(self, published: Published, file: IO[bytes], target: Path) -> None:
        self._published, self._file, self._target = published, file, target
        self._digest = hashlib.sha256()
        self._written = 0

    def write(self, data: bytes) -> None:
        """Appends `data`.

        Raises:
            InvalidModel: more bytes than announced.
        """
        self._written += len(data)
        if self._written > self._published.weights_bytes:
            raise InvalidModel(f"weights: more than the announced {self._published.weights_bytes} bytes came")
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Checks the whole and keeps it.

        Raises:
            InvalidModel: not the announced length or digest.
        """
        published = self._published
        if self._written != published.weights_bytes:
            raise InvalidModel(f"weights: {self._written} of {published.weights_bytes} bytes came")
        digest = self._digest.hexdigest()
        if digest != published.weights_sha256:
            raise InvalidModel(f"weights: SHA-256 is {digest}; announced was {published.weights_sha256}")
        self._file.flush()
        os.fsync(self._file.fileno())
        Path(self._file.name).replace(self._target)

    def close(self) -> None:
        """Removes what was not finished."""
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)


class DiskCache:
    """The cache below a folder that is this process's alone, kept under a number of bytes.

    What was used longest ago is dropped first.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._weights, self._versions = folder / "weights", folder / "versions"
        self._max_bytes = max_bytes
        for part in (self._weights, self._versions):
            part.mkdir(parents=True, exist_ok=True)
        for left_over in (*self._weights.glob(f"*{_PART}"), *self._versions.glob(f"*{_PART}")):
            left_over.unlink(missing_ok=True)

    def read(self, published: Published) -> bytes | None:
        """The weights of a version if they are here and whole; damaged ones are removed."""
        path = self._weights / published.weights_sha256
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != published.weights_sha256:
            _log.warning(
                "cached weights are damaged and will be fetched again", extra={"model": published.name}
            )
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return data

    def create(self, published: Published) -> IncomingWeights:
        """Begins to write the weights of a version, after making room for them.

        Raises:
            InvalidModel: they can never fit.
        """
        wanted = published.weights_bytes
        if wanted > self._max_bytes:
            raise InvalidModel(f"weights: {wanted} bytes; the server's disk cache holds {self._max_bytes}")
        self._make_room(wanted)
        file = tempfile.NamedTemporaryFile(dir=self._weights, suffix=_PART, delete=False)  # noqa: SIM115
        return IncomingWeights(published, file, self._weights / published.weights_sha256)

    def remember(self, published: Published) -> None:
        """Keeps the description of a version whose weights are here; it goes with them."""
        document = {
            "project": published.key.project,
            "model": published.key.model,
            "version": published.version,
            "owner": published.owner,
            "architecture": published.architecture,
            "manifest": published.manifest.decode(),
            "manifest_sha256": published.manifest_sha256,
            "weights_sha256": published.weights_sha256,
            "weights_bytes": published.weights_bytes,
            "published_at": published.published_at,
        }
        target = self._description(published)
        with tempfile.NamedTemporaryFile("w", dir=self._versions, suffix=_PART, delete=False) as file:
            json.dump(document, file)
        Path(file.name).replace(target)

    def forget(self, published: Published) -> None:
        """Drops the description of a version; weights without one are dropped when room is needed."""
        self._description(published).unlink(missing_ok=True)

    def remembered(self) -> Iterator[Published]:
        """Versions that can be served from here alone."""
        for path in self._versions.glob("*.json"):
            try:
                published = _published(json.loads(path.read_text()))
            except (OSError, ValueError, KeyError, TypeError):
                _log.warning("a description in the cache cannot be read and is dropped")
                path.unlink(missing_ok=True)
                continue
            if (self._weights / published.weights_sha256).exists():
                yield published
            else:
                path.unlink(missing_ok=True)

    def _description(self, published: Published) -> Path:
        name = hashlib.sha256(published.name.encode()).hexdigest()
        return self._versions / f"{published.weights_sha256}-{name}.json"

    def _make_room(self, wanted: int) -> None:
        files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in self._weights.iterdir())
        excess = sum(size for _, size, _ in files) + wanted - self._max_bytes
        for _, size, path in files:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            for description in self._versions.glob(f"{path.name}-*.json"):
                description.unlink(missing_ok=True)
            excess -= size


def _published(document: dict[str, object]) -> Published:
    fields = dict(document)
    key = ModelKey(str(fields.pop("project")), str(fields.pop("model")))
    manifest = str(fields.pop("manifest")).encode()
    return Published(key=key, manifest=manifest, **fields)  # type: ignore[arg-type]
