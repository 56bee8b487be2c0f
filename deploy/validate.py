"""Renders the Kubernetes manifests and checks them against the API's schemas. `./run lint` calls it.

Needs `kubectl` (for `kubectl kustomize`; no cluster). Without it the check says that it did not run, which is
a failure under CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_secrets import make_secrets

DEPLOY = Path(__file__).resolve().parent
KUBERNETES_VERSION = "1.34"


def _render(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{folder.name}: kubectl kustomize failed:\n{done.stderr}")
    return done.stdout


def _validate(name: str, manifest: str, scratch: Path) -> int:
    rendered = scratch / f"{name.replace('/', '-')}.yaml"
    rendered.write_text(manifest)
    command = [
        Path(sys.executable).with_name("kubernetes-validate"),
        "--strict",
        "--quiet",
        "-k",
        KUBERNETES_VERSION,
    ]
    done = subprocess.run([*command, str(rendered)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
    return sum(1 for document in yaml.safe_load_all(manifest) if document)


def _check(name: str, folder: Path, scratch: Path) -> str:
    """Renders a folder and checks it; its manifest."""
    manifest = _render(folder)
    if manifest != _render(folder):
        raise SystemExit(f"{name}: two renderings differ")
    count = _validate(name, manifest, scratch)
    _pod_rules(name, manifest)
    for key, template in _templates(manifest):
        _validate(f"{name}/{key}", template, scratch)
        _pod_rules(f"{name}/{key}", template)
    print(f"deploy/k8s/{name}: {count} objects valid for Kubernetes {KUBERNETES_VERSION}")
    return manifest


def _check_component(component: Path, base: str, scratch: Path) -> None:
    """A component on top of the base: one whose patches meet nothing is a slip, too."""
    overlay = component.parents[1] / "overlays" / f"only-{component.name}"
    overlay.mkdir()
    kustomization = {"resources": ["../../base"], "components": [f"../../components/{component.name}"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    if _check(f"components/{component.name}", overlay, scratch) == base:
        raise SystemExit(f"components/{component.name}: changes nothing in the base")


def _templates(manifest: str) -> list[tuple[str, str]]:
    """What is made later of manifests that are the content of a ConfigMap, by file name."""
    found = []
    for document in filter(None, yaml.safe_load_all(manifest)):
        if document["kind"] == "ConfigMap":
            found += [(key, text) for key, text in document["data"].items() if key.endswith(".yaml")]
    return found


def _pod_rules(name: str, manifest: str) -> None:
    """The rules that a schema cannot say: no service links, never root, limits on every container."""
    for document in filter(None, yaml.safe_load_all(manifest)):
        pod = document.get("spec", {}).get("template", {}).get("spec")
        if pod is None:
            continue
        where = f"{name}: {document['kind']} {document['metadata']['name']}"
        if pod.get("enableServiceLinks") is not False:
            raise SystemExit(f"{where}: enableServiceLinks must be false")
        if pod.get("securityContext", {}).get("runAsNonRoot") is not True:
            raise SystemExit(f"{where}: runAsNonRoot must be true")
        for container in pod["containers"]:
            if "memory" not in container.get("resources", {}).get("limits", {}):
                raise SystemExit(f"{where}: container {container['name']} has no memory limit")


def main() -> None:
    if shutil.which("kubectl") is None:
        message = "manifests not checked: kubectl is not installed"
        if os.environ.get("CI"):
            raise SystemExit(message)
        print(message)
        return
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        tree = scratch / "k8s"
        shutil.copytree(DEPLOY / "k8s", tree, ignore=shutil.ignore_patterns("secrets"))
        make_secrets(tree / "overlays" / "dev" / "secrets")
        base = _check("base", tree / "base", scratch)
        for overlay in sorted((tree / "overlays").iterdir()):
            _check(f"overlays/{overlay.name}", overlay, scratch)
        for component in sorted((tree / "components").iterdir()):
            _check_component(component, base, scratch)


if __name__ == "__main__":
    main()
