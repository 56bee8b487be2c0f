"""The plug-in contract: what a science gives the platform and what the platform gives a science.

A science is one folder that exposes `SCIENCE` (see `registry.py`): pipelines, which are run, and
architectures, whose models are served. A pipeline is a function `run(params, context) -> result`; everything
it may do to the world is in `Context`. It runs as well in a plain script, with `LocalContext`. Importing this
module never imports torch.
"""

from __future__ import annotations

import enum
import importlib
import logging
import re
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
    "TensorSpec",
    "UserError",
    "check_tensors",
    "field_errors",
    "first_fault",
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
    fault = error.errors(include_url=False, include_context=False)[0]
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


class _FileCheckpoint:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def save(self, state: bytes) -> None:
        part = self._path.with_suffix(".part")
        part.write_bytes(state)
        part.replace(self._path)


class LocalContext:
    """A context for plain scripts: files in a folder instead of a platform.

    Writes `artifacts/<name>`, `models/<name>/{model.safetensors,manifest.json}` and `checkpoint`. A second
    run with the same folder goes on from the checkpoint.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        seed: int = 0,
        device: str = "cpu",
        datasets: Mapping[str, Path] | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.seed = seed
        self.device = device
        self.provenance = Provenance(seed=seed, software=software_versions())
        self.checkpoint: Checkpoint = _FileCheckpoint(self.directory / "checkpoint")
        self.wanted = Desired.RUN
        self.reports: list[dict[str, Any]] = []
        # Name of each artifact and its media type.
        self.artifacts: dict[str, str] = {}
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
