"""Writes guidehall/contracts from the .proto files. `./run protos` calls it; `--check` only compares.

The generated modules import each other by proto path (`guidehall.jobs.v1`). They live below
`guidehall.contracts`, so those imports are rewritten; wire names stay as the protos say.
"""

from __future__ import annotations

import filecmp
import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
CONTRACTS = PROTOS.parent / "guidehall" / "contracts"
PACKAGE_DOC = '"""Generated from protos/ by `./run protos`. Never edited by hand."""\n'

# The standard's own package name, `inference`, and ours, `guidehall`, as they stand in generated imports.
_IMPORTS = (
    (re.compile(r"^(from|import) guidehall\.(?=\w+\.v1)", re.M), r"\1 guidehall.contracts."),
    (re.compile(r"^(from|import) inference(?= |\.)", re.M), r"\1 guidehall.contracts.inference"),
    (re.compile(r"(?<![\w.])guidehall\.(?=\w+\.v1\.\w+_pb2)"), "guidehall.contracts."),
    (re.compile(r"(?<![\w.])inference\.(?=open_inference_pb2)"), "guidehall.contracts.inference."),
)


def _rewrite_imports(text: str) -> str:
    for pattern, replacement in _IMPORTS:
        text = pattern.sub(replacement, text)
    return text


def generate(target: Path) -> None:
    """Generates every module into `target`, which must be empty or absent."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["protoc", f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
        arguments += [f"--{kind}_out={scratch}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        # The plugins of this environment, whether or not it is on PATH.
        programs = Path(sys.executable).parent
        arguments += [
            f"--plugin={programs / plugin}" for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
        ]
        if protoc.main(arguments + sources) != 0:
            raise SystemExit("protoc failed")
        root = Path(scratch)
        for produced in sorted(root.rglob("*.py*")):
            relative = produced.relative_to(root)
            if relative.parts[0] == "guidehall":
                relative = relative.relative_to("guidehall")
            destination = target / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_text(_rewrite_imports(produced.read_text()))
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").write_text(PACKAGE_DOC)


def _differences(left: Path, right: Path) -> list[str]:
    def listing(root: Path) -> set[Path]:
        return {
            p.relative_to(root) for p in root.rglob("*.py*") if p.is_file() and "__pycache__" not in p.parts
        }

    ours, fresh = listing(left), listing(right)
    changed = [p for p in ours & fresh if not filecmp.cmp(left / p, right / p, shallow=False)]
    return sorted(str(path) for path in (ours ^ fresh) | set(changed))


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            generate(Path(scratch))
            stale = _differences(CONTRACTS, Path(scratch))
        if stale:
            raise SystemExit(
                "guidehall/contracts is not what protos/ says; run ./run protos: " + ", ".join(stale)
            )
        return
    shutil.rmtree(CONTRACTS, ignore_errors=True)
    generate(CONTRACTS)


if __name__ == "__main__":
    main()
