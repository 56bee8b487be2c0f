"""What an API key may be limited to, besides the roles of its user: a scope for every method.

A key without scopes may do whatever its roles allow. One with scopes may call the methods of these, and no
others: nothing that makes or ends credentials, and nothing that is not in this table.
"""

from __future__ import annotations

from collections.abc import Mapping

from guidehall.core.auth.principals import Principal
from guidehall.core.errors import PermissionDenied

# Open to a key with any scope; to a key with none at all.
_ANY = "*"
_NONE = ""

_BY_SERVICE: Mapping[str, Mapping[str, str]] = {
    "guidehall.jobs.v1.JobsService": {
        "CountJobs": _ANY,
        **dict.fromkeys(
            ("GetJob", "ListJobs", "WatchJob", "ListAttempts", "ListPipelines", "GetPipeline"), "jobs:read"
        ),
        **dict.fromkeys(
            (
                "SubmitJob",
                "BatchSubmitJobs",
                "CancelJob",
                "PauseJob",
                "ResumeJob",
                "StopJob",
                "RetryJob",
                "UpdateJob",
                "DeleteJob",
                "PurgeJobs",
                "ClaimJob",
                "ShareJob",
            ),
            "jobs:write",
        ),
    },
    "guidehall.datasets.v1.DatasetsService": {
        **dict.fromkeys(
            (
                "GetDataset",
                "ListDatasets",
                "GetDatasetVersion",
                "ListDatasetVersions",
                "DownloadDatasetVersion",
                "CreateDatasetVersionUrl",
            ),
            "datasets:read",
        ),
        **dict.fromkeys(
            ("CreateDataset", "UpdateDataset", "DeleteDataset", "UploadDatasetVersion", "ShareDataset"),
            "datasets:write",
        ),
    },
    "guidehall.datasets.v1.UploadRolesService": {
        "GetUploadRoles": "datasets:read",
        "UpdateUploadRoles": "datasets:write",
    },
    "guidehall.models.v1.ModelsService": {
        **dict.fromkeys(
            (
                "GetModel",
                "ListModels",
                "GetModelVersion",
                "ListModelVersions",
                "DownloadModelVersion",
                "CreateModelVersionUrl",
            ),
            "models:read",
        ),
        **dict.fromkeys(
            (
                "UpdateModel",
                "DeleteModel",
                "UndeleteModel",
                "PublishModelVersion",
                "ShareModel",
                "SetModelTag",
                "DeleteModelTag",
                "UpdateModelVersion",
            ),
            "models:write",
        ),
    },
    "guidehall.results.v1.ResultsService": {
        **dict.fromkeys(
            ("GetResult", "ListResults", "DownloadArtifact", "CreateArtifactUrl", "DownloadJobLog"),
            "results:read",
        ),
        "ShareResult": "results:write",
    },
    "guidehall.results.v1.StagingService": dict.fromkeys(
        ("StageObject", "StageResult", "ReadCheckpoint", "Promote", "Discard", "Claim"), _NONE
    ),
    "guidehall.results.v1.HistoryService": {
        **dict.fromkeys(("GetHistoryEntry", "ListHistoryEntries"), "history:read"),
        **dict.fromkeys(("CreateHistoryEntry", "UpdateHistoryEntry", "DeleteHistoryEntry"), "history:write"),
    },
    "guidehall.prediction.v1.PredictionService": {"Predict": "predict"},
    "guidehall.reflectometry.v1.ReflectometryService": dict.fromkeys(
        ("Simulate", "AnalyzeCurve", "ListMaterials"), "predict"
    ),
    "inference.GRPCInferenceService": {
        **dict.fromkeys(
            (
                "ServerLive",
                "ServerReady",
                "ServerMetadata",
                "ModelReady",
                "ModelMetadata",
                "ModelInfer",
                "ModelStreamInfer",
                "ModelConfig",
                "ModelStatistics",
                "RepositoryIndex",
            ),
            "predict",
        ),
        **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), "models:write"),
    },
    "guidehall.identity.v1.IdentityService": {
        "WhoAmI": _ANY,
        **dict.fromkeys(("GetUser", "ListUsers"), "users:read"),
        **dict.fromkeys(
            (
                "CreateUser",
                "UpdateUser",
                "CreateApiKey",
                "ListApiKeys",
                "RevokeApiKey",
                "IntrospectApiKey",
                "ResolveUser",
                "AdmitCall",
            ),
            _NONE,
        ),
    },
    "guidehall.identity.v1.GroupsService": {
        **dict.fromkeys(("GetGroup", "ListGroups", "ListGroupMembers", "ListServiceAccounts"), "users:read"),
        **dict.fromkeys(
            (
                "CreateGroup",
                "UpdateGroup",
                "DeleteGroup",
                "SetGroupMember",
                "RemoveGroupMember",
                "CreateServiceAccount",
                "SetServiceAccountDisabled",
                "DeleteServiceAccount",
            ),
            _NONE,
        ),
    },
    "guidehall.identity.v1.AccountsService": dict.fromkeys(
        (
            "GetLogInOptions",
            "LogIn",
            "RefreshSession",
            "LogOut",
            "Register",
            "ChangePassword",
            "ListSessions",
            "RevokeSession",
            "RevokeSessions",
            "SetPassword",
            "CreateInvitation",
            "ListInvitations",
            "DeleteInvitation",
        ),
        _NONE,
    ),
    "guidehall.workers.v1.WorkerService": dict.fromkeys(
        ("Register", "Lease", "Session", "CommitCheckpoint", "Finish", "Release", "Quarantine"), _NONE
    ),
    "guidehall.workers.v1.PoolsService": {
        **dict.fromkeys(("ListPools", "GetPool", "ListWorkers", "ListWorkerCredentials"), "pools:read"),
        **dict.fromkeys(("DrainWorker", "ReinstateWorker"), "pools:write"),
        **dict.fromkeys(("CreateWorkerCredential", "RevokeWorkerCredential"), _NONE),
    },
    "guidehall.identity.v1.AuditService": {
        **dict.fromkeys(("ListAuditEvents", "ExportAuditEvents"), "audit:read"),
        "AppendAuditEvents": _NONE,
    },
    "guidehall.identity.v1.LogInsService": dict.fromkeys(
        (
            "LogInWithProvider",
            "CreateIdentity",
            "DeleteIdentity",
            "ListIdentities",
            "GetDeviceLogIn",
            "DecideDeviceLogIn",
            "BeginDeviceLogIn",
            "FinishDeviceLogIn",
        ),
        _NONE,
    ),
    "guidehall.identity.v1.PersonalDataService": dict.fromkeys(
        ("ErasePerson", "ExportPersonalData", "GetErasure", "ListErasures", "CompleteErasureStep"), _NONE
    ),
    "guidehall.usage.v1.UsageService": {"GetUsage": _ANY},
}

# By full name, such as "/guidehall.jobs.v1.JobsService/GetJob".
METHODS: Mapping[str, str] = {
    f"/{service}/{method}": scope
    for service, methods in _BY_SERVICE.items()
    for method, scope in methods.items()
}
SCOPES = frozenset({*METHODS.values()} - {_ANY, _NONE})


def covers(scopes: frozenset[str], wanted: str) -> bool:
    """Whether a key with these scopes has the one that is wanted; who may write may read."""
    subject, _, action = wanted.partition(":")
    return wanted in scopes or (action == "read" and f"{subject}:write" in scopes)


def require_scope(principal: Principal, method: str) -> None:
    """Raises PermissionDenied unless the scopes of the caller's key cover `method`."""
    if not principal.scopes:
        return
    wanted = METHODS.get(method)
    if wanted == _ANY or (wanted and covers(principal.scopes, wanted)):
        return
    needed = f"the scope {wanted!r}" if wanted else "a key without scopes"
    raise PermissionDenied(
        f"the API key may not call {method}: that needs {needed}",
        reason="SCOPE_MISSING",
        metadata={"method": method, "scope": wanted or ""},
    )
