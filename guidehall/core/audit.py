"""What the audit log tells of each rpc, and the count of what is not worth an event each time.

A mutation is written down by the service that carries it out, once for each thing that it changes, with the
change itself. Reads and inferences, and mutations that were refused, are counted for each caller, resource,
outcome and minute; a count becomes one event when its minute is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import grpc

from guidehall.contracts.identity.v1 import audit_pb2, audit_pb2_grpc, identity_pb2
from guidehall.core.auth import Principal
from guidehall.core.errors import Aborted, AppError, DeadlineExceeded, Unavailable, from_rpc_error

logger = logging.getLogger(__name__)

# internal: by which the platform's parts work, of which nobody is to be held to account.
Class = Literal["mutation", "read", "inference", "internal"]
_MINUTE = 60
# A call to storage takes so many events.
_TOGETHER = 1000
# While storage is away so many times what may be open at one time waits, the newest.
_KEPT = 5
_CLOSING_SECONDS = 5.0
_NAMES = ("name", "parent", "job", "model", "model_version", "model_name")
_LONGEST_NAME = 300
_COUNTED_KINDS = frozenset({"user", "guest", "service_account"})

_BY_SERVICE: dict[str, dict[Class, str]] = {
    "guidehall.datasets.v1.DatasetsService": {
        "mutation": "CreateDataset UpdateDataset DeleteDataset UploadDatasetVersion ShareDataset",
        "read": "GetDataset ListDatasets GetDatasetVersion ListDatasetVersions DownloadDatasetVersion"
        " CreateDatasetVersionUrl",
    },
    "guidehall.datasets.v1.UploadRolesService": {"mutation": "UpdateUploadRoles", "read": "GetUploadRoles"},
    "guidehall.models.v1.ModelsService": {
        "mutation": "UpdateModel DeleteModel UndeleteModel PublishModelVersion ShareModel SetModelTag"
        " DeleteModelTag UpdateModelVersion",
        "read": "GetModel ListModels GetModelVersion ListModelVersions DownloadModelVersion"
        " CreateModelVersionUrl",
    },
    "guidehall.results.v1.ResultsService": {
        "mutation": "ShareResult",
        "read": "GetResult ListResults DownloadArtifact DownloadJobLog CreateArtifactUrl",
    },
    "guidehall.results.v1.StagingService": {
        "mutation": "Promote Claim",
        # What nobody but the job sees.
        "internal": "StageObject StageResult ReadCheckpoint Discard",
    },
    "guidehall.results.v1.HistoryService": {
        "mutation": "CreateHistoryEntry UpdateHistoryEntry DeleteHistoryEntry",
        "read": "GetHistoryEntry ListHistoryEntries",
    },
    "guidehall.identity.v1.IdentityService": {
        "mutation": "CreateUser UpdateUser CreateApiKey RevokeApiKey",
        "read": "WhoAmI GetUser ListUsers ListApiKeys",
        # The second writes down whom it sees for the first time.
        "internal": "IntrospectApiKey ResolveUser AdmitCall",
    },
    "guidehall.identity.v1.GroupsService": {
        "mutation": "CreateGroup UpdateGroup DeleteGroup SetGroupMember RemoveGroupMember"
        " CreateServiceAccount SetServiceAccountDisabled DeleteServiceAccount",
        "read": "GetGroup ListGroups ListGroupMembers ListServiceAccounts",
    },
    "guidehall.identity.v1.AccountsService": {
        "mutation": "LogIn LogOut Register ChangePassword RevokeSession RevokeSessions SetPassword"
        " CreateInvitation DeleteInvitation",
        "read": "ListSessions ListInvitations",
        # The second writes down a token that comes again, which ends the session.
        "internal": "GetLogInOptions RefreshSession",
    },
    "guidehall.usage.v1.UsageService": {"read": "GetUsage"},
    "guidehall.identity.v1.LogInsService": {
        "mutation": "LogInWithProvider CreateIdentity DeleteIdentity DecideDeviceLogIn",
        "read": "ListIdentities GetDeviceLogIn",
        # The second asks until it is a log-in, which it writes down itself.
        "internal": "BeginDeviceLogIn FinishDeviceLogIn",
    },
    "guidehall.identity.v1.AuditService": {
        "read": "ListAuditEvents ExportAuditEvents",
        "internal": "AppendAuditEvents",
    },
    "guidehall.identity.v1.PersonalDataService": {
        "mutation": "ErasePerson",
        "read": "ExportPersonalData GetErasure ListErasures",
        "internal": "CompleteErasureStep",
    },
    "guidehall.jobs.v1.JobsService": {
        "mutation": "SubmitJob BatchSubmitJobs CancelJob PauseJob ResumeJob StopJob RetryJob UpdateJob"
        " DeleteJob PurgeJobs ClaimJob ShareJob",
        "read": "GetJob ListJobs CountJobs WatchJob ListAttempts ListPipelines GetPipeline",
    },
    "guidehall.workers.v1.WorkerService": {
        "mutation": "Quarantine",
        "internal": "Register Lease Session CommitCheckpoint Finish Release",
    },
    "guidehall.workers.v1.PoolsService": {
        "mutation": "DrainWorker ReinstateWorker CreateWorkerCredential RevokeWorkerCredential",
        "read": "ListPools GetPool ListWorkers ListWorkerCredentials",
    },
    "guidehall.prediction.v1.PredictionService": {"inference": "Predict"},
    "guidehall.reflectometry.v1.ReflectometryService": {
        "inference": "Simulate AnalyzeCurve",
        "read": "ListMaterials",
    },
    "inference.GRPCInferenceService": {
        "mutation": "RepositoryModelLoad RepositoryModelUnload",
        "inference": "ModelInfer ModelStreamInfer",
        "read": "ServerLive ServerReady ModelReady ServerMetadata ModelMetadata ModelConfig ModelStatistics"
        " RepositoryIndex",
    },
}

# By full method name, such as "/guidehall.jobs.v1.JobsService/SubmitJob".
CLASSES: dict[str, Class] = {
    f"/{service}/{method}": kind
    for service, classes in _BY_SERVICE.items()
    for kind, methods in classes.items()
    for method in methods.split()
}

Send = Callable[[Sequence[audit_pb2.AuditEvent]], Awaitable[None]]


class Counts:
    """Calls of people, counted until their minute is over. A crash loses the counts of that minute.

    Args:
        service: that counts.
        send: writes events down; raises AppError where that cannot be done now.
        most: counts that are held at one time. Then resources are told apart no more, and in the end callers
            neither: the memory is bounded, and every call is counted.
    """

    def __init__(self, service: str, send: Send, most: int = 10_000) -> None:
        self._service = service
        self._send = send
        self._most = most
        self._open: dict[tuple[str, ...], audit_pb2.AuditEvent] = {}
        self._closed: list[audit_pb2.AuditEvent] = []
        self._minute = 0

    def call(self, principal: Principal | None, method: str, request: Any, outcome: str) -> None:
        """Counts a call that has ended, if it is of those that are counted."""
        kind = CLASSES.get(method, "internal")
        if principal is None or principal.kind not in _COUNTED_KINDS or kind == "internal":
            return
        if kind == "mutation" and outcome == "OK":
            return
        self._turn()
        actor = principal.actor or ""
        subject = principal.subject[:_LONGEST_NAME].replace("\x00", "")
        key = (principal.kind, subject, actor, method, _resource(request), outcome)
        event = self._open.get(key)
        if event is None:
            if len(self._open) >= self._most:
                key = (*key[:4], "-", outcome)
            if len(self._open) >= 2 * self._most and key not in self._open:
                key = ("service", self._service, "", method, "-", outcome)
            event = self._open.get(key) or self._new(key)
        event.count += 1

    def _new(self, key: tuple[str, ...]) -> audit_pb2.AuditEvent:
        kind, subject, actor, method, resource, outcome = key
        event = audit_pb2.AuditEvent(
            event_id=str(uuid.uuid4()),
            service=self._service,
            subject=subject,
            kind=identity_pb2.PrincipalKind.Value(f"PRINCIPAL_KIND_{kind.upper()}"),
            actor=actor,
            method=method,
            resource=resource,
            outcome=outcome,
        )
        event.time.FromSeconds(self._minute)
        self._open[key] = event
        return event

    def _turn(self, *, now: bool = False) -> None:
        """Closes the counts of a minute that is over, or of this one."""
        minute = int(time.time()) // _MINUTE * _MINUTE
        if now or minute != self._minute:
            self._closed += self._open.values()
            self._open.clear()
            self._minute = minute
            lost = len(self._closed) - _KEPT * self._most
            if lost > 0:
                del self._closed[:lost]
                logger.error("storage is away: %d counts of calls are not in the audit log", lost)

    async def run(self) -> None:
        """Writes down each minute when it is over, until cancelled."""
        while True:
            await asyncio.sleep(_MINUTE - time.time() % _MINUTE)
            await self.flush()

    async def close(self) -> None:
        """Writes down everything, as the process ends; what storage does not take soon is lost."""
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self.flush(everything=True)
        except TimeoutError:
            logger.warning("%d counts of calls are lost: storage does not answer", len(self._closed))

    async def flush(self, *, everything: bool = False) -> None:
        """Writes down what is over, or also what is not yet; what cannot be written stays for later."""
        self._turn(now=everything)
        while self._closed:
            # Each counts once, by its id, however often it is sent.
            batch = self._closed[:_TOGETHER]
            try:
                await self._send(batch)
            except (Unavailable, DeadlineExceeded, Aborted) as error:
                logger.warning("%d counts of calls wait: %s", len(self._closed), error.message)
                return
            except AppError as error:
                # It would be refused again, and hold up all that come after it.
                logger.error("%d counts of calls are refused: %s", len(batch), error.message)
            sent = {event.event_id for event in batch}
            self._closed = [event for event in self._closed if event.event_id not in sent]


def sender(channel: grpc.aio.Channel, call_seconds: float) -> Send:
    """Writes events down in storage, by a channel that carries the service's own credential."""
    stub = audit_pb2_grpc.AuditServiceStub(channel)

    async def send(events: Sequence[audit_pb2.AuditEvent]) -> None:
        try:
            await stub.AppendAuditEvents(
                audit_pb2.AppendAuditEventsRequest(events=events), timeout=call_seconds
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    return send


def _resource(request: Any) -> str:
    """The name of what a request is about; "" where it has none, as in a stream."""
    for field in _NAMES:
        value = getattr(request, field, None)
        if isinstance(value, str) and value:
            return value[:_LONGEST_NAME].replace("\x00", "")
    return ""
