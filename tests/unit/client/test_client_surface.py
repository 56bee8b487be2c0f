"""The public surface: names that others import, twins that stay twins, and how little an import costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import guidehall.client
from guidehall.client import AsyncClient, Client

PUBLIC = [
    "Analysis",
    "AngleSegment",
    "ApiKey",
    "Artifact",
    "Attempt",
    "AuditEvent",
    "AsyncClient",
    "Band",
    "Batch",
    "BeamSide",
    "CheckpointCommitted",
    "Client",
    "Curve",
    "Dataset",
    "DatasetVersion",
    "Erasure",
    "Estimate",
    "Explanation",
    "Failure",
    "FieldViolation",
    "Group",
    "GroupMember",
    "Identity",
    "Job",
    "JobEvent",
    "JobState",
    "Launcher",
    "LogLine",
    "MeasurementInfo",
    "Medium",
    "Model",
    "ModelVersion",
    "NewApiKey",
    "NewWorkerCredential",
    "Note",
    "Parameter",
    "Pipeline",
    "Pool",
    "Prediction",
    "Preview",
    "Priority",
    "Profile",
    "Progress",
    "Purge",
    "QUnit",
    "Resolution",
    "Result",
    "ResultPublished",
    "ServiceAccount",
    "Simulation",
    "Stage",
    "StateChange",
    "StoredObject",
    "Submission",
    "Sweep",
    "TensorSpec",
    "Usage",
    "Timeouts",
    "Tls",
    "Worker",
    "WorkerCredential",
    "errors",
    "read_curve",
]

METHODS = [
    "analyze",
    "api_keys",
    "attempts",
    "audit",
    "cancel",
    "claim",
    "close",
    "create_api_key",
    "create_group",
    "create_service_account",
    "create_worker_credential",
    "dataset_from_result",
    "dataset_version",
    "dataset_versions",
    "datasets",
    "delete",
    "delete_model_tag",
    "download_artifact",
    "download_dataset",
    "download_log",
    "download_model",
    "drain",
    "erase_person",
    "erasure",
    "export_audit",
    "export_person",
    "group_members",
    "groups",
    "job",
    "jobs",
    "model_version",
    "model_versions",
    "models",
    "pause",
    "pin_model",
    "pipeline",
    "pipelines",
    "pool",
    "pools",
    "predict",
    "purge",
    "reinstate",
    "remove_group_member",
    "result",
    "resume",
    "retry",
    "revoke_api_key",
    "revoke_worker_credential",
    "service_accounts",
    "set_group_member",
    "set_model_tag",
    "share",
    "simulate",
    "stop",
    "submit",
    "submit_many",
    "unpin_model",
    "update",
    "upload_dataset",
    "usage",
    "wait",
    "watch",
    "whoami",
    "worker_credentials",
    "workers",
]

# What the bare install does not have.
HEAVY = [
    "torch",
    "pydantic",
    "pydantic_settings",
    "fastapi",
    "starlette",
    "httpx",
    "nats",
    "sqlalchemy",
    "asyncpg",
    "minio",
    "scipy",
    "matplotlib",
    "jwt",
    "cryptography",
    "prometheus_client",
    "opentelemetry",
    "uvicorn",
    "safetensors",
    "pandas",
    "guidehall.science",
    "guidehall.local",
    "guidehall.contracts.inference",
]


def _methods(client: type) -> list[str]:
    return sorted(name for name, _ in inspect.getmembers(client, callable) if not name.startswith("_"))


def test_public_names_are_pinned() -> None:
    assert sorted(guidehall.client.__all__, key=str.lower) == sorted(PUBLIC, key=str.lower)
    assert all(hasattr(guidehall.client, name) for name in PUBLIC)


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_methods_are_pinned(client: type) -> None:
    assert _methods(client) == METHODS


@pytest.mark.parametrize("name", ["__init__", *METHODS])
def test_twins_take_the_same_arguments(name: str) -> None:
    blocking = inspect.signature(getattr(Client, name))
    awaited = inspect.signature(getattr(AsyncClient, name))

    assert blocking.parameters == awaited.parameters
    assert str(blocking.return_annotation) == str(awaited.return_annotation).replace(
        "AsyncIterator", "Iterator"
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_does(name: str) -> None:
    assert getattr(Client, name).__doc__
    assert getattr(AsyncClient, name).__doc__


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


def test_client_needs_only_what_the_bare_install_has() -> None:
    loaded = _modules_after("import guidehall.client, guidehall.client.errors, guidehall.cli._app")

    assert loaded.isdisjoint(HEAVY)


def test_help_loads_nothing_that_takes_time() -> None:
    loaded = _modules_after(
        "import contextlib, io\n"
        "from guidehall.cli._app import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert run(['--help']) == 0"
    )

    assert loaded.isdisjoint({*HEAVY, "grpc", "numpy", "rich", "yaml", "google.protobuf", "asyncio"})
