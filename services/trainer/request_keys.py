"""Requests that come again: known by the caller, the id that the caller gave, and their content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from guidehall.core.auth import Principal
from guidehall.core.errors import InvalidArgument
from services.trainer.documents import digest, plain
from services.trainer.records import Job
from services.trainer.tables import jobs, request_ids


@dataclass(frozen=True)
class RequestKey:
    """What makes a repeated request the same one; without a `request_id` none is."""

    subject: str
    request_id: str
    content_digest: str

    @classmethod
    def of(cls, principal: Principal, request_id: str, content: Mapping[str, Any]) -> RequestKey:
        """The key of a request.

        Raises:
            InvalidArgument: the content holds what JSON cannot; by its path.
        """
        if not request_id:
            return cls("", "", "")
        held = {name: plain(value, name) for name, value in content.items()}
        return cls(f"{principal.kind}:{principal.subject}", request_id, digest(held))

    async def claim(self, connection: AsyncConnection, job_id: str) -> bool:
        """Whether nobody had it before; `job_id` is the first job that the request makes."""
        row = asdict(self) | {"job_id": job_id}
        claimed = await connection.execute(insert(request_ids).values(row).on_conflict_do_nothing())
        return bool(claimed.rowcount)

    async def made(self, connection: AsyncConnection) -> list[Job]:
        """The jobs that this request made before: one, or those of its batch that are still there.

        Raises:
            InvalidArgument: it came with other content then.
        """
        first = jobs.alias()
        statement = (
            select(jobs, request_ids.c.content_digest)
            .select_from(request_ids)
            .join(first, first.c.id == request_ids.c.job_id)
            .join(jobs, or_(jobs.c.id == first.c.id, jobs.c.batch == first.c.batch))
            .where(request_ids.c.subject == self.subject, request_ids.c.request_id == self.request_id)
            .order_by(jobs.c.batch_position)
        )
        rows = (await connection.execute(statement)).mappings().all()
        if rows and rows[0]["content_digest"] != self.content_digest:
            raise InvalidArgument.field("request_id", self.request_id, "a new one for another request")
        return [Job.of(row) for row in rows]
