"""The audit log over HTTP: one event for each mutation, counts of reads; exports and erasures of people."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from guidehall.cli._app import run
from guidehall.core import audit_chain
from guidehall.core.auth import Role
from guidehall.local.backing import BackingServers
from tests.fixtures.facility import Facility, facilities
from tests.fixtures.storage import eventually

pytestmark = pytest.mark.slow

PASSWORD = "correct horse battery"
SETTINGS = {
    "ACCOUNTS__REGISTRATION": "invite",
    "ACCOUNTS__MAX_ACCOUNT_ATTEMPTS": 2,
    "ACCOUNTS__ERASE_AFTER_SECONDS": 0.1,
    "AUDIT__SEAL_SECONDS": 0.2,
}


@pytest.fixture(scope="module")
def facility(backing: BackingServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facility]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDEHALL_TRAINER__SWEEP__ERASURE_SECONDS", "0.5")
        with facilities(backing, tmp_path_factory.mktemp("facility")) as start:
            yield start(storage=SETTINGS)


class Caller:
    """Asks, each time with a request id of its own, which the audit log can be asked for."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, method: str, path: str, expected: int = 200, **more: Any) -> Any:
        request_id = uuid.uuid4().hex
        headers = {"X-Request-ID": request_id}
        answer = await self._client.request(method, path, headers=headers, **more)
        assert answer.status_code == expected, f"{method} {path}: {answer.text}"
        self.asked.append((request_id, f"{method} {path}"))
        return answer.json() if answer.content else None


async def events(facility: Facility, filter_text: str, **more: Any) -> list[dict[str, Any]]:
    async with facility.admin() as admin:
        answer = await admin.get("/api/v1/audit", params={"filter": filter_text, **more})
    assert answer.status_code == 200, answer.text
    return list(answer.json().get("events", []))


async def account(facility: Facility) -> str:
    user = f"ada-{uuid.uuid4().hex[:8]}"
    async with facility.admin() as admin:
        body = {"user_id": user, "roles": ["SCIENTIST"], "email": f"{user}@example.org"}
        assert (await admin.post("/api/v1/users", json=body)).status_code == 201
        path = f"/api/v1/users/{user}:set-password"
        assert (await admin.post(path, json={"password": PASSWORD})).status_code == 200
    return user


async def test_each_mutation_leaves_one_event(facility: Facility) -> None:
    user, tag = f"eve-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex[:8]
    async with facility.admin() as client, facility.http() as anybody:
        admin, stranger = Caller(client), Caller(anybody)
        users, of_user = "/api/v1/users", f"/api/v1/users/{user}"
        await admin("POST", users, 201, json={"user_id": user, "roles": ["SCIENTIST"]})
        await admin("PATCH", of_user, json={"display_name": "Eve"})
        await admin("POST", f"{of_user}:set-password", json={"password": PASSWORD})
        invitation = await admin("POST", "/api/v1/invitations", 201, json={})
        await admin("DELETE", f"/api/v1/{invitation['invitation']['name']}")
        tokens = await stranger("POST", "/auth/login", json={"user": user, "password": PASSWORD})
        await stranger("POST", "/auth/logout", 204, json={"refresh_token": tokens["refresh_token"]})
        key = await admin("POST", f"{of_user}/keys", 201, json={})
        await admin("POST", f"{of_user}/keys/{key['api_key']['name'].rpartition('/')[2]}:revoke")
        await admin("POST", f"{of_user}/sessions:revoke")
        await admin("POST", "/api/v1/datasets", 201, json={"dataset_id": f"d-{tag}"})
        upload = f"/api/v1/datasets/d-{tag}/versions?filename=a.txt"
        await admin("POST", upload, 201, content=b"1 2 3\n")
        await admin("DELETE", f"/api/v1/datasets/d-{tag}")
        job = await admin("POST", "/api/v1/jobs", 201, json={"pipeline": "toy.line"})
        of_job = f"/api/v1/jobs/{job['name'].rpartition('/')[2]}"
        await admin("POST", f"{of_job}:cancel")
        await admin("DELETE", of_job)
    for request_id, what in (*admin.asked, *stranger.asked):
        found: list[dict[str, Any]] = []

        async def told(request_id: str = request_id) -> bool:
            nonlocal found
            found = await events(facility, f'request_id = "{request_id}"')
            return bool(found)

        await eventually(told, lambda what=what: f"{what}: nothing")
        assert [event["outcome"] for event in found] == ["OK"], f"{what}: {found}"


async def test_log_ins_that_fail_are_in_it_without_what_was_typed(facility: Facility) -> None:
    user = await account(facility)
    async with facility.http() as anybody:
        for name, password in ((user, "wrong password 1"), ("secret horse 9", PASSWORD)):
            body = {"user": name, "password": password}
            assert (await anybody.post("/auth/login", json=body)).status_code == 401
        for _ in range(3):
            await anybody.post("/auth/login", json={"user": user, "password": "wrong password 2"})

    told = await events(facility, f'resource = "users/{user}" AND method : "LogIn"')
    nobody = await events(facility, 'resource = "users/-" AND outcome = UNAUTHENTICATED')

    outcomes = [event["outcome"] for event in told]
    assert outcomes == ["RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "UNAUTHENTICATED"]
    assert len(nobody) == 1
    rows = await facility.storage.fetch("SELECT to_jsonb(e)::text AS line FROM audit.events AS e")
    for secret in ("wrong password", "secret horse", PASSWORD):
        assert not any(secret in row["line"] for row in rows)


async def test_lists_refuse_in_problem_details_and_show_ones_own(facility: Facility) -> None:
    user = await account(facility)
    async with facility.http(facility.token(user)) as ada, facility.admin() as admin:
        listed = (await ada.get("/api/v1/audit")).json()["events"]
        refused = await ada.get("/api/v1/audit", params={"filter": "time > yesterday"})
        forbidden = await ada.get("/api/v1/audit:export")
        exported = await admin.get("/api/v1/audit:export")

    assert {event["resource"] for event in listed} == {f"users/{user}"}
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    assert "time > yesterday" in refused.json()["detail"]
    assert forbidden.status_code == 403
    assert exported.headers["content-type"].startswith("application/x-ndjson")
    assert audit_chain.verify(exported.text.splitlines()).events > 1


async def test_a_person_is_exported_and_erased_with_their_jobs(facility: Facility) -> None:
    user = await account(facility)
    async with facility.http(facility.token(user)) as ada:
        submitted = await ada.post("/api/v1/jobs", json={"pipeline": "toy.line"})
        assert submitted.status_code == 201, submitted.text
        told = await ada.get(f"/api/v1/users/{user}:export")
    lines = [json.loads(line) for line in told.text.splitlines()]
    assert lines[0]["type"] == "account"
    assert [line["name"] for line in lines if line["type"] == "job"] == [submitted.json()["name"]]
    assert lines[-1] == {"type": "end"}

    async with facility.admin() as admin:
        begun = (await admin.post(f"/api/v1/users/{user}:erase")).json()
        state: dict[str, Any] = {}

        async def done() -> bool:
            nonlocal state
            state = (await admin.get(f"/api/v1/{begun['name']}")).json()
            return bool(state.get("done_time"))

        await eventually(done, lambda: str(state), seconds=60)
        assert (await admin.get(f"/api/v1/users/{user}")).status_code == 404
        assert (await admin.post(f"/api/v1/users/{user}:erase")).status_code == 404

    for table in ("jobs", "request_ids", "outbox"):
        sql = f"SELECT FROM trainer.{table} AS r WHERE to_jsonb(r)::text LIKE $1"
        assert await facility.trainer.fetch(sql, f"%{user}%") == [], table
    left = await events(facility, f'subject = "{state["pseudonym"]}"')
    assert {event["subject"] for event in left} == {state["pseudonym"]}


async def test_jobs_go_to_somebody_else(facility: Facility) -> None:
    user, heir = await account(facility), await account(facility)
    async with facility.http(facility.token(user)) as ada:
        job = (await ada.post("/api/v1/jobs", json={"pipeline": "toy.line"})).json()
    async with facility.admin() as admin, facility.http(facility.token(heir)) as bob:
        answer = await admin.post(f"/api/v1/users/{user}:erase", json={"hand_over_to": heir})
        assert answer.status_code == 200, answer.text

        async def has_it() -> bool:
            found = await bob.get(f"/api/v1/jobs/{job['name'].rpartition('/')[2]}")
            return found.status_code == 200 and found.json()["owner"] == heir

        await eventually(has_it, seconds=60)


async def test_the_command_line(
    facility: Facility, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    user = await account(facility)
    monkeypatch.setenv("GUIDEHALL_TOKEN", facility.token("root", Role.ADMIN))
    services = f"storage={facility.storage.target},trainer={facility.trainer.target},inference=127.0.0.1:1"

    def told(*words: str) -> str:
        capsys.readouterr()
        assert run(["--endpoints", services, *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    listed = json.loads(told("audit", "list", "--filter", f'resource = "users/{user}"', "--json"))
    assert [event["method"].rpartition("/")[2] for event in listed] == ["SetPassword", "CreateUser"]
    assert "SetPassword" in told("audit", "list", "--limit", "1", "--filter", "method : SetPassword")
    file = tmp_path / "audit.jsonl"
    file.write_text(told("audit", "export"))
    assert "holds from its beginning" in told("audit", "verify", str(file))
    assert json.loads(told("audit", "verify", "--json"))["events"] > 1
    assert f'"id": "{user}"' in told("people", "export", user)
    begun = json.loads(told("people", "erase", user, "--yes", "--json"))
    assert begun["name"] in told("people", "erasure", begun["name"])
