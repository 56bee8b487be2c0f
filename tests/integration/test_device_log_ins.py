"""A program without a browser logs in: by codes that are good once, for a while, for who has a session."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from guidehall.contracts.identity.v1 import log_ins_pb2, log_ins_pb2_grpc
from guidehall.core.channels import credentials_interceptors
from guidehall.core.errors import from_rpc_error
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, facilities

PASSWORD = "correct horse battery"
SETTINGS = {
    "ACCOUNTS__MAX_ADDRESS_ATTEMPTS": 10_000,
    "ACCOUNTS__MAX_ACCOUNT_ATTEMPTS": 3,
    "ACCOUNTS__DEVICE_INTERVAL_SECONDS": 0.2,
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with facilities(backing, tmp_path_factory.mktemp("facility")) as start:
        # That there is one is enough: nobody comes by way of it here.
        provider = {"issuer": "https://facility.example", "client_id": "guidehall", "title": "The facility"}
        yield start(storage=SETTINGS, gateway={"LOG_IN__PROVIDERS": json.dumps({"facility": provider})})


@pytest.fixture
async def program(facility: Facility) -> AsyncIterator[httpx.AsyncClient]:
    async with facility.http() as client:
        yield client


@pytest.fixture
async def browser(facility: Facility) -> AsyncIterator[httpx.AsyncClient]:
    """Of somebody who has logged in."""
    user = f"ada-{next(_numbers)}-{uuid.uuid4().hex[:6]}"
    async with facility.admin() as admin:
        await admin.post("/api/v1/users", json={"user_id": user, "roles": ["SCIENTIST"]})
        await admin.post(f"/api/v1/users/{user}:set-password", json={"password": PASSWORD})
    async with facility.http(accept="text/html", origin=facility.url) as client:
        # As the page does it.
        form = {"user": user, "password": PASSWORD, "user_code": "X"}
        answer = await client.post("/auth/device/log-in", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/auth/device?user_code=X")
        client.headers["x-test-user"] = user
        yield client


async def begin(program: httpx.AsyncClient) -> dict[str, Any]:
    answer = await program.post("/auth/device/code", json={"client": "a <b>program</b>"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ask(program: httpx.AsyncClient, began: dict[str, Any]) -> tuple[int, str]:
    answer = await program.post("/auth/device/token", json={"device_code": began["device_code"]})
    body = answer.json()
    return answer.status_code, body.get("reason") or body["user"]["name"]


async def form_of(browser: httpx.AsyncClient, user_code: str) -> dict[str, str]:
    page = await browser.get("/auth/device", params={"user_code": user_code})
    assert page.status_code == 200, page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    return {
        name: unescape(value)
        for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text)
    }


async def decide(browser: httpx.AsyncClient, user_code: str, decision: str) -> httpx.Response:
    form = await form_of(browser, user_code)
    return await browser.post("/auth/device", data={**form, "decision": decision})


async def test_a_program_logs_in_once(program: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    user = browser.headers["x-test-user"]
    began = await begin(program)
    assert re.fullmatch(r"[B-DF-HJ-NP-TV-XZ]{4}-[B-DF-HJ-NP-TV-XZ]{4}", began["user_code"])
    assert await ask(program, began) == (400, "AUTHORIZATION_PENDING")
    page = await browser.get("/auth/device", params={"user_code": began["user_code"].lower()})
    assert "a &lt;b&gt;program&lt;/b&gt;" in page.text

    done = await decide(browser, began["user_code"], "approve")

    assert "logged in" in done.text
    assert await ask(program, began) == (200, f"users/{user}")
    assert await ask(program, began) == (401, "EXPIRED_TOKEN")
    # Nor is the user's code good for another one.
    again = await browser.get("/auth/device", params={"user_code": began["user_code"]})
    assert again.status_code == 404


async def test_who_asks_too_often_waits_longer(program: httpx.AsyncClient) -> None:
    began = await begin(program)
    await ask(program, began)
    answer = await program.post("/auth/device/token", json={"device_code": began["device_code"]})
    assert (answer.status_code, answer.json()["reason"]) == (429, "SLOW_DOWN")
    assert answer.headers["retry-after"] == "5"


async def test_a_refused_program_stays_out(program: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    began = await begin(program)
    assert "refused" in (await decide(browser, began["user_code"], "deny")).text
    assert await ask(program, began) == (403, "ACCESS_DENIED")
    assert await ask(program, began) == (401, "EXPIRED_TOKEN")


async def test_codes_are_hashed_and_end(facility: Facility, program: httpx.AsyncClient) -> None:
    began = await begin(program)
    rows = await facility.storage.fetch("SELECT * FROM identity.device_log_ins")
    for secret in (began["device_code"], began["user_code"], began["user_code"].replace("-", "")):
        assert secret not in str(rows)
    async with facility.storage.connection() as connection:
        await connection.execute("UPDATE identity.device_log_ins SET expire_time = now()")
    assert await ask(program, began) == (401, "EXPIRED_TOKEN")


async def test_codes_cannot_be_guessed(program: httpx.AsyncClient, browser: httpx.AsyncClient) -> None:
    began = await begin(program)
    answers = [await browser.get("/auth/device", params={"user_code": f"BBBB-BBB{x}"}) for x in "BCDF"]
    assert [answer.status_code for answer in answers] == [404, 404, 404, 429]
    right = await browser.get("/auth/device", params={"user_code": began["user_code"]})
    assert right.status_code == 429


async def test_another_sites_page_approves_nothing(
    facility: Facility, program: httpx.AsyncClient, browser: httpx.AsyncClient
) -> None:
    began = await begin(program)
    form = await form_of(browser, began["user_code"])
    approve = {**form, "decision": "approve"}

    foreign = await browser.post("/auth/device", data=approve, headers={"Origin": "https://evil.example"})
    forged = await browser.post("/auth/device", data={**approve, "form": "x"})
    other = await begin(program)
    moved = await browser.post("/auth/device", data={**approve, "user_code": other["user_code"]})
    async with facility.http(accept="text/html") as stranger:
        nobody = await stranger.post("/auth/device", data=approve)

    assert [foreign.status_code, forged.status_code, moved.status_code] == [403, 403, 403]
    assert nobody.status_code == 303
    assert await ask(program, began) == (400, "AUTHORIZATION_PENDING")
    assert await ask(program, other) == (400, "AUTHORIZATION_PENDING")


async def test_a_key_makes_no_session(
    facility: Facility, program: httpx.AsyncClient, browser: httpx.AsyncClient
) -> None:
    user = browser.headers["x-test-user"]
    async with facility.admin() as admin:
        made = await admin.post(f"/api/v1/users/{user}/keys", json={"roles": ["VIEWER"]})
    key = made.json()["secret"]
    began = await begin(program)
    request = log_ins_pb2.DecideDeviceLogInRequest(user_code=began["user_code"], approve=True)
    carry = credentials_interceptors(lambda: key)
    async with grpc.aio.insecure_channel(facility.storage.target, interceptors=carry) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await log_ins_pb2_grpc.LogInsServiceStub(channel).DecideDeviceLogIn(request, timeout=10)
    assert from_rpc_error(refused.value).reason == "NO_SESSION"
    async with facility.http(key, accept="text/html") as client:
        page = await client.get("/auth/device", params={"user_code": began["user_code"]})
    assert "Log in first" in page.text


async def test_who_was_disabled_meanwhile_gets_nothing(
    facility: Facility, program: httpx.AsyncClient, browser: httpx.AsyncClient
) -> None:
    began = await begin(program)
    await decide(browser, began["user_code"], "approve")
    async with facility.admin() as admin:
        await admin.patch(f"/api/v1/users/{browser.headers['x-test-user']}", json={"disabled": True})
        assert await ask(program, began) == (403, "USER_DISABLED")
        wanted = 'method = "/guidehall.identity.v1.LogInsService/FinishDeviceLogIn"'
        written = await admin.get(
            "/api/v1/audit", params={"filter": f'{wanted} AND outcome = "PERMISSION_DENIED"'}
        )
    assert len(written.json()["events"]) == 1


@pytest.mark.parametrize("words", [["--device"], []], ids=["asked for", "no name"])
async def test_the_command_line_logs_in(
    facility: Facility, browser: httpx.AsyncClient, tmp_path: Path, words: list[str]
) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GUIDEHALL_")}
    environ |= {"XDG_CONFIG_HOME": str(tmp_path), "GUIDEHALL_DATA": str(tmp_path / "data")}
    endpoints = f"storage={facility.storage.target},trainer={facility.trainer.target}"
    guidehall = [sys.executable, "-m", "guidehall.cli"]
    command = [*guidehall, "--endpoints", endpoints, "login", "--server", facility.url, *words, "--json"]
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    if not words:
        # With no name somebody who is at the facility logs in there.
        assert "The facility" in (await process.stderr.readline()).decode()
        process.stdin.write(b"\n")
    opened = (await process.stderr.readline()).decode().removeprefix("Name: ")
    code = (await process.stderr.readline()).decode().split()[-1]
    assert opened == f"open {facility.url}/auth/device?user_code={code}\n"

    await decide(browser, code, "approve")
    out, err = await process.communicate()

    assert process.returncode == 0, err
    assert browser.headers["x-test-user"] in out.decode()
    told = await asyncio.create_subprocess_exec(
        *guidehall, "whoami", env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert browser.headers["x-test-user"] in (await told.communicate())[0].decode()
