"""`guidehall login`, `logout`, `whoami` and `tokens` against a facility, as a person types them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from guidehall.core.auth import Role
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, facilities
from tests.fixtures.gateway import Gateway

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("facility")) as start:
        # Access tokens of seconds: every command has to refresh the session.
        yield start(storage={"ACCOUNTS__ACCESS_SECONDS": 2})


class Person:
    """Somebody at a terminal, with a home of their own."""

    def __init__(self, facility: Facility, home: Path) -> None:
        self._facility = facility
        self.home = home

    @property
    def endpoints(self) -> str:
        storage, trainer = self._facility.storage.target, self._facility.trainer.target
        return f"storage={storage},trainer={trainer}"

    @property
    def profiles(self) -> Path:
        return self.home / "config" / "guidehall" / "profiles.json"

    def types(self, *arguments: str, said: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        cleared = {key: value for key, value in os.environ.items() if not key.startswith("GUIDEHALL_")}
        places = {"XDG_CONFIG_HOME": str(self.home / "config"), "GUIDEHALL_DATA": str(self.home / "data")}
        return subprocess.run(
            [sys.executable, "-m", "guidehall.cli", *arguments],
            env={**cleared, **places, **environ},
            input=said,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def logs_in(self, user: str, *more: str, password: str = PASSWORD) -> subprocess.CompletedProcess[str]:
        words = ("--endpoints", self.endpoints, "login", "--server", self._facility.url, "--user", user)
        return self.types(*words, *more, said=f"{password}\n")

    def is_told(self, *arguments: str) -> Any:
        done = self.types(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def person(facility: Facility, tmp_path: Path) -> Person:
    return Person(facility, tmp_path)


def make_account(facility: Facility, user: str, role: str = "SCIENTIST") -> None:
    headers = {"Authorization": f"Bearer {facility.token('root', Role.ADMIN)}"}
    with httpx.Client(base_url=facility.url, headers=headers, timeout=30) as admin:
        made = admin.post("/api/v1/users", json={"user_id": user, "roles": [role]})
        assert made.status_code == 201, made.text
        admin.post(f"/api/v1/users/{user}:set-password", json={"password": PASSWORD}).raise_for_status()


def test_after_a_log_in_every_command_is_in_ones_name_until_the_log_out(
    facility: Facility, person: Person
) -> None:
    make_account(facility, "ann")

    wrong = person.logs_in("ann", password="not it")
    assert (wrong.returncode, wrong.stdout) == (5, "")
    assert not person.profiles.exists()
    logged_in = person.logs_in("ann")
    assert logged_in.returncode == 0, logged_in.stderr
    assert logged_in.stdout == f"logged in at {facility.url} as ann\n"
    assert stat.S_IMODE(person.profiles.stat().st_mode) == 0o600
    assert PASSWORD not in person.profiles.read_text()

    before = json.loads(person.profiles.read_text())["servers"][facility.url]
    assert person.is_told("whoami")["subject"] == "ann"
    assert f"server   {facility.url}" in person.types("whoami").stdout
    assert person.is_told("jobs") == []
    after = json.loads(person.profiles.read_text())["servers"][facility.url]
    assert after["refresh_token"] != before["refresh_token"]
    # A refresh token is good once: those who come at the same time take turns.
    with ThreadPoolExecutor(3) as threads:
        told = list(threads.map(lambda _: person.is_told("whoami")["subject"], range(3)))
    assert told == ["ann"] * 3

    out = person.types("logout")
    assert (out.returncode, out.stdout) == (0, f"logged out at {facility.url}\n")
    assert person.types("whoami").returncode == 4
    assert person.types("logout").returncode == 1
    last = after["refresh_token"]
    answer = httpx.post(f"{facility.url}/auth/refresh", json={"refresh_token": last}, timeout=30)
    assert answer.status_code == 401
    assert last not in person.profiles.read_text()


def test_keys_are_made_listed_used_and_revoked(facility: Facility, person: Person, tmp_path: Path) -> None:
    make_account(facility, "olga", "OPERATOR")
    assert person.logs_in("olga").returncode == 0

    made = person.types("tokens", "create", "--name", "beamline-7", "--role", "viewer", "--ttl", "90d")
    key = made.stdout.strip()
    assert key.startswith("gh_")
    assert key not in made.stderr
    assert person.types("tokens", "create", "--role", "admin").returncode == 5
    (listed,) = person.is_told("tokens")
    assert (listed["display_name"], listed["roles"]) == ("beamline-7", ["VIEWER"])

    program = Person(facility, tmp_path / "program")
    words = ("--endpoints", program.endpoints, "login", "--server", facility.url, "--key")
    logged_in = program.types(*words, said=f"{key}\n")
    assert logged_in.returncode == 0, logged_in.stderr
    assert program.is_told("whoami")["roles"] == ["VIEWER"]
    assert program.types("workers", "credentials").returncode == 5
    # What the environment says counts more, and a profile is for its own server alone.
    given = program.types("whoami", "--json", GUIDEHALL_TOKEN=facility.token("eve"))
    assert json.loads(given.stdout)["subject"] == "eve"
    elsewhere = program.types(
        "--endpoints", f"storage=localhost:{program.endpoints.split(':')[1].split(',')[0]}", "whoami"
    )
    assert elsewhere.returncode == 5
    assert "a credential is needed" in elsewhere.stderr

    revoked = person.types("tokens", "revoke", listed["id"][:8])
    assert revoked.stdout == f"API key {listed['id'][:8]} of olga is revoked\n"
    assert program.types(*words, said=f"{key}\n").returncode in (0, 5)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"current": "x", "serv', "not JSON, line 1 column"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[]", "not a JSON object"),
        (b'{"servers": {"https://a.example": []}}', "servers.'https://a.example' is no object"),
        (b'{"servers": {"https://a.example": {}}}', "subject is missing"),
        (
            b'{"servers": {"https://a.example": {"subject": "a", "refresh_token": 7654321}}}',
            "refresh_token is of the wrong type",
        ),
    ],
)
def test_a_damaged_file_of_profiles_is_refused_and_left_as_it_is(
    facility: Facility, person: Person, content: bytes, problem: str
) -> None:
    person.profiles.parent.mkdir(parents=True)
    person.profiles.write_bytes(content)
    for refused in (person.logs_in("ann"), person.types("logout"), person.types("jobs")):
        assert refused.returncode == 1, refused.stderr
        assert f"{person.profiles}: " in refused.stderr
        assert problem in refused.stderr
        assert "remove it and log in again" in refused.stderr
        assert "7654321" not in refused.stderr
        assert "Password" not in refused.stderr
    assert person.profiles.read_bytes() == content


def test_services_that_are_called_in_the_clear_are_named_at_the_log_in(
    facility: Facility, person: Person
) -> None:
    make_account(facility, "kim")
    endpoints = "storage=storage.example:7102,trainer=grpcs://trainer.example:7101,inference=[::1]:7103"
    words = ("--endpoints", endpoints, "login", "--server", facility.url, "--user", "kim")
    done = person.types(*words, said=f"{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    (warning,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
    assert "storage at storage.example:7102 is not encrypted" in warning
    assert "warning" not in person.logs_in("kim").stderr


def test_what_cannot_be_is_said_before_a_password_is_asked_for(facility: Facility, person: Person) -> None:
    for words, said in (
        (("login",), "none runs on this machine"),
        (("login", "--server", "guidehall.example"), "http:// or https://"),
        (("login", "--server", facility.url), "does not tell the addresses"),
        (("login", "--server", "http://127.0.0.1:1"), "cannot be reached"),
        (("login", "--server", facility.url, "--key", "--user", "a"), "exclude each other"),
    ):
        refused = person.types(*words)
        assert refused.returncode in (1, 2, 4), words
        assert said in refused.stderr, refused.stderr
    assert not person.profiles.exists()


def test_where_nobody_logs_in_that_is_said_before_a_name_is_asked_for(
    facility: Facility, person: Person
) -> None:
    single = Gateway(facility.storage.identity, STORAGE__TARGET=facility.storage.target)
    try:
        words = ("--endpoints", person.endpoints, "login", "--server", f"http://127.0.0.1:{single.port}")
        refused = person.types(*words, said="kim\n")
    finally:
        single.stop()
    assert refused.returncode == 1
    assert "it is in mode single" in refused.stderr
    assert "Name" not in refused.stderr
    assert not person.profiles.exists()
