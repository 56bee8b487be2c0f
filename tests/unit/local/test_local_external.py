from __future__ import annotations

import socket
from pathlib import Path

import pytest

from guidehall.local.errors import StackError
from guidehall.local.external import ExternalNats, ExternalS3, parse_url
from guidehall.local.files import Secrets

_PORTS = {"postgresql": 5432}


def test_a_url_is_taken_apart() -> None:
    credentials = parse_url("X", "postgresql://me:p%40ss@db.example:6000/", _PORTS)

    assert (credentials.host, credentials.port, credentials.user, credentials.password) == (
        "db.example",
        6000,
        "me",
        "p@ss",
    )


def test_the_usual_port_need_not_be_given() -> None:
    assert parse_url("X", "postgresql://me:secret@db.example", _PORTS).port == 5432


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:hunter2@db.example",
        "mysql://me:hunter2@db.example:5432",
        "postgresql://me:hunter2@db.example:port",
        "postgresql://me@db.example/hunter2",
        "postgresql://:hunter2@db.example",
        "postgresql://me:hunter2@",
        "hunter2",
        "postgresql://me:hunter2@db.example/?sslmode=require",
        "postgresql://me:hunter2@[db",
    ],
)
def test_what_is_wrong_with_a_url_is_said_without_the_password(url: str) -> None:
    with pytest.raises(
        StackError, match=r"GUIDEHALL_POSTGRES_URL.*postgresql://USER:PASSWORD@HOST:PORT"
    ) as caught:
        parse_url("GUIDEHALL_POSTGRES_URL", url, _PORTS)

    assert "hunter2" not in str(caught.value)


def test_a_nats_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    nats = ExternalNats(f"nats://me:hunter2@127.0.0.1:{port}", Secrets(tmp_path))

    with pytest.raises(StackError, match=rf"no NATS server at 127\.0\.0\.1:{port}"):
        nats.check()


def test_an_s3_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    s3 = ExternalS3(f"http://me:hunter2@127.0.0.1:{port}/things", Secrets(tmp_path))

    with pytest.raises(StackError, match=rf"S3 at 127\.0\.0\.1:{port}"):
        s3.check()
    assert (s3.access().bucket, s3.access().secure) == ("things", False)
