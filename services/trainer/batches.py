"""Many jobs taken in together: all or none, in one transaction. A sweep is a batch made from a template."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial

from guidehall.core import names
from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from services.trainer.documents import Document, canonical
from services.trainer.param_paths import Axis, blamed, combinations
from services.trainer.queues import Seen
from services.trainer.request_keys import RequestKey
from services.trainer.settings import JobSettings
from services.trainer.submissions import NewJob, Submission, Submissions


@dataclass(frozen=True)
class Sweep:
    """A job to be submitted with different parameters."""

    template: Submission
    axes: Sequence[Axis]
    zipped: bool


@dataclass(frozen=True)
class Batch:
    """What is submitted together; the sweep's jobs come after the others."""

    submissions: Sequence[Submission]
    sweep: Sweep | None


# A submission, and what gives the names of its fields in the request that holds it.
_Item = tuple[Submission, Callable[[str], str]]


class Batches:
    """Takes batches in."""

    def __init__(self, submissions: Submissions, settings: JobSettings) -> None:
        self._submissions = submissions
        self._settings = settings

    async def submit(
        self, principal: Principal, batch: Batch, request_id: str, validate_only: bool
    ) -> tuple[list[Seen], str]:
        """Stores the jobs; the first ones again when `request_id` is known.

        Returns:
            The jobs in order, and the name of the batch; empty when only validated.

        Raises:
            InvalidArgument: by the path in the request, such as `requests[3].params.steps` or
                `sweep.axes[0].values[2]`; or there are too many.
            PermissionDenied: the caller may not own a job.
            Unavailable: the database, or storage that has the inputs, cannot be reached.
        """
        key = RequestKey.of(principal, request_id, asdict(batch))
        if not validate_only and (earlier := await self._submissions.earlier(key)):
            return earlier, _name(earlier)
        new: list[NewJob] = []
        pinned: dict[str, str] = {}
        size = 0
        for submission, rename in self._items(batch):
            try:
                new.append(await self._submissions.prepare(principal, submission, pinned))
            except InvalidArgument as error:
                raise blamed(error, rename) from None
            size += len(canonical(new[-1].values["params"]))
            if size > self._settings.max_batch_bytes:
                allowed = f"at most {self._settings.max_batch_bytes} bytes of parameters together"
                raise InvalidArgument.field(rename("params"), f"{size} bytes", allowed)
            # Checking takes a while: others are answered in between.
            await asyncio.sleep(0)
        if validate_only:
            return await self._submissions.rehearse(principal, new), ""
        batch_id = str(uuid.uuid4())
        for position, item in enumerate(new):
            item.values.update(batch=batch_id, batch_position=position)
            # All are submitted at one time: their order has to be told.
            item.values["head_start"] -= timedelta(microseconds=position)
        made = await self._submissions.store(principal, "BatchSubmitJobs", key, new)
        return made, _name(made)

    def _items(self, batch: Batch) -> Iterator[_Item]:
        """Every submission of a batch.

        Raises:
            InvalidArgument: none or too many, or the sweep makes no sense.
        """
        most = self._settings.max_batch
        count = len(batch.submissions)
        if count > most:
            raise InvalidArgument.field("requests", f"{count} jobs", f"at most {most}")
        if not count and batch.sweep is None:
            raise InvalidArgument.field("requests", "none", "one or more, or a sweep")
        for place, submission in enumerate(batch.submissions):
            yield submission, partial(_in_request, place)
        if batch.sweep is not None:
            yield from self._sweep(batch.sweep, most - count)

    def _sweep(self, sweep: Sweep, most: int) -> Iterator[_Item]:
        template = sweep.template
        choices = combinations(sweep.axes, sweep.zipped, most)
        defaults = self._defaults(template)
        for choice in choices:
            params = choice.params(template.params, defaults)
            yield replace(template, params=params), choice.blame

    def _defaults(self, template: Submission) -> Document | None:
        """The template's parameters with all defaults; None when it lacks something that the axes give."""
        try:
            return self._submissions.params(template.pipeline, template.params)
        except InvalidArgument:
            return None


def _in_request(place: int, field: str) -> str:
    return f"requests[{place}].{field}"


def _name(made: Sequence[Seen]) -> str:
    first = made[0].job
    return names.BATCH.format(project=first.project, batch=first.batch or "")
