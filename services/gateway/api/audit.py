"""The audit log, and what is kept about one person."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse, StreamingResponse
from google.protobuf import json_format
from pydantic import Field

from guidehall.contracts.identity.v1 import audit_pb2, personal_data_pb2
from guidehall.contracts.jobs.v1 import jobs_pb2
from guidehall.core.names import ERASURE, USER
from guidehall.core.personal_data import end_line, job_line
from services.gateway.api.common import (
    INT64,
    BackendsDep,
    Body,
    PageSize,
    PageToken,
    Streamed,
    Text,
    answer,
    begun,
    resource,
    returns,
)
from services.gateway.backends import Backends

router = APIRouter(tags=["audit"])

_LINES = "application/x-ndjson"
_JOBS_TOGETHER = 100
AuditFilter = Annotated[
    str,
    Query(
        max_length=2000,
        description='Terms joined by AND, such as `subject = "ada" AND time > "2026-08-01T00:00:00Z"`, over '
        "subject, kind, actor, service, method, resource, outcome, job, request_id, trace_id, time",
    ),
]


class ErasePerson(Body):
    """What becomes of what was theirs."""

    hand_over_to: Text = Field("", max_length=128, description="The user who gets it; empty deletes it")


async def _lines(call: Any, filename: str, following: AsyncIterator[str] | None = None) -> Streamed:
    """A call's lines as they come, and those that follow."""
    first, messages = await begun(call)
    return Streamed(call, _text(first, messages, following), _LINES, filename)


async def _text(first: Any, messages: Any, following: AsyncIterator[str] | None) -> AsyncIterator[str]:
    yield _joined(first.lines)
    async for message in messages:
        yield _joined(message.lines)
    if following is not None:
        async for line in following:
            yield _joined([line])


def _joined(lines: Any) -> str:
    return "".join(f"{line}\n" for line in lines)


@router.get("/audit", **returns(audit_pb2.ListAuditEventsResponse))
async def list_audit_events(
    backends: BackendsDep,
    page_size: PageSize = 0,
    page_token: PageToken = "",
    filter: AuditFilter = "",
    order_by: Annotated[str, Query(description='"sequence desc" (the usual one) or "sequence"')] = "",
) -> JSONResponse:
    """Who did what. Operators and administrators see all, others what they did and what was done to their
    account."""
    request = audit_pb2.ListAuditEventsRequest(
        page_size=page_size, page_token=page_token, filter=filter, order_by=order_by
    )
    return await answer(await backends.audit.ListAuditEvents(request, timeout=backends.timeouts.call))


@router.get("/audit:export", response_class=StreamingResponse)
async def export_audit_events(
    backends: BackendsDep,
    after_seal: Annotated[int, Query(ge=0, lt=INT64, description="Begin after this batch; 0 is all")] = 0,
) -> StreamingResponse:
    """The log with its seals as JSON lines, which `guidehall audit verify` checks. For operators."""
    request = audit_pb2.ExportAuditEventsRequest(after_seal=after_seal)
    call = backends.audit.ExportAuditEvents(request, timeout=backends.timeouts.transfer)
    return await _lines(call, "audit.jsonl")


@router.get("/users/{user}:export", response_class=StreamingResponse)
async def export_personal_data(user: str, backends: BackendsDep) -> StreamingResponse:
    """All that is kept about a user, as JSON lines: oneself, or, for administrators, anybody."""
    request = personal_data_pb2.ExportPersonalDataRequest(name=resource(USER, user=user))
    call = backends.personal_data.ExportPersonalData(request, timeout=backends.timeouts.transfer)
    return await _lines(call, f"{user}.jsonl", _jobs(backends, user))


@router.post("/users/{user}:erase", **returns(personal_data_pb2.Erasure))
async def erase_person(user: str, backends: BackendsDep, body: ErasePerson | None = None) -> JSONResponse:
    """Closes an account at once and erases what is kept about its user. For administrators."""
    heir = body.hand_over_to if body else ""
    request = personal_data_pb2.ErasePersonRequest(
        name=resource(USER, user=user), hand_over_to=resource(USER, user=heir) if heir else ""
    )
    return await answer(await backends.personal_data.ErasePerson(request, timeout=backends.timeouts.call))


@router.get("/erasures", **returns(personal_data_pb2.ListErasuresResponse))
async def list_erasures(
    backends: BackendsDep, page_size: PageSize = 0, page_token: PageToken = ""
) -> JSONResponse:
    """Erasures, newest first. For administrators."""
    request = personal_data_pb2.ListErasuresRequest(page_size=page_size, page_token=page_token)
    return await answer(await backends.personal_data.ListErasures(request, timeout=backends.timeouts.call))


@router.get("/erasures/{erasure}", **returns(personal_data_pb2.Erasure))
async def get_erasure(erasure: str, backends: BackendsDep) -> JSONResponse:
    """How far an erasure is. For administrators."""
    request = personal_data_pb2.GetErasureRequest(name=resource(ERASURE, erasure=erasure))
    return await answer(await backends.personal_data.GetErasure(request, timeout=backends.timeouts.call))


async def _jobs(backends: Backends, user: str) -> AsyncIterator[str]:
    request = jobs_pb2.ListJobsRequest(
        parent="projects/-", filter=f'owner = "{user}"', page_size=_JOBS_TOGETHER
    )
    while True:
        page = await backends.jobs.ListJobs(request, timeout=backends.timeouts.call)
        for job in page.jobs:
            yield job_line(json_format.MessageToDict(job, preserving_proto_field_name=True))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    yield end_line()
