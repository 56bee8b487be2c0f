"""Who may call what. Whose things they then see is decided where those are read."""

from __future__ import annotations

from typing import get_args

from guidehall.core.auth import Kind, Policy, Role

_PEOPLE_AND_SERVICES = frozenset({"user", "service"})

_READ = Policy(_PEOPLE_AND_SERVICES, Role.VIEWER)
_WRITE = Policy(_PEOPLE_AND_SERVICES, Role.SCIENTIST)
# A job too, for what its token names.
_READ_OR_JOB = Policy(_PEOPLE_AND_SERVICES | {"job"}, Role.VIEWER)
_JOB = Policy(frozenset({"job"}))
_TRAINER = Policy(frozenset({"service"}), services=frozenset({"trainer"}))
_SERVICE = Policy(frozenset({"service"}))
_GATEWAY = Policy(frozenset({"service"}), services=frozenset({"gateway"}))
_OPERATOR = Policy(_PEOPLE_AND_SERVICES, Role.OPERATOR)
_USER = Policy(frozenset({"user"}), Role.VIEWER, people=True)
_ADMIN = Policy(frozenset({"user"}), Role.ADMIN, people=True)

_BY_SERVICE: dict[str, dict[str, Policy]] = {
    "datasets.v1.DatasetsService": {
        "CreateDataset": _WRITE,
        "GetDataset": _READ,
        "ListDatasets": _READ,
        "UpdateDataset": _WRITE,
        "DeleteDataset": _WRITE,
        "ShareDataset": _WRITE,
        "UploadDatasetVersion": _WRITE,
        "GetDatasetVersion": _READ_OR_JOB,
        "ListDatasetVersions": _READ,
        "DownloadDatasetVersion": _READ_OR_JOB,
        "CreateDatasetVersionUrl": _READ,
    },
    "datasets.v1.UploadRolesService": {"GetUploadRoles": _READ, "UpdateUploadRoles": _WRITE},
    "models.v1.ModelsService": {
        "GetModel": _READ,
        "ListModels": _READ,
        "UpdateModel": _WRITE,
        "DeleteModel": _WRITE,
        "ShareModel": _WRITE,
        "UndeleteModel": _WRITE,
        "SetModelTag": _WRITE,
        "DeleteModelTag": _WRITE,
        # Takes memory of the inference service from the models of others.
        "UpdateModelVersion": _OPERATOR,
        "GetModelVersion": _READ,
        "ListModelVersions": _READ,
        "PublishModelVersion": _WRITE,
        "DownloadModelVersion": _READ,
        "CreateModelVersionUrl": _READ,
    },
    "results.v1.ResultsService": {
        "GetResult": _READ,
        "ListResults": _READ,
        "DownloadArtifact": _READ,
        "CreateArtifactUrl": _READ,
        "DownloadJobLog": _READ,
        "ShareResult": _WRITE,
    },
    "results.v1.StagingService": {
        "StageObject": _JOB,
        "StageResult": _JOB,
        "ReadCheckpoint": _JOB,
        "Promote": _TRAINER,
        "Discard": _TRAINER,
        "Claim": _TRAINER,
    },
    "results.v1.HistoryService": {
        "CreateHistoryEntry": _WRITE,
        "GetHistoryEntry": _READ,
        "ListHistoryEntries": _READ,
        "UpdateHistoryEntry": _WRITE,
        "DeleteHistoryEntry": _WRITE,
    },
    "usage.v1.UsageService": {"GetUsage": _READ},
    "identity.v1.IdentityService": {
        "WhoAmI": Policy(frozenset(get_args(Kind))),
        "CreateUser": _ADMIN,
        "GetUser": _READ,
        "ListUsers": _OPERATOR,
        "UpdateUser": _ADMIN,
        # For oneself; an operator sees, and so serves, others too. No service makes itself somebody.
        "CreateApiKey": _USER,
        "ListApiKeys": _USER,
        "RevokeApiKey": _USER,
        "IntrospectApiKey": _SERVICE,
        "ResolveUser": _GATEWAY,
        "AdmitCall": _GATEWAY,
    },
    "identity.v1.GroupsService": {
        "CreateGroup": _ADMIN,
        "GetGroup": _READ,
        "ListGroups": _READ,
        # For managers of the group, which is decided there.
        "UpdateGroup": _USER,
        "DeleteGroup": _ADMIN,
        "ListGroupMembers": _READ,
        "SetGroupMember": _USER,
        "RemoveGroupMember": _USER,
        "CreateServiceAccount": _USER,
        "ListServiceAccounts": _READ,
        "SetServiceAccountDisabled": _USER,
        "DeleteServiceAccount": _USER,
    },
    "identity.v1.AccountsService": {
        # Nobody who logs in has a credential yet: the gateway asks, which knows where they call from.
        "GetLogInOptions": _GATEWAY,
        "LogIn": _GATEWAY,
        "RefreshSession": _GATEWAY,
        "LogOut": _GATEWAY,
        "Register": _GATEWAY,
        # For oneself; an administrator ends anybody's sessions.
        "ChangePassword": _USER,
        "ListSessions": _USER,
        "RevokeSession": _USER,
        "RevokeSessions": _USER,
        "SetPassword": _ADMIN,
        "CreateInvitation": _ADMIN,
        "ListInvitations": _ADMIN,
        "DeleteInvitation": _ADMIN,
    },
    "identity.v1.LogInsService": {
        "LogInWithProvider": _GATEWAY,
        "CreateIdentity": _ADMIN,
        "ListIdentities": _USER,
        "DeleteIdentity": _ADMIN,
        "BeginDeviceLogIn": _GATEWAY,
        "FinishDeviceLogIn": _GATEWAY,
        # With a session alone, as is found out where they are carried out.
        "GetDeviceLogIn": _USER,
        "DecideDeviceLogIn": _USER,
    },
    "identity.v1.AuditService": {
        "AppendAuditEvents": _SERVICE,
        # What concerns oneself; operators see everything.
        "ListAuditEvents": _READ,
        "ExportAuditEvents": _OPERATOR,
    },
    "identity.v1.PersonalDataService": {
        # Of oneself; administrators of anybody.
        "ExportPersonalData": _USER,
        "ErasePerson": _ADMIN,
        "GetErasure": _ADMIN,
        "ListErasures": Policy(_PEOPLE_AND_SERVICES, Role.ADMIN, services=frozenset({"trainer"})),
        "CompleteErasureStep": _TRAINER,
    },
}

POLICIES: dict[str, Policy] = {
    f"/guidehall.{service}/{method}": policy
    for service, methods in _BY_SERVICE.items()
    for method, policy in methods.items()
}
