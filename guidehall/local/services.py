"""The table of services: what each runs, needs and is told."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from guidehall.core.faults import VARIABLE as FAULTS_VARIABLE
from guidehall.local.access import Backing
from guidehall.local.errors import StackError
from guidehall.local.files import Secrets, read_json, write_json
from guidehall.local.identity import Identity
from guidehall.local.ports import LOOPBACK, Ports
from guidehall.local.processes import Program, Run
from guidehall.local.schema import SchemaRecord, version_sql

DATABASES = {"storage": "guidehall_storage", "trainer": "guidehall_trainer"}
WORKER_POOL = "cpu"

_PORTS = {"gateway": 8000, "trainer": 7101, "storage": 7102, "inference": 7103}
_OPS_PORTS = {"trainer": 7201, "storage": 7202, "inference": 7203, "gateway": 7204}
_FIRST_WORKER_OPS_PORT = 7210
# How long the workers' credential holds; a start after half of that renews it.
_CREDENTIAL_DAYS = 365
_DAY_SECONDS = 86_400.0
# For a running job to reach its next checkpoint when the stack stops.
WORKER_DRAIN_SECONDS = 15.0
_PROXY_SECRET = "proxy-secret"  # noqa: S105 (a file's name)
# Variables of the person at the terminal that every service gets as they are.
_SHARED_PREFIX = "GUIDEHALL_SCIENCE_"


@dataclass(frozen=True)
class Site:
    """What the services are told about where they run.

    Attributes:
        data: the data folder of the stack.
        root: the folder that holds the package `services`.
        backing: the servers that they stand on.
        workers: how many training workers run.
        auth_mode: "single", "proxy" or "token".
        inherited: variables of the person at the terminal.
    """

    data: Path
    root: Path
    ports: Ports
    identity: Identity
    backing: Backing
    workers: int
    auth_mode: str
    inherited: Mapping[str, str]

    def port(self, service: str) -> int:
        """The port that a service serves on."""
        return self.ports.choose(service, _PORTS[service])

    def ops_port(self, service: str) -> int:
        """The port of a service's metrics and health."""
        if service.startswith("worker-"):
            usual = _FIRST_WORKER_OPS_PORT + int(service.removeprefix("worker-"))
        else:
            usual = _OPS_PORTS[service]
        return self.ports.choose(f"{service}-ops", usual)

    @property
    def temporary(self) -> Path:
        """Where workers put the folders of running jobs."""
        return self.data / "tmp"

    @property
    def credential_file(self) -> Path:
        """The credential of the workers' pool."""
        return self.data / "secrets" / f"worker-{WORKER_POOL}.credential"


def programs(site: Site) -> list[Program]:
    """The services as programs to supervise, each after those that it needs."""
    return [
        _storage(site),
        _trainer(site),
        _inference(site),
        *(_worker(site, f"worker-{number}") for number in range(1, site.workers + 1)),
        _gateway(site),
    ]


def endpoints(site: Site) -> dict[str, object]:
    """Where clients find the services."""
    services = ("trainer", "storage", "inference", "gateway")
    workers = tuple(f"worker-{number}" for number in range(1, site.workers + 1))
    return {
        "gateway": f"http://{LOOPBACK}:{site.port('gateway')}",
        "trainer": _target(site, "trainer"),
        "storage": _target(site, "storage"),
        "inference": _target(site, "inference"),
        "ops": {name: f"http://{LOOPBACK}:{site.ops_port(name)}" for name in (*services, *workers)},
    }


def write_credentials(site: Site) -> dict[str, str]:
    """Writes what people need where not everybody on this machine may do everything; the files, by name.

    Each start makes a new token for an administrator; in proxy mode the proxy's secret stays the same.
    """
    if site.auth_mode == "single":
        return {}
    secrets = Secrets(site.data / "secrets")
    token = secrets.keep("administrator.token", site.identity.administrator_token())
    if not _proxy(site):
        return {"token_file": str(token)}
    return {"token_file": str(token), "proxy_secret_file": str(secrets.path(_PROXY_SECRET))}


def find_root() -> Path:
    """The folder that holds the package `services`.

    Raises:
        StackError: there is none; the wheel carries the client, the services come as a checkout.
    """
    spec = importlib.util.find_spec("services")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).parent
    checkout = Path(__file__).parents[2]
    if (checkout / "services" / "trainer").is_dir():
        return checkout
    raise StackError("the services are not here: `guidehall up` runs them from a checkout of the project")


def _storage(site: Site) -> Program:
    environment = _environment(
        site,
        "storage",
        "STORAGE",
        _grpc(site, "storage"),
        _auth(site, "storage"),
        _postgres(site, "storage"),
        _nats(site, "storage"),
        _s3(site),
    )
    return Program(
        name="storage",
        argv=_module("services.storage", "serve"),
        environment=environment,
        folder=site.root,
        probe=f"grpc://{_target(site, 'storage')}",
        after=("postgres", "nats", "s3"),
        prepare=lambda run: _migrate(site, "storage", run, environment),
    )


def _trainer(site: Site) -> Program:
    environment = _environment(
        site,
        "trainer",
        "TRAINER",
        _grpc(site, "trainer"),
        _auth(site, "trainer"),
        _postgres(site, "trainer"),
        _nats(site, "trainer"),
        {"STORAGE__TARGET": _target(site, "storage")},
    )

    def prepare(run: Run) -> None:
        _migrate(site, "trainer", run, environment)
        enrolment = site.credential_file.with_suffix(".json")
        known = read_json(enrolment)
        if known.get("generation") == site.backing.generation() and known.get("renew_at", 0.0) > time.time():
            return
        arguments = (
            "--pool",
            WORKER_POOL,
            "--days",
            str(_CREDENTIAL_DAYS),
            "--out",
            str(site.credential_file),
        )
        run(_module("services.trainer", "enrol", *arguments), environment)
        renew_at = time.time() + _CREDENTIAL_DAYS * _DAY_SECONDS / 2
        write_json(enrolment, {"generation": site.backing.generation(), "renew_at": renew_at})

    return Program(
        name="trainer",
        argv=_module("services.trainer", "api"),
        environment=environment,
        folder=site.root,
        probe=f"grpc://{_target(site, 'trainer')}",
        after=("postgres", "nats"),
        uses=("storage",),
        prepare=prepare,
    )


def _migrate(site: Site, service: str, run: Run, environment: Mapping[str, str]) -> None:
    """Brings the schema of a service up to date, unless it is known to be."""
    record = SchemaRecord(
        site.data / f"schema-{service}.json", site.root / "services" / service / "migrations"
    )
    ask = version_sql(DATABASES[service])
    if not record.holds(site.backing.run_sql(ask)):
        run(_module(f"services.{service}", "migrate"), environment)
        record.keep(site.backing.run_sql(ask))


def _inference(site: Site) -> Program:
    return Program(
        name="inference",
        argv=_module("services.inference", "serve"),
        environment=_environment(
            site,
            "inference",
            "INFERENCE",
            _grpc(site, "inference"),
            _auth(site, "inference"),
            _nats(site, "inference"),
            {
                "STORAGE__TARGET": _target(site, "storage"),
                "CACHE_DIR": str(site.data / "inference" / "cache"),
                # It may be up before storage is.
                "REPOSITORY__RETRY_SECONDS": "1",
            },
            threads=_threads(2),
        ),
        folder=site.root,
        # Its own name rather than "": once it knows its models, and not as soon as it listens.
        probe=f"grpc://{_target(site, 'inference')}/inference.GRPCInferenceService",
        # Importing torch takes longest: it looks for storage when it is done.
        uses=("storage", "nats"),
    )


def _worker(site: Site, name: str) -> Program:
    settings = {
        **_nats(site, "worker"),
        "POOL": WORKER_POOL,
        "CREDENTIAL_FILE": str(site.credential_file),
        "TRAINER__TARGET": _target(site, "trainer"),
        "STORAGE__TARGET": _target(site, "storage"),
        "TEMP_DIR": str(site.temporary),
    }
    return worker_program(name, settings, site.ops_port(name), site.root, site.workers, site.inherited)


def worker_program(
    name: str,
    settings: Mapping[str, str],
    ops_port: int,
    root: Path,
    sharers: int,
    inherited: Mapping[str, str],
) -> Program:
    """A worker to supervise.

    Args:
        name: what people call it, and its log.
        settings: its own, by their names without the prefix.
        ops_port: of its health and metrics.
        root: the folder that holds the package `services`.
        sharers: how many workers share this machine's cores.
        inherited: variables of the person at the terminal, whose GUIDEHALL_WORKER__... override `settings`.
    """
    threads = _threads(sharers)
    own = {"CHILD__THREADS": str(threads), "DRAIN_SECONDS": str(WORKER_DRAIN_SECONDS), **settings}
    return Program(
        name=name,
        argv=_module("services.trainer", "worker"),
        environment=_environment_of(inherited, ops_port, "WORKER", own, threads=threads),
        folder=root,
        probe=f"http://{LOOPBACK}:{ops_port}/health",
        after=("trainer",),
        uses=("storage", "nats"),
        stop_seconds=WORKER_DRAIN_SECONDS + 5.0,
    )


def _gateway(site: Site) -> Program:
    return Program(
        name="gateway",
        argv=_module("services.gateway", "serve"),
        environment=_environment(
            site,
            "gateway",
            "GATEWAY",
            _auth(site, "gateway"),
            _proxy(site),
            {
                "HTTP__HOST": LOOPBACK,
                "HTTP__PORT": str(site.port("gateway")),
                "TRAINER__TARGET": _target(site, "trainer"),
                "STORAGE__TARGET": _target(site, "storage"),
                "INFERENCE__TARGET": _target(site, "inference"),
            },
        ),
        folder=site.root,
        probe=f"http://{LOOPBACK}:{site.ops_port('gateway')}/health",
        uses=("trainer", "storage", "inference"),
    )


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name, *arguments)


def _target(site: Site, service: str) -> str:
    return f"{LOOPBACK}:{site.port(service)}"


def _threads(sharers: int) -> int:
    return max(1, (os.cpu_count() or 1) // max(1, sharers))


def _environment(
    site: Site, name: str, prefix: str, *settings: Mapping[str, str], threads: int = 1
) -> dict[str, str]:
    """The environment of a service of this site."""
    return _environment_of(site.inherited, site.ops_port(name), prefix, *settings, threads=threads)


def _environment_of(
    inherited: Mapping[str, str], ops_port: int, prefix: str, *settings: Mapping[str, str], threads: int
) -> dict[str, str]:
    """The environment of a service: ours without the settings of others, its own, what overrides these."""
    ours = {key: value for key, value in inherited.items() if not key.startswith("GUIDEHALL_")}
    shared = {
        key: value
        for key, value in inherited.items()
        if key.startswith(_SHARED_PREFIX) or key == FAULTS_VARIABLE
    }
    own: dict[str, str] = {"OPS__HOST": LOOPBACK, "OPS__PORT": str(ops_port)}
    for part in settings:
        own.update(part)
    prefixed = {f"GUIDEHALL_{prefix}__{key}": value for key, value in own.items()}
    overrides = {key: value for key, value in inherited.items() if key.startswith(f"GUIDEHALL_{prefix}__")}
    # As many threads as the machine has cores in every service would only make them fight.
    limits = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    return {"PYTHONUNBUFFERED": "1"} | limits | ours | shared | prefixed | overrides


def _grpc(site: Site, service: str) -> dict[str, str]:
    return {"GRPC__HOST": LOOPBACK, "GRPC__PORT": str(site.port(service))}


def _auth(site: Site, service: str) -> dict[str, str]:
    return {
        "AUTH__MODE": site.auth_mode,
        "AUTH__SERVICE_KEY_FILE": str(site.identity.key_file(service)),
        "AUTH__TRUST_FILE": str(site.identity.trust_file),
    }


def _proxy(site: Site) -> dict[str, str]:
    given = any(name.startswith("GUIDEHALL_GATEWAY__AUTH__PROXY_SECRET") for name in site.inherited)
    if site.auth_mode != "proxy" or given:
        return {}
    return {"AUTH__PROXY_SECRET_FILE": str(Secrets(site.data / "secrets").path(_PROXY_SECRET))}


def _postgres(site: Site, service: str) -> dict[str, str]:
    access = site.backing.postgres(DATABASES[service])
    return {
        "POSTGRES__HOST": access.host,
        "POSTGRES__PORT": str(access.port),
        "POSTGRES__DATABASE": access.database,
        "POSTGRES__USER": access.user,
        "POSTGRES__PASSWORD_FILE": str(access.password_file),
    }


def _nats(site: Site, user: str) -> dict[str, str]:
    access = site.backing.nats(user)
    return {
        "NATS__URL": access.url,
        "NATS__USER": access.user,
        "NATS__PASSWORD_FILE": str(access.password_file),
    }


def _s3(site: Site) -> dict[str, str]:
    access = site.backing.s3
    return {
        "S3__ENDPOINT": access.endpoint,
        "S3__ACCESS_KEY": access.access_key,
        "S3__SECRET_KEY_FILE": str(access.secret_key_file),
        "S3__BUCKET": access.bucket,
        "S3__SECURE": "true" if access.secure else "false",
    }
