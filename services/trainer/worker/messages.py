"""What a worker and its child say to each other."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from guidehall.science.pipeline import (
    ARTIFACT_NAME,
    CHECKPOINT_SECONDS,
    MAX_PREVIEW_BYTES,
    MODEL_NAME,
    PREVIEW_KIND,
    Desired,
)
from services.trainer.worker.frames import FrameError

MAX_LINE_CHARACTERS = 4000
MAX_METRICS = 64
MAX_FIELD_CHARACTERS = 1024
MAX_TRACEBACK_CHARACTERS = 64 << 10
MAX_PHASE_CHARACTERS = 128


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(_Message):
    """What a child may use; 0 means no limit."""

    memory_bytes: int = Field(0, ge=0)
    cpu_seconds: int = Field(0, ge=0)
    # Of one file.
    file_bytes: int = Field(0, ge=0)


class Start(_Message):
    """Run this. Sent first, and again only to a child that said it is fit for another job."""

    kind: Literal["start"] = "start"
    job: str
    # Private to the job: its working directory, where its outputs go.
    folder: str
    pipeline: str
    params: dict[str, JsonValue]
    seed: int
    device: str
    # Dataset version names and local files, by role.
    dataset_versions: dict[str, str]
    dataset_files: dict[str, str]
    # File with the newest state of an earlier attempt.
    checkpoint_file: str | None = None
    desired: Desired = Desired.RUN
    limits: Limits = Limits()
    progress_seconds: float = Field(gt=0)
    preview_seconds: float = Field(5.0, gt=0)
    checkpoint_seconds: float = Field(CHECKPOINT_SECONDS, gt=0)


class SelfTest(_Message):
    """Find out whether the device calculates, and nothing else."""

    kind: Literal["self_test"] = "self_test"
    device: str


class DesiredChanged(_Message):
    """The owner wants something else now."""

    kind: Literal["desired"] = "desired"
    desired: Desired


class FileRef(_Message):
    """A file in the job's folder that the child does not touch again."""

    name: str = Field(pattern=r"^[a-z]+-[0-9]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Started(_Message):
    """The pipeline's first line is about to run."""

    kind: Literal["started"] = "started"


class Progressed(_Message):
    """The newest step; earlier ones may have been left out."""

    kind: Literal["progress"] = "progress"
    phase: str = Field(max_length=MAX_PHASE_CHARACTERS)
    step: int
    total: int
    metrics: dict[str, float] = Field(max_length=MAX_METRICS)


class Logged(_Message):
    """One line for people."""

    kind: Literal["log"] = "log"
    line: str = Field(max_length=MAX_LINE_CHARACTERS)


class Previewed(_Message):
    """A look at the work; earlier ones of the same sort may have been left out."""

    kind: Literal["preview"] = "preview"
    sort: str = Field(pattern=f"^{PREVIEW_KIND.pattern}$")
    # A JSON object.
    document: str = Field(max_length=MAX_PREVIEW_BYTES)


class CheckpointSaved(_Message):
    """A state to go on from; replaces every earlier one."""

    kind: Literal["checkpoint"] = "checkpoint"
    step: int
    file: FileRef


class ArtifactWritten(_Message):
    """A file of the result; replaces an earlier one of the same name."""

    kind: Literal["artifact"] = "artifact"
    name: str = Field(pattern=f"^{ARTIFACT_NAME.pattern}$")
    media_type: str = Field(max_length=128)
    file: FileRef


class ModelWritten(_Message):
    """A model version to publish; replaces an earlier one of the same name."""

    kind: Literal["model"] = "model"
    name: str = Field(pattern=f"^{MODEL_NAME.pattern}$")
    manifest: dict[str, JsonValue]
    file: FileRef


class Succeeded(_Message):
    """The pipeline returned this document."""

    kind: Literal["succeeded"] = "succeeded"
    document: dict[str, JsonValue]
    # Whether the process can run another job: the pipeline left no thread and no process behind.
    fit_for_another: bool = False


class Left(_Message):
    """The pipeline left as it was asked to: JobCancelled or JobPaused."""

    kind: Literal["left"] = "left"
    because: Literal["cancelled", "paused"]


class Refused(_Message):
    """UserError: running it again would fail again."""

    kind: Literal["refused"] = "refused"
    field: str = Field(max_length=MAX_FIELD_CHARACTERS)
    description: str = Field(max_length=MAX_LINE_CHARACTERS)


class OutOfMemory(_Message):
    """There was not enough memory, of the machine or of the device."""

    kind: Literal["out_of_memory"] = "out_of_memory"


class Broke(_Message):
    """Any other exception. The traceback is for the worker's log alone."""

    kind: Literal["broke"] = "broke"
    traceback: str = Field(max_length=MAX_TRACEBACK_CHARACTERS)
    # What the device is to be blamed for, as far as one can tell; empty when there is nothing.
    device_fault: str = Field("", max_length=MAX_FIELD_CHARACTERS)


def readable(text: str, most_characters: int) -> str:
    """`text` without what JSON or PostgreSQL cannot hold (lone surrogates, NUL), cut to a length."""
    cut = text[:most_characters].encode(errors="replace").decode()
    return cut.replace("\0", "\N{REPLACEMENT CHARACTER}")


End = Succeeded | Left | Refused | OutOfMemory | Broke
FromChild = Started | Progressed | Logged | Previewed | CheckpointSaved | ArtifactWritten | ModelWritten | End
ToChild = Start | SelfTest | DesiredChanged

_FROM_CHILD: TypeAdapter[FromChild] = TypeAdapter(Annotated[FromChild, Field(discriminator="kind")])
_TO_CHILD: TypeAdapter[ToChild] = TypeAdapter(Annotated[ToChild, Field(discriminator="kind")])


def dump(message: FromChild | ToChild) -> bytes:
    """The payload of a frame."""
    return message.model_dump_json().encode()


def from_child(payload: bytes) -> FromChild:
    """Reads what a child sent.

    Raises:
        FrameError: it is none of the messages above.
    """
    return _parse(_FROM_CHILD, payload)


def to_child(payload: bytes) -> ToChild:
    """Reads what a worker sent.

    Raises:
        FrameError: it is none of the messages above.
    """
    return _parse(_TO_CHILD, payload)


_Kind = TypeVar("_Kind")


def _parse(adapter: TypeAdapter[_Kind], payload: bytes) -> _Kind:
    try:
        return adapter.validate_json(payload)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise FrameError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
