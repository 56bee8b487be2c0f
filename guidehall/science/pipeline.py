"""The plug-in contract: what a science gives the platform and what the platform gives a science.

A science is one folder that exposes `SCIENCE` (see `registry.py`): pipelines, which are run, and
architectures, whose models are served. A pipeline is a function `run(params, context) -> result`; everything
it may do to the world is in `Context`. It runs as well in a plain script, with `LocalContext`. Importing this
module never imports torch.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from guidehall.science.manifest import (
    Example,
    ExampleArray,
    InvalidModel,
    Manifest,
    Provenance,
    TensorSpec,
    sha256,
    software_versions,
)

__all__ = [
    "Architecture",
    "Checkpoint",
    "Context",
    "Desired",
    "Example",
    "ExampleArray",
    "InvalidModel",
    "JobCancelled",
    "JobPaused",
    "LocalContext",
    "Manifest",
    "Pipeline",
    "Predictor",
    "Provenance",
    "SaveRhythm",
    "TensorSpec",
    "UserError",
    "check_tensors",
    "field_errors",
    "first_fault",
    "obey",
    "preview_text",
    "raise_if_cancelled",
    "refuse_field",
    "sha256",
    "shown",
    "software_versions",
]

_log = logging.getLogger(__name__)

# Names become file names and parts of resource names.
ARTIFACT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PREVIEW_KIND = re.compile(r"[a-z][a-z0-9_.-]{0,63}")

MAX_PREVIEW_BYTES = 64 << 10
CHECKPOINT_SECONDS = 60.0
# Of the time of a run, what making and writing checkpoints may take: with the worker's part, which takes them
# to storage beside the run, it shall stay below 3 %.
_SAVING_SHARE = 0.01


class Desired(enum.Enum):
    """What the owner of a job wants it to do."""

    RUN = "run"
    # Save a checkpoint, then raise JobPaused.
    PAUSE = "pause"
    # End early: publish the best so far and return as usual.
    STOP = "stop"
    # End now and keep nothing: raise JobCancelled.
    CANCEL = "cancel"


class JobCancelled(Exception):
    """Raised by a pipeline that leaves because it was cancelled."""


class JobPaused(Exception):
    """Raised by a pipeline that leaves after it saved a checkpoint, to be run again later."""


class UserError(Exception):
    """The parameters or the data are wrong: trying again would fail again.

    Args:
        field: path of the field to blame, such as "stack.layers[1].thickness" or "curve.q[3]".
        value: what it was.
        allowed: what it may be, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: got {str(value)[:120]}; {allowed}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, object, str]]:
        # Without this, one raised in another process could not be read here.
        return type(self), (self.field, self.value, self.allowed)


class Checkpoint(Protocol):
    """Where a run keeps its state, so that another attempt goes on from there."""

    def load(self) -> bytes | None:
        """The newest state of an earlier attempt, or None."""
        ...

    def due(self) -> bool:
        """Whether it is time to save. Costs next to nothing: ask it at every step, or let `obey` do it."""
        ...

    def save(self, state: bytes) -> None:
        """Replaces the state. When it returns, the state is safe or on its way; a later one wins."""
        ...


class Context(Protocol):
    """All that a running pipeline may do to the world."""

    # "cpu" or "cuda:0": what torch.device takes.
    device: str
    # Every random draw comes from it; from 0 to 2^53 - 1.
    seed: int
    # Goes into the manifest of each model that is published.
    provenance: Provenance
    checkpoint: Checkpoint

    def progress(self, step: int, total: int, *, phase: str = "", **metrics: float) -> None:
        """Reports that `step` of `total` is done, with numbers such as train_loss. Cheap; call it often."""
        ...

    def log(self, line: str) -> None:
        """One line for people."""
        ...

    def desired(self) -> Desired:
        """What to do now. Costs next to nothing: ask it at every step."""
        ...

    def dataset(self, role: str) -> Path:
        """The pinned dataset version that the job has in this role: a local file, read-only.

        Raises:
            UserError: the job has no dataset in this role.
        """
        ...

    def preview(self, kind: str, document: Mapping[str, Any]) -> None:
        """Shows the work while it goes on, such as the present prediction for one validation curve.

        Some may be left out; the newest of a kind is always shown. Numbers that are not finite become null.

        Raises:
            ValueError: `kind` does not match `PREVIEW_KIND`, or the document is no JSON object of at most
                `MAX_PREVIEW_BYTES`.
        """
        ...

    def publish_model(self, name: str, weights: bytes | Path, manifest: Manifest) -> None:
        """Adds a version to the model `name`, visible once the job has succeeded.

        `weights` is a safetensors file.
        """
        ...

    def artifact(self, name: str, data: bytes | Path, media_type: str) -> None:
        """Adds a file to the result."""
        ...


@dataclass(frozen=True)
class Pipeline:
    """Something that can be run: its parameters, its result and where its code is."""

    # "<science>.<what it does>"
    name: str
    # Changes when the same parameters would give something else.
    version: str
    title: str
    params: type[BaseModel]
    result: type[BaseModel]
    # "package.module:function", imported only when it is run.
    entry: str
    description: str = ""
    device: Literal["any", "cpu", "gpu"] = "any"
    # Datasets that it reads: role -> what it has to be.
    datasets: Mapping[str, str] = field(default_factory=dict)
    # Of valid parameters, the roles that a job with them cannot do without.
    needs: Callable[[Any], Sequence[str]] = lambda params: ()  # noqa: ARG005
    # "package.module:function" from parameters to ones that need less memory and give the same but for
    # rounding, or None when there are none. Tried when memory did not suffice; must not import torch.
    smaller: str = ""

    def with_less_memory(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Parameters that need less memory; None when the pipeline knows none."""
        if not self.smaller:
            return None
        found: BaseModel | None = resolve(self.smaller)(self.params.model_validate(params))
        return None if found is None else found.model_dump(mode="json")

    def run(self, params: BaseModel | Mapping[str, Any], context: Context) -> BaseModel:
        """Runs it to its end.

        Raises:
            UserError: the parameters or the data are wrong.
            JobCancelled, JobPaused: it left because it was asked to.
        """
        if not isinstance(params, self.params):
            try:
                params = self.params.model_validate(params)
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]
                raise UserError(_path(fault["loc"]), fault["input"], fault["msg"]) from None
        result = resolve(self.entry)(params, context)
        if not isinstance(result, self.result):
            raise TypeError(f"{self.entry} returned {type(result).__name__}, not {self.result.__name__}")
        return result


@runtime_checkable
class Predictor(Protocol):
    """The serving half of a science: a loaded model. Its methods may be called from one thread at a time."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def load(cls, manifest: Manifest, weights: bytes, device: str = "cpu") -> Predictor:
        """Builds it from a manifest and a safetensors file.

        Raises:
            InvalidModel: they do not make a model of this architecture.
        """
        ...

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers a batch; names, types and shapes as in `inputs` and `outputs`.

        Raises:
            UserError: an input is missing or wrong.
        """
        ...


@dataclass(frozen=True)
class Architecture:
    """A kind of model that can be served. `key` ends with the version of what its weights mean."""

    # "<science>.<kind>/<version>"
    key: str
    # "package.module:Class" of a Predictor, imported only when a model is loaded.
    entry: str
    title: str = ""

    def predictor(self) -> type[Predictor]:
        """The class that loads models of this kind."""
        found: type[Predictor] = resolve(self.entry)
        return found


def resolve(entry: str) -> Any:
    """What "package.module:name" names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def obey(context: Context, state: Callable[[], bytes], *, changed: bool = True) -> bool:
    """What a step begins with: saves when it is time, and leaves when that is wanted.

    Args:
        state: gives what another attempt goes on from; called only when it is to be saved.
        changed: whether there is anything new to save.

    Returns:
        Whether to end early and keep the best so far.

    Raises:
        JobCancelled, JobPaused: to be passed on; paused with a checkpoint.
    """
    desired = context.desired()
    if desired is Desired.CANCEL:
        raise JobCancelled
    if desired is Desired.PAUSE or (changed and context.checkpoint.due()):
        context.checkpoint.save(state())
    if desired is Desired.PAUSE:
        raise JobPaused
    return desired is Desired.STOP


def raise_if_cancelled(context: Context) -> None:
    """For pipelines that can neither pause nor stop early: call it at every step."""
    if context.desired() is Desired.CANCEL:
        raise JobCancelled


def check_tensors(specs: Sequence[TensorSpec], tensors: Mapping[str, np.ndarray]) -> None:
    """Compares named arrays with their specifications.

    Raises:
        UserError: one is missing, unknown, or has another type or shape.
    """
    known = {spec.name: spec for spec in specs}
    for name in tensors.keys() - known.keys():
        raise UserError("inputs", name, f"the tensors are {', '.join(known)}")
    for name, spec in known.items():
        if name not in tensors:
            if not spec.optional:
                raise UserError(f"inputs.{name}", "nothing", "this tensor is required")
            continue
        array = tensors[name]
        if not spec.admits(array):
            got = f"{array.dtype} {list(array.shape)}"
            raise UserError(f"inputs.{name}", got, f"must be {spec.datatype} {list(spec.shape)}")


def field_errors(error: ValidationError, prefix: str = "") -> list[tuple[str, str]]:
    """(path, reason) of each fault, such as ("params.stack.layers[1].thickness", "Input should be ...")."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        # A whole object says nothing that its path does not say.
        whole = isinstance(fault["input"], dict | list | BaseModel)
        value = "" if whole else f"got {str(fault['input'])[:120]}; "
        faults.append((_path(fault["loc"], prefix), value + fault["msg"]))
    return faults


def first_fault(error: ValidationError, prefix: str = "") -> UserError:
    """The first fault, as an error that names the field, what it was and what is allowed."""
    faults = error.errors(include_url=False, include_context=False)
    # A name that was mistyped is also missed under its right one, of which there would be nothing to show.
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    if unknown:
        *parent, name = loc = unknown[0]["loc"]
        missed = [str(f["loc"][-1]) for f in faults if f["type"] == "missing" and [*f["loc"][:-1]] == parent]
        near = difflib.get_close_matches(str(name), missed, 1)
        return UserError(
            _path(loc, prefix),
            "this",
            f"there is no such field; did you mean {near[0]}?" if near else "no such field",
        )
    fault = faults[0]
    whole = isinstance(fault["input"], dict | list | BaseModel)
    return UserError(_path(fault["loc"], prefix), "this" if whole else fault["input"], fault["msg"])


def _path(parts: Sequence[str | int], prefix: str = "") -> str:
    path = prefix
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def refuse_field(model: BaseModel, path: Sequence[str | int], value: object, allowed: str) -> NoReturn:
    """Lets a cross-field validator blame the field at `path` below `model` instead of the whole model.

    Raises:
        ValidationError: always; pydantic puts the path of `model` itself in front.
    """
    # Braces would be read as a template.
    kind = PydanticCustomError("not_allowed", "{allowed}", {"allowed": allowed})
    details = InitErrorDetails(type=kind, loc=tuple(path), input=value)
    raise ValidationError.from_exception_data(type(model).__name__, [details])


def shown(how: Literal["table", "columns", "sections", "pairs"], title: str) -> Any:
    """A field of a result that holds objects, and how the command line shows it to people.

    Args:
        how: of a list: "table": each object is a line. "columns": each is a column, to compare them.
            "sections": each is shown like a result of its own. Of a single object: "sections", too, or
            "pairs": the names and values in it.
        title: above it.
    """
    return Field(title=title, json_schema_extra={"show": how})


class SaveRhythm:
    """When a run saves its state: every `seconds`, or more rarely where saving takes long.

    What saving takes is the time from `due` to `saved`. It stays below one hundredth of the whole.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._next = clock() + seconds
        self._began: float | None = None

    def due(self) -> bool:
        """Whether it is time to save."""
        now = self._clock()
        self._began = now if now >= self._next else None
        return self._began is not None

    def saved(self) -> None:
        """The state is saved."""
        now = self._clock()
        took = 0.0 if self._began is None else now - self._began
        self._next = now + max(self._seconds, took / _SAVING_SHARE)


def preview_text(kind: str, document: Mapping[str, Any]) -> str:
    """A preview as JSON, with null for numbers that are not finite.

    Raises:
        ValueError: see `Context.preview`.
    """
    if not PREVIEW_KIND.fullmatch(kind):
        raise ValueError(f"preview kind {kind!r} does not match {PREVIEW_KIND.pattern}")
    try:
        text = json.dumps(_finite(dict(document)), allow_nan=False)
    except TypeError as error:
        raise ValueError(f"preview {kind}: {error}") from None
    if len(text) > MAX_PREVIEW_BYTES:
        raise ValueError(f"preview {kind} has {len(text)} bytes; at most {MAX_PREVIEW_BYTES} are allowed")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _FileCheckpoint:
    def __init__(self, path: Path, rhythm: SaveRhythm) -> None:
        self._path, self._rhythm = path, rhythm

    def load(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def due(self) -> bool:
        return self._rhythm.due()

    def save(self, state: bytes) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(state)
        part.replace(self._path)
        self._rhythm.saved()


class LocalContext:
    """A context for plain scripts: files in a folder instead of a platform.

    Writes `artifacts/<name>`, `models/<name>/{model.safetensors,manifest.json}` and, every
    `checkpoint_seconds`, `checkpoint`. A second run with the same folder goes on from the checkpoint.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        seed: int = 0,
        device: str = "cpu",
        datasets: Mapping[str, Path] | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.device = device
        self.provenance = Provenance(seed=seed, software=software_versions())
        self.checkpoint: Checkpoint = _FileCheckpoint(
            self.directory / "checkpoint", SaveRhythm(checkpoint_seconds)
        )
        self.wanted = Desired.RUN
        self.reports: list[dict[str, Any]] = []
        # Name of each artifact and its media type.
        self.artifacts: dict[str, str] = {}
        # The newest of each kind.
        self.previews: dict[str, dict[str, Any]] = {}
        self._datasets = dict(datasets or {})

    def progress(self, step: int, total: int, *, phase: str = "", **metrics: float) -> None:
        self.reports.append({"step": step, "total": total, "phase": phase, **metrics})
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        _log.info("%s %d/%d  %s", phase, step, total, numbers)

    def log(self, line: str) -> None:
        _log.info("%s", line)

    def desired(self) -> Desired:
        return self.wanted

    def dataset(self, role: str) -> Path:
        if role not in self._datasets:
            raise UserError(f"inputs.{role}", "no dataset", "the job needs a dataset in this role")
        return self._datasets[role]

    def preview(self, kind: str, document: Mapping[str, Any]) -> None:
        self.previews[kind] = json.loads(preview_text(kind, document))

    def publish_model(self, name: str, weights: bytes | Path, manifest: Manifest) -> None:
        if not MODEL_NAME.fullmatch(name):
            raise UserError("model_name", name, f"must match {MODEL_NAME.pattern}")
        self._write(f"models/{name}/model.safetensors", weights)
        self._write(f"models/{name}/manifest.json", manifest.to_json())

    def artifact(self, name: str, data: bytes | Path, media_type: str) -> None:
        if not ARTIFACT_NAME.fullmatch(name):
            raise ValueError(f"artifact name {name!r} does not match {ARTIFACT_NAME.pattern}")
        self.artifacts[name] = media_type
        self._write(f"artifacts/{name}", data)

    def _write(self, name: str, data: bytes | Path) -> None:
        target = self.directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if isinstance(data, bytes) else data.read_bytes())
