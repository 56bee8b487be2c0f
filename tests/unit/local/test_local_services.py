from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from guidehall.core.auth import Authenticator, KeyPair, Role, TokenIssuer
from guidehall.core.errors import Unauthenticated
from guidehall.core.settings import AuthSettings
from guidehall.local import services
from guidehall.local.access import Backing
from guidehall.local.external import ExternalNats, ExternalPostgres, ExternalS3
from guidehall.local.files import Secrets
from guidehall.local.identity import Identity
from guidehall.local.ports import Ports

_PASSWORD = "hunter2-hunter2"


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    with Ports(tmp_path / "ports.json", usual=False) as chosen:
        yield chosen


def _site(
    folder: Path, ports: Ports, inherited: dict[str, str] | None = None, workers: int = 2
) -> services.Site:
    secrets = Secrets(folder / "secrets")
    postgres = ExternalPostgres(f"postgresql://me:{_PASSWORD}@db.example", secrets)
    return services.Site(
        data=folder,
        root=folder,
        ports=ports,
        identity=Identity(folder / "identity"),
        backing=Backing(
            programs=(),
            postgres=postgres.access,
            nats=ExternalNats(f"nats://me:{_PASSWORD}@nats.example", secrets).access,
            s3=ExternalS3(f"https://me:{_PASSWORD}@s3.example/bucket", secrets).access(),
            run_sql=postgres.run_sql,
            generation=postgres.generation,
        ),
        workers=workers,
        auth_mode="single",
        inherited=inherited or {},
    )


def test_no_secret_is_in_an_environment_or_a_command_line(tmp_path: Path, ports: Ports) -> None:
    site = _site(tmp_path, ports)

    programs = services.programs(site)

    secrets = [path.read_text() for path in (tmp_path / "secrets").iterdir()]
    assert _PASSWORD in secrets
    for program in programs:
        visible = " ".join((*program.argv, *program.environment.values()))
        assert not [secret for secret in secrets if secret in visible]


def test_a_service_gets_its_own_overrides_and_nobody_elses_settings(tmp_path: Path, ports: Ports) -> None:
    inherited = {
        "PATH": "/somewhere",
        "GUIDEHALL_POSTGRES_URL": f"postgresql://me:{_PASSWORD}@db.example",
        "GUIDEHALL_TRAINER__LEASE_SECONDS": "5",
        "GUIDEHALL_GATEWAY__HTTP__PORT": "8123",
        "GUIDEHALL_SCIENCE_MODULES": "tests.toy_science",
        "GUIDEHALL_TOKEN": "x",
    }

    programs = {program.name: program for program in services.programs(_site(tmp_path, ports, inherited))}

    trainer = programs["trainer"].environment
    assert trainer["GUIDEHALL_TRAINER__LEASE_SECONDS"] == "5"
    assert trainer["GUIDEHALL_SCIENCE_MODULES"] == "tests.toy_science"
    assert trainer["PATH"] == "/somewhere"
    ours = {name for name in trainer if name.startswith("GUIDEHALL_")}
    assert all(name.startswith(("GUIDEHALL_TRAINER__", "GUIDEHALL_SCIENCE_")) for name in ours)
    assert programs["gateway"].environment["GUIDEHALL_GATEWAY__HTTP__PORT"] == "8123"


def test_programs_are_listed_after_those_they_need(tmp_path: Path, ports: Ports) -> None:
    started = {"postgres", "nats", "s3"}

    for program in services.programs(_site(tmp_path, ports)):
        assert set(program.after) <= started, program.name
        # The reverse order of stopping rests on this too.
        assert set(program.uses) <= started, program.name
        started.add(program.name)

    assert {"worker-1", "worker-2", "gateway"} <= started


def test_workers_share_the_cores(tmp_path: Path, ports: Ports) -> None:
    programs = services.programs(_site(tmp_path, ports, workers=2 * (os.cpu_count() or 1)))

    assert {p.environment["OMP_NUM_THREADS"] for p in programs if p.name.startswith("worker-")} == {"1"}
    assert (
        len(
            {
                p.environment["GUIDEHALL_WORKER__OPS__PORT"]
                for p in programs
                if p.name in ("worker-1", "worker-2")
            }
        )
        == 2
    )


def test_endpoints_are_those_that_the_services_are_told(tmp_path: Path, ports: Ports) -> None:
    site = _site(tmp_path, ports)
    programs = {program.name: program for program in services.programs(site)}

    endpoints = services.endpoints(site)

    assert programs["trainer"].probe == f"grpc://{endpoints['trainer']}"
    assert programs["gateway"].environment["GUIDEHALL_GATEWAY__STORAGE__TARGET"] == endpoints["storage"]


@pytest.mark.parametrize(
    ("mode", "names"),
    [("single", []), ("token", ["token_file"]), ("proxy", ["proxy_secret_file", "token_file"])],
)
def test_people_get_credentials_where_they_need_some(
    tmp_path: Path, ports: Ports, mode: str, names: list[str]
) -> None:
    site = replace(_site(tmp_path, ports), auth_mode=mode)
    site.identity.ensure()
    gateway = {program.name: program for program in services.programs(site)}["gateway"].environment

    written = services.write_credentials(site)

    assert sorted(written) == names
    assert {Path(path).stat().st_mode & 0o777 for path in written.values()} <= {0o600}
    assert gateway.get("GUIDEHALL_GATEWAY__AUTH__PROXY_SECRET_FILE") == written.get("proxy_secret_file")
    if "token_file" in written:
        token = Path(written["token_file"]).read_text()
        settings = AuthSettings(mode="token", trust_file=site.identity.trust_file)
        headers = {"authorization": f"Bearer {token}"}
        who = asyncio.run(Authenticator(settings, "trainer").authenticate(headers, ""))
        assert (who.subject, who.kind, who.has(Role.ADMIN)) == ("local", "user", True)


def test_a_proxy_secret_of_ones_own_counts_more(tmp_path: Path, ports: Ports) -> None:
    inherited = {"GUIDEHALL_GATEWAY__AUTH__PROXY_SECRET": _PASSWORD}
    site = replace(_site(tmp_path, ports, inherited), auth_mode="proxy")

    gateway = {program.name: program for program in services.programs(site)}["gateway"].environment

    assert gateway["GUIDEHALL_GATEWAY__AUTH__PROXY_SECRET"] == _PASSWORD
    assert "GUIDEHALL_GATEWAY__AUTH__PROXY_SECRET_FILE" not in gateway
    site.identity.ensure()
    assert list(services.write_credentials(site)) == ["token_file"]


def test_keys_are_made_once_and_readable_by_nobody_else(tmp_path: Path) -> None:
    identity = Identity(tmp_path / "identity")

    identity.ensure()
    first = identity.key_file("storage").read_bytes()
    identity.ensure()

    assert identity.key_file("storage").read_bytes() == first
    assert {path.stat().st_mode & 0o077 for path in identity.folder.iterdir()} == {0}


@pytest.mark.parametrize(
    ("issuer", "kind", "trusted"),
    [
        ("storage", "user", True),
        ("trainer", "worker", True),
        ("trainer", "job", True),
        ("gateway", "service", True),
        ("gateway", "user", False),
        ("inference", "job", False),
        ("trainer", "user", False),
    ],
)
def test_each_service_may_vouch_for_its_own_kinds_only(
    tmp_path: Path, issuer: str, kind: str, trusted: bool
) -> None:
    identity = Identity(tmp_path / "identity")
    identity.ensure()
    key = KeyPair.load(identity.key_file(issuer))
    subject = issuer if kind == "service" else "somebody"
    token = TokenIssuer(issuer, key).mint(subject, kind, ttl_seconds=60)
    authenticator = Authenticator(AuthSettings(mode="token", trust_file=identity.trust_file), "trainer")
    headers = {"authorization": f"Bearer {token}"}

    if trusted:
        assert asyncio.run(authenticator.authenticate(headers, "")).kind == kind
    else:
        with pytest.raises(Unauthenticated):
            asyncio.run(authenticator.authenticate(headers, ""))
