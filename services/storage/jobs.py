"""Jobs as storage knows them: a name, and the token with which one stages its outputs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument, PermissionDenied


@dataclass(frozen=True)
class Job:
    """One job."""

    project: str
    id: str

    @property
    def name(self) -> str:
        """Its resource name."""
        return names.JOB.format(project=self.project, job=self.id)


def job_id(field: str, text: str) -> str:
    """A job's id as it is stored.

    Raises:
        InvalidArgument: no UUID.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidArgument.field(field, text, "a job whose id is a UUID") from None


def read_job(name: str, field: str = "job") -> Job:
    """The job by its name.

    Raises:
        InvalidArgument: not a job's name.
    """
    ids = names.JOB.parse(name, field)
    return Job(ids["project"], job_id(field, ids["job"]))


def require_reader(principal: Principal, job: Job) -> None:
    """Raises PermissionDenied unless the caller's token is for this job, or names it among what it opens."""
    if principal.kind != "job" or job.name not in principal.inputs:
        require_holder(principal, job)


def require_holder(principal: Principal, job: Job, epoch: int | None = None) -> None:
    """Raises PermissionDenied unless the caller's token is for this job and, where given, this lease."""
    right_job = principal.job_id == job.id and principal.project in (None, job.project)
    if principal.kind != "job" or not right_job or (epoch is not None and principal.lease_epoch != epoch):
        raise PermissionDenied(
            f"the token is not for {job.name}" + (f" at epoch {epoch}" if epoch is not None else ""),
            reason="WRONG_LEASE",
            metadata={"job": job.name},
        )
