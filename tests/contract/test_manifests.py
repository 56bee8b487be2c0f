"""The Kubernetes manifests say to each program what it understands."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from guidehall import __version__
from guidehall.core.auth import Authenticator, Role
from guidehall.core.settings import AuthSettings, ServiceSettings
from services.gateway.settings import GatewaySettings
from services.inference.settings import InferenceSettings
from services.storage.settings import StorageSettings
from services.trainer.launcher import job_of
from services.trainer.settings import TrainerSettings
from services.trainer.worker.settings import WorkerSettings
from tests.missing import missing

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


def with_secrets(variables: dict[str, str], folder: Path) -> dict[str, str]:
    """The variables of a program where its secrets are in a folder."""
    found = dict(variables)
    for name, value in variables.items():
        if value.startswith(MOUNT):
            secret = folder / Path(value).name
            secret.write_text("secret")
            found[name] = str(secret)
    return found


@pytest.mark.parametrize("file", PROGRAMS)
def test_every_variable_is_a_setting(file: str, tmp_path: Path) -> None:
    program: type[ServiceSettings] = PROGRAMS[file]
    variables = yaml.safe_load((BASE / file).read_text())["data"]
    assert program.load(with_secrets(variables, tmp_path)).redacted()


def test_whose_forwarded_headers_count_is_said_and_is_nobody_else() -> None:
    variables = yaml.safe_load((BASE / "gateway" / "config.yaml").read_text())["data"]
    trusted = [ipaddress.ip_network(item) for item in variables["FORWARDED_ALLOW_IPS"].split(",")]
    assert all(network.is_loopback for network in trusted)


@pytest.fixture
def launching(tmp_path: Path) -> dict[tuple[str, str], Any]:
    """The base with the component launcher, in the namespace lab; by kind, and name without hash."""
    if shutil.which("kubectl") is None:
        missing("kubectl is not installed")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    kustomization = {
        "namespace": "lab",
        "resources": [os.path.relpath(BASE, overlay)],
        "components": [os.path.relpath(DEPLOY / "k8s" / "components" / "launcher", overlay)],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=True)
    found = {}
    for document in yaml.safe_load_all(done.stdout):
        name = document["metadata"]["name"]
        found[document["kind"], "guidehall-launcher" if name.startswith("guidehall-launcher-") else name] = (
            document
        )
    return found


def test_the_trainer_alone_may_look_for_jobs_and_make_some(launching: dict[tuple[str, str], Any]) -> None:
    pods = {
        name: document["spec"]["template"]["spec"]
        for (kind, name), document in launching.items()
        if kind in ("Deployment", "Job")
    }
    with_token = [name for name, pod in pods.items() if pod["automountServiceAccountToken"]]
    as_trainer = [name for name, pod in pods.items() if pod["serviceAccountName"] == "guidehall-trainer"]
    assert with_token == as_trainer == ["guidehall-trainer"]
    assert launching["ServiceAccount", "guidehall-trainer"]["metadata"]["namespace"] == "lab"
    role, binding = (launching[kind, "guidehall-launcher"] for kind in ("Role", "RoleBinding"))
    assert role["rules"] == [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "create"]}]
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "lab"
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", "guidehall-launcher")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "guidehall-trainer", "namespace": "lab"}
    ]


def test_the_launcher_of_the_manifests_makes_a_worker_of_the_pool(
    launching: dict[tuple[str, str], Any], tmp_path: Path
) -> None:
    # What the trainer's pod sees at the mounted folder.
    pod = launching["Deployment", "guidehall-trainer"]["spec"]["template"]["spec"]
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "launcher")
    (mount,) = (mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "launcher")
    files = launching["ConfigMap", "guidehall-launcher"]
    assert volume["configMap"]["name"] == files["metadata"]["name"]
    for name, content in files["data"].items():
        (tmp_path / name).write_text(content.replace(mount["mountPath"], str(tmp_path)))
    told = launching["ConfigMap", "guidehall-trainer"]["data"]
    variables = {name: value.replace(mount["mountPath"], str(tmp_path)) for name, value in told.items()}
    settings = TrainerSettings.load(with_secrets(variables, tmp_path))
    launcher = settings.pool("h200").launcher
    assert (launcher.kind, settings.device_class("h200")) == ("kubernetes", "H200")
    assert launcher.template_file is not None

    job = job_of(yaml.safe_load(launcher.template_file.read_text()), "h200", settings.device_class("h200"))
    kubernetes_validate.validate(job, "1.34", strict=True)
    worker = job["spec"]["template"]["spec"]
    assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "guidehall-worker-h200" in [item.get("secret", {}).get("secretName") for item in worker["volumes"]]
    own = {item["name"]: item["value"] for item in worker["containers"][0]["env"]}
    usual = launching["ConfigMap", worker["containers"][0]["envFrom"][0]["configMapRef"]["name"]]["data"]
    variables = {
        name: value for name, value in (usual | own).items() if name.startswith("GUIDEHALL_WORKER__")
    }
    told_worker = WorkerSettings.load(with_secrets(variables, tmp_path))
    assert (told_worker.pool, told_worker.idle_exit_seconds) == ("h200", 600)

    # In all else it is as the worker that is always there.
    always = launching["Deployment", "guidehall-worker-cpu"]["spec"]["template"]["spec"]
    for key in (
        "serviceAccountName",
        "securityContext",
        "enableServiceLinks",
        "terminationGracePeriodSeconds",
    ):
        assert worker[key] == always[key], key
    for key in ("image", "args", "envFrom", "livenessProbe", "securityContext", "volumeMounts"):
        assert worker["containers"][0][key] == always["containers"][0][key], key


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
