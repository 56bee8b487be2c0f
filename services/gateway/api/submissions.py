"""Jobs to be: one, many, a sweep, and a job once more."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.durations import ALLOWED, seconds_in
from guidehall.core.errors import InvalidArgument
from guidehall.core.names import JOB, LONGEST_DISPLAY_NAME
from services.gateway.api.common import INT64, BackendsDep, Body, Text, answer, resource, returns
from services.gateway.messages import enum_choices, enum_number, to_struct, to_values

router = APIRouter(tags=["jobs"])

_PRIORITY = jobs_pb2.JobPriority.DESCRIPTOR


def _seconds(value: object) -> int:
    try:
        if isinstance(value, (int, float, str)):
            return seconds_in(value)
    except InvalidArgument:
        pass
    raise ValueError(ALLOWED)


Seconds = Annotated[
    int,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}], "default": 0}),
]
Timeout = Annotated[Seconds, Field(description=f"Longest run: {ALLOWED}; 0 is the pool's default")]
RequestId = Annotated[Text, Field(description="UUID; a repeat answers with what the first one made")]


class Notification(Body):
    """Who is told that a job has ended: a signed POST to a web address, or an e-mail. One of the two."""

    webhook_url: Text = Field("", max_length=2000)
    email_address: Text = Field("", max_length=320)

    @model_validator(mode="after")
    def _one(self) -> Notification:
        if bool(self.webhook_url) == bool(self.email_address):
            raise ValueError("needs either webhook_url or email_address")
        return self

    def message(self) -> jobs_pb2.Notification:
        """As the trainer takes it."""
        if self.webhook_url:
            return jobs_pb2.Notification(webhook_url=self.webhook_url)
        return jobs_pb2.Notification(email_address=self.email_address)


class JobRequest(Body):
    """What is to be run."""

    pipeline: Text = Field(max_length=200, description="Name from `GET /api/v1/pipelines`")
    params: dict[str, Any] = Field(default_factory=dict, description="By the pipeline's `params_schema`")
    display_name: Text = Field("", max_length=LONGEST_DISPLAY_NAME)
    seed: int = Field(0, ge=0, lt=2**53, description="0 lets the server choose one")
    inputs: dict[Text, Text] = Field(default_factory=dict, description="Dataset version names by role")
    pool: Text = Field("", max_length=63)
    device_class: Text = Field(
        "", max_length=63, description="Such as H200, in the place of a pool; the next lower one may do"
    )
    priority: Text = Field("NORMAL", description="LOW, NORMAL or HIGH")
    group: Text = Field(
        "", max_length=200, description="The one of the caller's whose share it counts against"
    )
    labels: dict[Text, Text] = Field(default_factory=dict)
    timeout: Timeout = 0
    max_attempts: int = Field(0, ge=0, le=100)
    memory_hint_bytes: int = Field(0, ge=0, lt=INT64, description="What it is expected to need on its device")
    notifications: list[Notification] = Field(default_factory=list, max_length=20)
    annotations: dict[str, Any] = Field(
        default_factory=dict, description="Kept with the job and given back; at most 64 KiB"
    )

    def job(self, place: str = "") -> jobs_pb2.SubmitJobRequest:
        """The request as the trainer takes it; `place` is where the body has it."""
        return jobs_pb2.SubmitJobRequest(
            pipeline=self.pipeline,
            params=to_struct(self.params, f"{place}params"),
            display_name=self.display_name,
            seed=self.seed,
            inputs=self.inputs,
            pool=self.pool,
            device_class=self.device_class,
            priority=priority_number(self.priority, f"{place}priority"),
            group=self.group,
            labels=self.labels,
            timeout_seconds=self.timeout,
            max_attempts=self.max_attempts,
            memory_hint_bytes=self.memory_hint_bytes,
            notifications=[item.message() for item in self.notifications],
            annotations=to_struct(self.annotations, f"{place}annotations"),
        )


class SubmitJob(JobRequest):
    """A job to run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"pipeline": "reflectometry.simulate", "params": {}, "display_name": "a film"}]
        },
    )

    validate_only: bool = False
    request_id: RequestId = ""


class Axis(Body):
    """Values for one parameter."""

    path: Text = Field(max_length=500, description="Such as `training.steps` or `stack.layers[1].thickness`")
    values: list[Any] = Field(min_length=1, max_length=1000)


class Sweep(Body):
    """One job for each combination of the axes' values, the last axis fastest; or, zipped, for the first
    values together, then the second ones, and so on."""

    template: JobRequest
    axes: list[Axis] = Field(min_length=1, max_length=20)
    zipped: bool = False

    def message(self) -> jobs_pb2.Sweep:
        """As the trainer takes it."""
        axes = [
            jobs_pb2.SweepAxis(path=axis.path, values=to_values(axis.values, f"sweep.axes[{place}].values"))
            for place, axis in enumerate(self.axes)
        ]
        return jobs_pb2.Sweep(template=self.template.job("sweep.template."), axes=axes, zipped=self.zipped)


class BatchSubmitJobs(Body):
    """Jobs to run; all or none are taken in."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "sweep": {
                        "template": {"pipeline": "reflectometry.nr_sld", "params": {}},
                        "axes": [{"path": "training.epochs", "values": [5, 10, 20]}],
                    }
                }
            ]
        },
    )

    requests: list[JobRequest] = Field(default_factory=list, max_length=1000)
    sweep: Sweep | None = Field(None, description="In addition to `requests`")
    validate_only: bool = False
    request_id: RequestId = ""

    def message(self) -> jobs_pb2.BatchSubmitJobsRequest:
        """As the trainer takes it."""
        return jobs_pb2.BatchSubmitJobsRequest(
            requests=[item.job(f"requests[{place}].") for place, item in enumerate(self.requests)],
            sweep=None if self.sweep is None else self.sweep.message(),
            validate_only=self.validate_only,
            request_id=self.request_id,
        )


class RetryJob(Body):
    """What is to be other than the first time."""

    param_changes: dict[Text, Any] = Field(default_factory=dict, description="By path, as in a sweep")
    seed: int = Field(0, ge=0, lt=2**53, description="0 keeps it, and with it the data")
    pool: Text = Field("", max_length=63, description="Empty keeps it")
    display_name: Text = Field("", max_length=LONGEST_DISPLAY_NAME, description="Empty keeps it")
    timeout: Seconds = Field(0, description=f"{ALLOWED}; 0 keeps it")
    from_start: bool = Field(
        False, description="Begin anew even where a checkpoint is kept; with changes it always does"
    )
    validate_only: bool = False
    request_id: RequestId = ""


def priority_number(text: str, field: str) -> jobs_pb2.JobPriority.ValueType:
    """A priority by its word.

    Raises:
        InvalidArgument: there is no such priority.
    """
    number = enum_number(_PRIORITY, text)
    if number is None:
        raise InvalidArgument.field(field, text, "one of " + ", ".join(enum_choices(_PRIORITY)))
    return jobs_pb2.JobPriority.ValueType(number)


@router.post("/jobs", status_code=201, **returns(jobs_pb2.Job))
async def submit_job(body: SubmitJob, backends: BackendsDep) -> JSONResponse:
    """Submits a job; `validate_only` checks it and stores nothing."""
    request = body.job()
    request.validate_only = body.validate_only
    request.request_id = body.request_id
    job = await backends.jobs.SubmitJob(request, timeout=backends.timeouts.call)
    return await answer(job, status_code=200 if body.validate_only else 201)


@router.post("/jobs:batch", status_code=201, **returns(jobs_pb2.BatchSubmitJobsResponse))
async def batch_submit_jobs(body: BatchSubmitJobs, backends: BackendsDep) -> JSONResponse:
    """Submits many jobs at once, such as a parameter sweep: all or none."""
    made = await backends.jobs.BatchSubmitJobs(body.message(), timeout=backends.timeouts.call)
    return await answer(made, status_code=200 if body.validate_only else 201)


@router.post("/jobs/{job}:retry", status_code=201, **returns(jobs_pb2.Job))
async def retry_job(job: str, backends: BackendsDep, body: RetryJob | None = None) -> JSONResponse:
    """Submits a job that has ended once more: same parameters, seed and dataset versions unless changed."""
    body = body or RetryJob()
    request = jobs_pb2.RetryJobRequest(
        name=resource(JOB, job=job),
        param_changes=to_struct(body.param_changes, "param_changes"),
        timeout_seconds=body.timeout,
        **body.model_dump(exclude={"param_changes", "timeout"}),
    )
    made = await backends.jobs.RetryJob(request, timeout=backends.timeouts.call)
    return await answer(made, status_code=200 if body.validate_only else 201)
