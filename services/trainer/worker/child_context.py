"""What a pipeline sees of the platform: a `Context` over the link to the worker."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from guidehall.core.faults import fault_point
from guidehall.science.pipeline import (
    ARTIFACT_NAME,
    MODEL_NAME,
    Checkpoint,
    Desired,
    Manifest,
    Provenance,
    SaveRhythm,
    UserError,
    preview_text,
    software_versions,
)
from services.trainer.worker.child_link import Link
from services.trainer.worker.messages import (
    MAX_LINE_CHARACTERS,
    MAX_METRICS,
    MAX_PHASE_CHARACTERS,
    ArtifactWritten,
    CheckpointSaved,
    FileRef,
    Logged,
    ModelWritten,
    Previewed,
    Progressed,
    Start,
    readable,
)

# Outputs share one set of names; these two are the platform's.
RESERVED_NAMES = frozenset({"result", "job.log"})

_PIECE_BYTES = 1 << 20


class Files:
    """Numbered files in the job's folder, each written once and then left to the worker."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._numbers = itertools.count(1)

    def write(self, prefix: str, data: bytes | Path, field: str) -> FileRef:
        """Keeps a copy of `data`.

        Raises:
            UserError: more than the limit; `field` is what to blame.
        """
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if self._max_bytes and size > self._max_bytes:
            raise UserError(field, f"{size} bytes", f"at most {self._max_bytes} bytes are allowed")
        name = f"{prefix}-{next(self._numbers)}"
        digest, written = hashlib.sha256(), 0
        with (self._folder / name).open("xb") as target:
            for piece in _pieces(data):
                target.write(piece)
                digest.update(piece)
                written += len(piece)
        return FileRef(name=name, sha256=digest.hexdigest(), size_bytes=written)


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as source:
        while piece := source.read(_PIECE_BYTES):
            yield piece


class _Checkpoint:
    def __init__(self, context: ChildContext, file: str | None, seconds: float) -> None:
        self._context = context
        self._rhythm = SaveRhythm(seconds)
        self._file = None if file is None else Path(file)

    def load(self) -> bytes | None:
        return None if self._file is None else self._file.read_bytes()

    def due(self) -> bool:
        return self._rhythm.due()

    def save(self, state: bytes) -> None:
        self._context.save_checkpoint(state)
        self._rhythm.saved()


class ChildContext:
    """The context of one run in a child process."""

    def __init__(self, start: Start, link: Link) -> None:
        self.device = start.device
        self.seed = start.seed
        self.provenance = Provenance(
            job=start.job,
            dataset_versions=start.dataset_versions,
            seed=start.seed,
            software=software_versions(),
        )
        self.checkpoint: Checkpoint = _Checkpoint(self, start.checkpoint_file, start.checkpoint_seconds)
        self._link = link
        self._files = Files(Path(start.folder), start.limits.file_bytes)
        self._datasets = start.dataset_files
        self._names: dict[str, str] = {}
        self._step = 0

    def progress(self, step: int, total: int, *, phase: str = "", **metrics: float) -> None:
        """See `Context`. A metric that is not finite is left out: no document may hold one."""
        self._step = int(step)
        numbers = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        kept = dict(itertools.islice(numbers.items(), MAX_METRICS))
        shown = readable(phase, MAX_PHASE_CHARACTERS)
        self._link.report(Progressed(phase=shown, step=self._step, total=int(total), metrics=kept))

    def log(self, line: str) -> None:
        """See `Context`."""
        for part in str(line).splitlines() or [""]:
            self._link.send(Logged(line=readable(part, MAX_LINE_CHARACTERS)))

    def preview(self, kind: str, document: Mapping[str, Any]) -> None:
        """See `Context`."""
        self._link.show(Previewed(sort=kind, document=preview_text(kind, document)))

    def desired(self) -> Desired:
        """See `Context`."""
        return self._link.desired

    def dataset(self, role: str) -> Path:
        """See `Context`."""
        if role not in self._datasets:
            raise UserError(f"inputs.{role}", "no dataset", "the job needs a dataset in this role")
        return Path(self._datasets[role])

    def publish_model(self, name: str, weights: bytes | Path, manifest: Manifest) -> None:
        """See `Context`."""
        if not MODEL_NAME.fullmatch(name):
            raise UserError("model_name", name, f"must match {MODEL_NAME.pattern}")
        self._claim(name, "model")
        file = self._files.write("model", weights, f"models.{name}")
        fault_point("child.model.written")
        # As JSON says it: what storage will hold and a server will read.
        document = manifest.model_dump(mode="json")
        self._link.send(ModelWritten(name=name, manifest=document, file=file))

    def artifact(self, name: str, data: bytes | Path, media_type: str) -> None:
        """See `Context`."""
        if not ARTIFACT_NAME.fullmatch(name):
            raise ValueError(f"artifact name {name!r} does not match {ARTIFACT_NAME.pattern}")
        self._claim(name, "artifact")
        file = self._files.write("artifact", data, f"artifacts.{name}")
        fault_point("child.artifact.written")
        self._link.send(ArtifactWritten(name=name, media_type=media_type, file=file))

    def save_checkpoint(self, state: bytes) -> None:
        """Keeps `state` for another attempt."""
        file = self._files.write("checkpoint", state, "checkpoint")
        fault_point("child.checkpoint.written")
        self._link.send(CheckpointSaved(step=self._step, file=file))

    def _claim(self, name: str, kind: str) -> None:
        if name in RESERVED_NAMES or self._names.setdefault(name, kind) != kind:
            raise ValueError(f"{kind} name {name!r} is taken by another output")
