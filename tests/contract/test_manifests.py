"""The Kubernetes manifests say to each program what it understands."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from guidehall import __version__
from guidehall.core.settings import ServiceSettings
from services.gateway.settings import GatewaySettings
from services.inference.settings import InferenceSettings
from services.storage.settings import StorageSettings
from services.trainer.settings import TrainerSettings
from services.trainer.worker.settings import WorkerSettings

BASE = Path(__file__).parents[2] / "deploy" / "k8s" / "base"
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
