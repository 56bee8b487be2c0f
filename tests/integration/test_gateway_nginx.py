"""The gateway behind nginx as the how-to sets it up: events come as they happen, uploads pass whole."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.facility import Facility, StartFacility
from tests.fixtures.storage import MIB
from tests.missing import missing

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "put-nginx-in-front.md"
# More than nginx takes without being told.
UPLOAD_MIB = 20


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def facility(start_facility: StartFacility) -> Facility:
    return start_facility()


@pytest.fixture
def nginx(facility: Facility, tmp_path: Path) -> Iterator[str]:
    """Its address, with the location that the how-to shows and all else as it is by default."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        missing("nginx is not installed")
    found = re.search(r"```nginx\n(.*?)```", HOW_TO.read_text(), re.DOTALL)
    assert found is not None
    port = free_port()
    server = found[1].replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    server = re.sub(r"^ *ssl_.*\n", "", server, flags=re.MULTILINE)
    server = server.replace("127.0.0.1:8000", f"127.0.0.1:{facility.gateway.port}")
    places = "".join(
        f"  {name}_temp_path {tmp_path / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {tmp_path}/pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\n  access_log off;\n{places}{server}}}\n"
    )
    subprocess.run([program, "-t", "-c", config], check=True, capture_output=True)
    process = subprocess.Popen([program, "-c", config])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
async def test_events_come_one_by_one_and_a_large_upload_passes(facility: Facility, nginx: str) -> None:
    headers = {"Authorization": f"Bearer {facility.token('ada')}"}
    transport = httpx.AsyncHTTPTransport(retries=5)
    async with (
        asyncio.timeout(60),
        httpx.AsyncClient(base_url=nginx, headers=headers, timeout=30, transport=transport) as client,
    ):
        path = f"/api/v1/datasets/large-{free_port()}/versions?filename=a.bin"
        upload = await client.post(path, content=bytes(UPLOAD_MIB * MIB))
        assert upload.status_code == 201, upload.text
        assert int(upload.json()["object"]["size_bytes"]) == UPLOAD_MIB * MIB

        body = {"pipeline": "toy.line", "params": {}, "pool": "cpu"}
        job = await client.post("/api/v1/jobs", json=body)
        assert job.status_code == 201, job.text
        name = f"/api/v1/{job.json()['name'].partition('projects/default/')[2]}"
        kinds = []
        async with client.stream("GET", f"{name}/events") as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if line.startswith("event: "):
                    kinds.append(line)
                    if len(kinds) == 1:
                        # It waits for a worker: the job goes on only because its first event has come.
                        assert (await client.post(f"{name}:cancel")).status_code == 200
        assert len(kinds) > 1
