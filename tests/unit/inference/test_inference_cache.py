"""What is kept on disk, and what storage says of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from guidehall.contracts.models.v1 import models_pb2
from services.inference.cache import DiskCache
from services.inference.source import _published
from services.inference.versions import Published


def _version(weights: bytes, number: int) -> Published:
    message = models_pb2.ModelVersion(
        name=f"projects/default/models/film/versions/{number}", version=number, manifest_sha256="0"
    )
    message.weights.sha256, message.weights.size_bytes = hashlib.sha256(weights).hexdigest(), len(weights)
    message.manifest.update({"format_version": 1, "unit": "µm", "values": [1, 0.5]})
    (published,) = _published([message], {})
    return published


def _keep(cache: DiskCache, weights: bytes, number: int) -> Published:
    published = _version(weights, number)
    incoming = cache.create(published)
    incoming.write(weights)
    incoming.finish()
    cache.remember(published)
    return published


def test_a_manifest_is_as_short_as_storage_measured_it() -> None:
    manifest = _version(b"w", 1).manifest.decode()
    assert sorted(manifest) == sorted('{"format_version":1,"unit":"µm","values":[1,0.5]}')


def test_a_description_goes_with_its_weights(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=10)
    for number in (1, 2, 3):
        last = _keep(cache, b"%d" % number * 8, number)

    assert [published.name for published in cache.remembered()] == [last.name]
    assert len(list((tmp_path / "versions").iterdir())) == 1
