"""The Kubernetes manifests say to each program what it understands."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from guidehall import __version__
from guidehall.core.auth import Authenticator, Role
from guidehall.core.settings import AuthSettings, ServiceSettings
from services.gateway.settings import GatewaySettings
from services.inference.settings import InferenceSettings
from services.storage.settings import StorageSettings
from services.trainer.settings import TrainerSettings
from services.trainer.worker.settings import WorkerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "k8s" / "base"
MOUNT = "/run/secrets/guidehall"
PROGRAMS = {
    "gateway/config.yaml": GatewaySettings,
    "inference/config.yaml": InferenceSettings,
    "storage/config.yaml": StorageSettings,
    "trainer/config.yaml": TrainerSettings,
    "trainer/worker-config.yaml": WorkerSettings,
}


@pytest.mark.parametrize("file", PROGRAMS)
def test_every_variable_is_a_setting(file: str, tmp_path: Path) -> None:
    program: type[ServiceSettings] = PROGRAMS[file]
    variables = yaml.safe_load((BASE / file).read_text())["data"]
    for name, value in variables.items():
        if value.startswith(MOUNT):
            secret = tmp_path / Path(value).name
            secret.write_text("secret")
            variables[name] = str(secret)
    assert program.load(variables).redacted()


def test_each_release_migrates_with_jobs_of_its_own_name() -> None:
    for service in ("storage", "trainer"):
        job = yaml.safe_load((BASE / service / "migrate.yaml").read_text())
        assert job["metadata"]["name"].endswith("-" + __version__.replace(".", "-"))
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["image"] == f"guidehall-{service}:{__version__}"
        assert container["args"] == ["migrate"]


def test_a_development_cluster_comes_with_an_administrator(tmp_path: Path) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, DEPLOY / "make_secrets.py", tmp_path], check=True)
    file = tmp_path / "administrator.token"
    assert file.stat().st_mode & 0o077 == 0
    auth = AuthSettings(mode="token", trust_file=tmp_path / "trust.json")
    for service in ("gateway", "storage", "trainer", "inference"):
        headers = {"authorization": f"Bearer {file.read_text()}"}
        caller = asyncio.run(Authenticator(auth, service).authenticate(headers, "ipv4:10.0.0.7:1"))
        assert caller.has(Role.ADMIN)
