"""The answers of the client: plain frozen values; times are aware datetimes in UTC, arrays are numpy's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class JobState(str, Enum):
    """Where a job is. SUCCEEDED, FAILED and CANCELLED are final."""

    QUEUED = "QUEUED"
    LEASED = "LEASED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    # A state that this client is too old to know.
    UNKNOWN = "UNKNOWN"

    @property
    def final(self) -> bool:
        """Whether a job in this state will never change again."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Priority(str, Enum):
    """Which of two waiting jobs goes first."""

    LOW = "LOW"
    NORMAL = "NORMAL"
    HIGH = "HIGH"


class Stage(str, Enum):
    """How far an analysis goes: the network's answer as it is, or a bounded least-squares fit after it."""

    NETWORK = "network"
    REFINED = "refined"


class Resolution(str, Enum):
    """What the numbers in a curve's `dq` are: one standard deviation, or the full width at half maximum."""

    SIGMA = "sigma"
    FWHM = "fwhm"


class BeamSide(str, Enum):
    """The medium through which the beam comes: the first of the stack (fronting) or the last (backing)."""

    FRONTING = "fronting"
    BACKING = "backing"


class QUnit(str, Enum):
    """Unit of a curve's `q` and `dq`."""

    INVERSE_ANGSTROM = "1/angstrom"
    INVERSE_NANOMETRE = "1/nm"


@dataclass(frozen=True)
class FieldViolation:
    """A field that was wrong, and why."""

    field: str
    description: str


@dataclass(frozen=True)
class Failure:
    """Why a job failed."""

    code: str
    reason: str
    message: str
    violations: tuple[FieldViolation, ...]
    # Finds the full report in the service's log.
    error_id: str


@dataclass(frozen=True)
class Progress:
    """How far the work has come, and the numbers that belong to this step, such as `train_loss`."""

    phase: str
    step: int
    total: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class CheckpointCommitted:
    """The job would go on from here on another worker."""

    ordinal: int
    step: int


@dataclass(frozen=True)
class Estimate:
    """A time that is not certain: the middle, and an interval that holds it in 80 of 100 cases."""

    time: datetime | None
    earliest_time: datetime | None
    latest_time: datetime | None


@dataclass(frozen=True)
class Submission:
    """A job to be submitted, with the arguments of `Client.submit`."""

    pipeline: str
    params: Mapping[str, Any] | None = None
    name: str = ""
    seed: int = 0
    inputs: Mapping[str, str] | None = None
    pool: str = ""
    device_class: str = ""
    priority: str = "NORMAL"
    group: str = ""
    labels: Mapping[str, str] | None = None
    timeout: int | float | str = 0
    max_attempts: int = 0
    memory_hint_bytes: int = 0
    notify: Sequence[str] = ()


@dataclass(frozen=True)
class Sweep:
    """One job for each combination of the axes' values, the last axis fastest; or, zipped, for the first
    values together, then the second ones, and so on.

    `axes` has the values by the path of a parameter, such as "training.steps" or
    "stack.layers[1].thickness".
    """

    template: Submission
    axes: Mapping[str, Sequence[Any]]
    zipped: bool = False


@dataclass(frozen=True)
class Job:
    """A job as it was when the server answered."""

    name: str
    display_name: str
    pipeline: str
    pipeline_version: str
    params: dict[str, Any]
    params_digest: str
    seed: int
    inputs: dict[str, str]
    pool: str
    priority: str
    state: JobState
    # RUN, PAUSE, STOP or CANCEL: what the owner wants.
    desired_state: str
    # Why it ended, such as COMPLETED or USER_ERROR; empty while it has not.
    end_reason: str
    error: Failure | None
    owner: str
    labels: dict[str, str]
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    update_time: datetime | None
    attempt_count: int
    max_attempts: int
    timeout_seconds: int
    progress: Progress | None
    last_log_line: str
    # Name of the result once it can be read.
    result: str
    # Places in front of it while queued, 0 = next; -1 when not queued.
    queue_position: int
    worker: str
    # Sequence number of its newest event.
    last_seq: int
    # How many leases were granted.
    lease_epoch: int
    # The job that this one repeats, if any.
    retried_from: str
    # Of a job that failed or was cancelled: the newest job that repeats it, if any.
    latest_retry: str
    etag: str
    memory_hint_bytes: int
    # The group among the owner's whose share and quota it counts against.
    group: str
    # As asked for; its pool may be of a lower tier.
    device_class: str
    # Web addresses and e-mail addresses that are told when it has ended.
    notifications: tuple[str, ...]
    # Name of the batch of the jobs that were submitted together.
    batch: str
    # When it will start, while queued, and end, while it has not; None where nothing is known.
    start_estimate: Estimate | None
    end_estimate: Estimate | None
    # The newest one that is kept: a retry can go on from it.
    checkpoint: CheckpointCommitted | None

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def status(self) -> str:
        """One word for people: the state, or what is on its way, such as "cancelling"."""
        if self.state is JobState.SUCCEEDED and self.end_reason == "STOPPED_EARLY":
            return "stopped"
        if self.state.final or self.desired_state in ("", "RUN"):
            return self.state.value.lower()
        if self.desired_state == "PAUSE":
            return "paused" if self.state is JobState.PAUSED else "pausing"
        return {"STOP": "stopping", "CANCEL": "cancelling"}.get(self.desired_state, self.state.value.lower())


@dataclass(frozen=True)
class Attempt:
    """One lease of a job."""

    lease_epoch: int
    # Its number among those that count, from 1.
    number: int
    worker: str
    lease_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    # Why it ended, such as LEASE_LOST or PAUSED; empty while it has not.
    end_reason: str
    error: Failure | None
    # The newest checkpoint that it committed.
    checkpoint: CheckpointCommitted | None


@dataclass(frozen=True)
class Batch:
    """Jobs that were submitted together; the name is empty when they were only checked."""

    name: str
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Purge:
    """How many jobs were deleted, or would be, and how many were left alone."""

    deleted: int
    # Held by a worker.
    skipped_running: int
    # Queued or paused.
    skipped_queued: int
    # Succeeded, with a result that is still being published.
    skipped_publishing: int


@dataclass(frozen=True)
class StateChange:
    """The job went to another state, or its owner wants something else."""

    state: JobState
    desired_state: str
    end_reason: str
    error: Failure | None
    worker: str


@dataclass(frozen=True)
class LogLine:
    """A line that the pipeline wrote."""

    line: str


@dataclass(frozen=True)
class Preview:
    """A look at the work while it runs."""

    kind: str
    document: dict[str, Any]


@dataclass(frozen=True)
class ResultPublished:
    """Result and models can be read now: the last event of a job that succeeded."""

    result: str
    model_versions: tuple[str, ...]


EventPayload = StateChange | Progress | LogLine | Preview | CheckpointCommitted | ResultPublished


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job; `seq` counts 1, 2, 3, ... within it."""

    job: str
    seq: int
    time: datetime | None
    # state_change, progress, log_line, preview, checkpoint or published; "unknown", without a payload, for
    # what this client is too old to know.
    kind: str
    payload: EventPayload | None

    @property
    def last(self) -> bool:
        """Whether no event can follow this one."""
        if isinstance(self.payload, StateChange):
            return self.payload.state in (JobState.FAILED, JobState.CANCELLED)
        return isinstance(self.payload, ResultPublished)


@dataclass(frozen=True)
class Pipeline:
    """Something that jobs can run, with the JSON Schema of its parameters and of its result."""

    name: str
    version: str
    title: str
    description: str
    params_schema: dict[str, Any]
    result_schema: dict[str, Any]
    live_workers: int


@dataclass(frozen=True)
class StoredObject:
    """Bytes at rest: their SHA-256 in hexadecimal, size and type."""

    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True)
class Artifact:
    """A file that a job left."""

    name: str
    filename: str
    object: StoredObject


@dataclass(frozen=True)
class Result:
    """What a job that succeeded left: one document and its files."""

    name: str
    job: str
    pipeline: str
    document: dict[str, Any]
    artifacts: tuple[Artifact, ...]
    model_versions: tuple[str, ...]
    owner: str
    create_time: datetime | None


@dataclass(frozen=True)
class TensorSpec:
    """Shape and meaning of a named tensor; -1 marks a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    unit: str
    description: str


@dataclass(frozen=True)
class Model:
    """A named series of immutable model versions."""

    name: str
    display_name: str
    owner: str
    labels: dict[str, str]
    latest_version: int
    create_time: datetime | None
    update_time: datetime | None
    # Versions by the tags that point to them.
    tags: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class ModelVersion:
    """One immutable version of a model, with its whole manifest."""

    name: str
    version: int
    architecture: str
    manifest: dict[str, Any]
    manifest_sha256: str
    weights: StoredObject
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metrics: dict[str, float]
    # Job that trained it; empty for an import.
    job: str
    owner: str
    labels: dict[str, str]
    create_time: datetime | None
    # Of its model, those that point to it.
    tags: tuple[str, ...] = ()
    # Kept in memory where models are served.
    pinned: bool = False


@dataclass(frozen=True)
class Dataset:
    """A named series of immutable dataset versions."""

    name: str
    display_name: str
    description: str
    owner: str
    labels: dict[str, str]
    latest_version: int
    create_time: datetime | None
    update_time: datetime | None

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class DatasetVersion:
    """One immutable version of a dataset."""

    name: str
    version: int
    object: StoredObject
    filename: str
    # What the content turned out to be: format, dtype, shape.
    content_info: dict[str, Any]
    labels: dict[str, str]
    owner: str
    create_time: datetime | None


@dataclass(frozen=True)
class Launcher:
    """What starts workers for a pool that has work and none, and how that went last."""

    # none, command, webhook or kubernetes.
    kind: str
    target: str
    last_launch_time: datetime | None
    last_error: str
    # Why none is launched just now; empty when one would be.
    waiting_for: str


@dataclass(frozen=True)
class Pool:
    """A queue of jobs and the workers that serve it."""

    name: str
    queued_jobs: int
    running_jobs: int
    paused_jobs: int
    live_workers: int
    idle_workers: int
    oldest_wait_seconds: float
    # Such as cpu or H200; empty for none.
    device_class: str
    default_timeout_seconds: int
    launcher: Launcher | None

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Worker:
    """A process that runs jobs, and what its machine can do."""

    name: str
    pool: str
    hostname: str
    # IDLE, BUSY, DRAINING, LOST or QUARANTINED.
    state: str
    device_class: str
    device_name: str
    device_memory_bytes: int
    cpu_cores: int
    memory_bytes: int
    # Pipelines that it offers, as "name version".
    pipelines: tuple[str, ...]
    software: dict[str, str]
    # Name of the job that it runs now; empty when idle.
    job: str
    register_time: datetime | None
    last_seen_time: datetime | None
    # Why it is quarantined.
    quarantine_reason: str

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class WorkerCredential:
    """What workers of a pool prove themselves with."""

    name: str
    note: str
    create_time: datetime | None
    expire_time: datetime | None
    # None while it counts.
    revoke_time: datetime | None

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def pool(self) -> str:
        """The pool whose workers it is for."""
        return self.name.split("/")[1]


@dataclass(frozen=True)
class NewWorkerCredential:
    """A credential just made, with its token, which no service can tell again."""

    credential: WorkerCredential
    token: str = field(repr=False)


@dataclass(frozen=True)
class AuditEvent:
    """One thing that somebody did or tried, or `count` like ones within a minute."""

    # Place in the log, from 1.
    sequence: int
    time: datetime | None
    service: str
    subject: str
    kind: str
    actor: str
    method: str
    resource: str
    # A code such as "OK" or "PERMISSION_DENIED".
    outcome: str
    etag_before: str
    etag_after: str
    job: str
    request_id: str
    trace_id: str
    count: int
    # Number of the batch that it is sealed in; 0 while that is open.
    seal: int


@dataclass(frozen=True)
class Erasure:
    """The erasure of what is kept about a user."""

    name: str
    # Empty when it is done.
    user: str
    # What the audit log calls the person.
    pseudonym: str
    hand_over_to: str
    steps_done: tuple[str, ...]
    steps_left: tuple[str, ...]
    create_time: datetime | None
    # When anything but the account goes.
    due_time: datetime | None
    done_time: datetime | None


@dataclass(frozen=True)
class ApiKey:
    """What programs call by in a user's name."""

    name: str
    display_name: str
    roles: tuple[str, ...]
    # Its first characters, to recognise it by.
    prefix: str
    create_time: datetime | None
    # None for ever.
    expire_time: datetime | None
    # None while it counts.
    revoke_time: datetime | None
    last_use_time: datetime | None
    # Such as "jobs:write"; none is all that the roles allow.
    scopes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.name.split("/")[1]


@dataclass(frozen=True)
class NewApiKey:
    """An API key just made, with its secret, which no service can tell again."""

    api_key: ApiKey
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """Who the server takes the caller for."""

    subject: str
    # USER, GUEST, SERVICE, WORKER or JOB.
    kind: str
    roles: tuple[str, ...]
    groups: tuple[str, ...]
    default_project: str
    actor: str


@dataclass(frozen=True)
class Group:
    """People and programs that work on the same things."""

    name: str
    display_name: str
    description: str
    # The caller's own: READER, MEMBER, MANAGER; empty where it is no member.
    role: str

    @property
    def id(self) -> str:
        """Last part of the name."""
        return self.name.rpartition("/")[2]

    @property
    def project(self) -> str:
        """The project that belongs to it."""
        return f"group.{self.id}"


@dataclass(frozen=True)
class GroupMember:
    """Somebody in a group: READER, MEMBER or MANAGER."""

    user: str
    role: str


@dataclass(frozen=True)
class ServiceAccount:
    """The account of a program; it comes by API keys alone."""

    name: str
    display_name: str
    # "groups/{group}".
    group: str
    roles: tuple[str, ...]
    disabled: bool


@dataclass(frozen=True)
class Usage:
    """What the caller has stored, in bytes, and the caller's jobs. What was deleted counts as long as it is
    kept.

    Attributes:
        artifact_bytes: files of results.
        log_bytes: logs of jobs without a result.
        allowed_bytes: uploads beyond it are refused; 0 is no limit.
        queued_jobs: paused ones too.
        ended_jobs: those that have not been deleted.
    """

    dataset_bytes: int
    model_bytes: int
    artifact_bytes: int
    log_bytes: int
    total_bytes: int
    allowed_bytes: int
    queued_jobs: int
    running_jobs: int
    ended_jobs: int


@dataclass(frozen=True, eq=False)
class Prediction:
    """Tensors that a model answered with, and exactly which model it was."""

    model_version: str
    model_digest: str
    outputs: dict[str, NDArray[Any]]


def _no_points() -> FloatArray:
    return np.empty(0)


def _no_mask() -> NDArray[np.bool_]:
    return np.empty(0, dtype=np.bool_)


@dataclass(frozen=True)
class Medium:
    """A semi-infinite medium; scattering length density in 1e-6/angstrom^2."""

    sld: float
    isld: float = 0.0
    material: str = ""


@dataclass(frozen=True)
class AngleSegment:
    """Points of a curve, from `first_point` to before `end_point`, that were measured at one setting of the
    instrument. `relative_dq` is dq/q of these points, by the curve's `dq_convention`."""

    first_point: int
    end_point: int
    angle_degrees: float = 0.0
    # None where they are not known.
    scale: float | None = None
    background: float | None = None
    relative_dq: float | None = None


@dataclass(frozen=True)
class MeasurementInfo:
    """Where a curve comes from, as text."""

    sample: str = ""
    run: str = ""
    proposal: str = ""
    instrument: str = ""
    facility: str = ""
    start_time: str = ""
    other: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Curve:
    """A reflectivity curve: `q` ascending, `r`, one standard deviation `dr` of `r`, and the resolution `dq`.

    `dr` and `dq` may be empty. `dq`, or `relative_dq` where there is no `dq`, needs `dq_convention`. `mask`,
    where it is not empty, leaves out the points where it is true.
    """

    q: FloatArray
    r: FloatArray
    dr: FloatArray = field(default_factory=_no_points)
    dq: FloatArray = field(default_factory=_no_points)
    q_unit: QUnit = QUnit.INVERSE_ANGSTROM
    dq_convention: Resolution | None = None
    relative_dq: float | None = None
    # None takes the side that the model was trained for.
    beam_side: BeamSide | None = None
    mask: NDArray[np.bool_] = field(default_factory=_no_mask)
    # The media beside the film, where they are known; compared with those of the model.
    fronting: Medium | None = None
    backing: Medium | None = None
    segments: Sequence[AngleSegment] = ()
    measurement: MeasurementInfo | None = None


@dataclass(frozen=True, eq=False)
class Band:
    """Central credible bands of a curve or a profile of N points: [N] each, in its unit."""

    lower_68: FloatArray
    upper_68: FloatArray
    lower_95: FloatArray
    upper_95: FloatArray


@dataclass(frozen=True, eq=False)
class Profile:
    """Scattering length density in 1e-6/angstrom^2 against depth in angstrom, fronting medium first."""

    z: FloatArray
    sld: FloatArray
    isld: FloatArray
    # Of `sld`; None where the posterior was not sampled.
    sld_band: Band | None = None


@dataclass(frozen=True, eq=False)
class Simulation:
    """A calculated curve and the profile that it belongs to."""

    curve: Curve
    profile: Profile
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """One parameter of the layer model, the prior's bounds, and one standard deviation where estimated."""

    name: str
    value: float
    unit: str
    lower: float
    upper: float
    standard_error: float | None
    # Lower and upper end of the central credible intervals; None where the posterior was not sampled.
    interval_68: tuple[float, float] | None = None
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Explanation:
    """A film that the curve allows, by the names of its parameters: a local minimum of chi-square.

    Without dr, chi-square is the sum of squared differences of log10 R over 0.01.
    """

    values: dict[str, float]
    chi_square: float


@dataclass(frozen=True)
class Note:
    """Something that a reader of the answer must know, with a stable code for programs."""

    code: str
    message: str


@dataclass(frozen=True, eq=False)
class Analysis:
    """Physics from one measured curve."""

    model_version: str
    model_digest: str
    stage: Stage
    parameters: tuple[Parameter, ...]
    profile: Profile
    # Reflectivity of the answer at the points that were used.
    calculated: Curve
    # Indices of those points in the curve that was sent.
    used_points: NDArray[np.int64]
    # (measured - calculated) / dr at those points; empty without dr.
    normalized_residuals: FloatArray
    # None without dr.
    chi_square: float | None
    reduced_chi_square: float | None
    # Mean of |log10 measured - log10 calculated| over used points where both are positive and, with error
    # bars, the measured one is above three of them; NaN without any.
    mean_abs_log10_error: float
    notes: tuple[Note, ...]
    analysis_version: str
    # Of a refined answer: the films that the curve allows, best first; the first is the one in `parameters`.
    explanations: tuple[Explanation, ...] = ()
    # Of `calculated`; None where the posterior was not sampled.
    calculated_band: Band | None = None
    # How many independent samples those of the posterior are worth; None where it was not sampled.
    effective_samples: float | None = None
