"""ResultsService and StagingService."""

# ruff: noqa: N802, ARG002 (gRPC names the methods and gives each the same arguments)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from guidehall.contracts.common.v1 import common_pb2
from guidehall.contracts.results.v1 import results_pb2, results_pb2_grpc, staging_pb2, staging_pb2_grpc
from guidehall.core import names
from guidehall.core.auth import current_principal
from guidehall.core.errors import InvalidArgument
from services.storage.downloads import Downloads
from services.storage.job_logs import JobLogs
from services.storage.jobs import read_job
from services.storage.promotion import Commit, Promotion, Reference
from services.storage.results import Result, Results
from services.storage.servicers import common
from services.storage.settings import TransferSettings
from services.storage.staging import Checkpoint, Kind, Output, Staging

RESULTS = "guidehall.results.v1.ResultsService"
STAGING = "guidehall.results.v1.StagingService"
JSON_MEDIA_TYPE = "application/json"

_KINDS: dict[staging_pb2.StagedKind.ValueType, Kind] = {
    staging_pb2.STAGED_KIND_ARTIFACT: "artifact",
    staging_pb2.STAGED_KIND_MODEL: "model",
    staging_pb2.STAGED_KIND_CHECKPOINT: "checkpoint",
    staging_pb2.STAGED_KIND_LOG: "log",
}


class ResultsServicer(results_pb2_grpc.ResultsServiceServicer):
    """Decode, call, encode."""

    def __init__(self, results: Results, job_logs: JobLogs, downloads: Downloads) -> None:
        self._results = results
        self._job_logs = job_logs
        self._downloads = downloads

    async def GetResult(self, request: results_pb2.GetResultRequest, context: Any) -> results_pb2.Result:
        return await asyncio.to_thread(_result, await self._results.get(current_principal(), request.name))

    async def ListResults(
        self, request: results_pb2.ListResultsRequest, context: Any
    ) -> results_pb2.ListResultsResponse:
        project = names.project_of(request.parent)
        found, token = await self._results.page(
            current_principal(), project, request.filter, common.paging(request)
        )
        return await asyncio.to_thread(
            lambda: results_pb2.ListResultsResponse(results=map(_result, found), next_page_token=token)
        )

    async def ShareResult(self, request: results_pb2.ShareResultRequest, context: Any) -> results_pb2.Result:
        caller = common.caller(RESULTS, "ShareResult")
        result = await self._results.share(caller, request.name, request.add, request.remove)
        return await asyncio.to_thread(_result, result)

    async def DownloadArtifact(
        self, request: results_pb2.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[results_pb2.DownloadArtifactResponse]:
        content = await self._results.artifact(current_principal(), request.name)
        answer = results_pb2.DownloadArtifactResponse
        async with aclosing(common.send(self._downloads, content, request.offset_bytes, answer)) as messages:
            async for message in messages:
                yield message

    async def CreateArtifactUrl(
        self, request: results_pb2.CreateArtifactUrlRequest, context: Any
    ) -> common_pb2.PresignedUrl:
        content = await self._results.artifact(current_principal(), request.name)
        return common.url(self._downloads, content, request.expires_in_seconds)

    async def DownloadJobLog(
        self, request: results_pb2.DownloadJobLogRequest, context: Any
    ) -> AsyncIterator[results_pb2.DownloadJobLogResponse]:
        content = await self._job_logs.log(current_principal(), request.job)
        answer = results_pb2.DownloadJobLogResponse
        async with aclosing(common.send(self._downloads, content, request.offset_bytes, answer)) as messages:
            async for message in messages:
                yield message


class StagingServicer(staging_pb2_grpc.StagingServiceServicer):
    """Decode, call, encode."""

    def __init__(
        self,
        staging: Staging,
        promotion: Promotion,
        downloads: Downloads,
        max_document_bytes: int,
        timing: TransferSettings,
    ) -> None:
        self._staging = staging
        self._timing = timing
        self._promotion = promotion
        self._downloads = downloads
        self._max_document_bytes = max_document_bytes

    async def StageObject(
        self, request_iterator: AsyncIterator[staging_pb2.StageObjectRequest], context: Any
    ) -> staging_pb2.StageObjectResponse:
        async with common.hearing_out(request_iterator, self._timing):
            header = await common.first_message(request_iterator)
            said = header.object
            output = Output(
                job=read_job(header.job, "header.job"),
                epoch=header.lease_epoch,
                kind=_kind(header.kind),
                object_id=header.object_id,
                claim=common.claim(
                    "header.object", said.media_type, said.size_bytes, said.sha256, required=True
                ),
                manifest=await common.manifest("manifest", header.manifest)
                if header.HasField("manifest")
                else None,
            )
            stored = await self._staging.stage(current_principal(), output, common.pieces(request_iterator))
            reference = common_pb2.ObjectRef(
                sha256=stored.sha256, size_bytes=stored.size_bytes, media_type=stored.media_type
            )
            return staging_pb2.StageObjectResponse(object=reference)

    async def StageResult(
        self, request: staging_pb2.StageResultRequest, context: Any
    ) -> staging_pb2.StageResultResponse:
        document = await common.document("document", request.document, self._max_document_bytes)
        job = read_job(request.job)
        await self._staging.stage_result(
            current_principal(), job, request.lease_epoch, request.pipeline, document
        )
        reference = common_pb2.ObjectRef(
            sha256=document.sha256, size_bytes=document.size_bytes, media_type=JSON_MEDIA_TYPE
        )
        return staging_pb2.StageResultResponse(object=reference)

    async def ReadCheckpoint(
        self, request: staging_pb2.ReadCheckpointRequest, context: Any
    ) -> AsyncIterator[staging_pb2.ReadCheckpointResponse]:
        checkpoint = Checkpoint(request.lease_epoch, request.ordinal)
        content = await self._staging.checkpoint(current_principal(), read_job(request.job), checkpoint)
        async with aclosing(
            common.send(self._downloads, content, 0, staging_pb2.ReadCheckpointResponse)
        ) as messages:
            async for message in messages:
                yield message

    async def Promote(self, request: staging_pb2.PromoteRequest, context: Any) -> staging_pb2.PromoteResponse:
        outputs = {name: Reference(ref.sha256, ref.size_bytes) for name, ref in request.outputs.items()}
        commit = Commit(read_job(request.job), request.lease_epoch, request.owner, outputs)
        promoted = await self._promotion.promote(common.caller(STAGING, "Promote"), commit)
        return staging_pb2.PromoteResponse(result=promoted.result, model_versions=promoted.model_versions)

    async def Discard(self, request: staging_pb2.DiscardRequest, context: Any) -> staging_pb2.DiscardResponse:
        checkpoint = None
        if request.keep_checkpoint_ordinal:
            checkpoint = Checkpoint(request.keep_checkpoint_epoch, request.keep_checkpoint_ordinal)
        log_owner = request.log_owner if request.HasField("log_owner") else None
        await self._staging.discard(read_job(request.job), checkpoint, request.job_ended, log_owner)
        return staging_pb2.DiscardResponse()

    async def Claim(self, request: staging_pb2.ClaimRequest, context: Any) -> staging_pb2.ClaimResponse:
        await self._promotion.claim(common.caller(STAGING, "Claim"), read_job(request.job), request.owner)
        return staging_pb2.ClaimResponse()


def _kind(value: staging_pb2.StagedKind.ValueType) -> Kind:
    if value not in _KINDS:
        raise InvalidArgument.field("header.kind", value, "ARTIFACT, MODEL, CHECKPOINT or LOG")
    return _KINDS[value]


def _result(result: Result) -> results_pb2.Result:
    message = results_pb2.Result(
        name=result.name,
        job=result.job,
        pipeline=result.pipeline,
        artifacts=[
            results_pb2.Artifact(
                name=artifact.name,
                filename=artifact.content.filename,
                object=common.object_ref(artifact.content),
            )
            for artifact in result.artifacts
        ],
        model_versions=result.model_versions,
        owner=result.owner,
        readers=result.readers,
        create_time=common.timestamp(result.create_time),
    )
    if result.document is not None:
        message.document.update(result.document)
    return message
