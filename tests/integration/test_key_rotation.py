"""Another key signs access tokens: nobody is thrown out, and what the old one signed ends in time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import jwt
import pytest

from tests.fixtures.facility import Facility, StartFacility

PASSWORD = "correct horse battery"
pytestmark = pytest.mark.slow


async def status(facility: Facility, token: str) -> int:
    async with facility.http(token) as http:
        return (await http.get("/api/v1/whoami")).status_code


async def log_in(anybody: httpx.AsyncClient) -> str:
    answer = await anybody.post("/auth/login", json={"user": "ada", "password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def rotate(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "guidehall.cli", "rotate-key", "--folder", str(folder), *arguments]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GUIDEHALL_")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


async def test_another_key_signs_and_the_old_one_holds_for_a_while(start_facility: StartFacility) -> None:
    facility = start_facility()
    identity = facility.storage.identity
    administrator = identity.folder / "administrator.token"
    administrator.write_text(identity.administrator_token())
    async with facility.admin() as admin:
        await admin.post("/api/v1/users", json={"user_id": "ada", "roles": ["SCIENTIST"]})
        await admin.post("/api/v1/users/ada:set-password", json={"password": PASSWORD})
    async with facility.http() as anybody:
        first = await log_in(anybody)

        rotate(identity.folder, "--step", "announce")
        before = await log_in(anybody)
        # Another start of the stack keeps what was announced.
        identity.ensure()
        told = rotate(identity.folder, "--step", "sign", "--keep", "1h")
        second = await log_in(anybody)
        identity.ensure()

        assert "what the old one has signed holds" in told
        assert kid(first) == kid(before) != kid(second)
        assert [await status(facility, token) for token in (first, second)] == [200, 200]
        assert kid(administrator.read_text()) == kid(second)
        assert await status(facility, administrator.read_text()) == 200

        identity.announce_key()
        identity.change_key(keep_seconds=0)
        third = await log_in(anybody)

    assert kid(third) not in (kid(first), kid(second))
    # The second key is over, whoever had seen the token before; the first still has its hour.
    assert [await status(facility, token) for token in (first, second, third)] == [200, 401, 200]
    assert (identity.key_file("storage").stat().st_mode & 0o777) == 0o600
