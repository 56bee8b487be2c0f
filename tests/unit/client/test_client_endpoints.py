"""Where a client looks for the services and its token, and what it says when there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guidehall.client import Client, Tls
from guidehall.client._config import Credentials
from guidehall.client._endpoints import Endpoint, Endpoints
from guidehall.client.errors import InvalidArgument, Unauthenticated, Unavailable

WRITTEN = {
    "gateway": "http://127.0.0.1:8000",
    "trainer": "127.0.0.1:7101",
    "storage": "127.0.0.1:7102",
    "inference": "127.0.0.1:7103",
    "ops": {"trainer": "http://127.0.0.1:7201"},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder as a running stack leaves it."""
    (tmp_path / "endpoints.json").write_text(json.dumps(WRITTEN))
    return tmp_path


def test_the_stack_of_this_machine_is_found(data: Path) -> None:
    endpoints = Endpoints.find(None, {"GUIDEHALL_DATA": str(data)})

    assert endpoints["storage"] == Endpoint("127.0.0.1:7102", secure=False)


def test_what_is_given_counts_more_than_the_environment(data: Path) -> None:
    environment = {"GUIDEHALL_DATA": str(data), "GUIDEHALL_ENDPOINTS": "trainer=env:1"}

    assert Endpoints.find(None, environment)["trainer"].address == "env:1"
    assert Endpoints.find("trainer=given:2", environment)["trainer"].address == "given:2"
    assert Endpoints.find({"trainer": "given:3"}, environment)["trainer"].address == "given:3"
    assert Endpoints.find(data / "endpoints.json", environment)["trainer"].address == "127.0.0.1:7101"


def test_environment_may_name_a_file(data: Path) -> None:
    endpoints = Endpoints.find(None, {"GUIDEHALL_ENDPOINTS": str(data / "endpoints.json")})

    assert endpoints["inference"].address == "127.0.0.1:7103"


def test_scheme_tells_whether_to_encrypt() -> None:
    endpoints = Endpoints.find("trainer=grpcs://a.example:443/, storage=grpc://[::1]:7102,inference=x:1,", {})

    assert endpoints["trainer"] == Endpoint("a.example:443", secure=True)
    assert endpoints["storage"] == Endpoint("[::1]:7102", secure=False)


def test_no_stack_is_said_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="guidehall up") as caught:
        Endpoints.find(None, {"GUIDEHALL_DATA": str(tmp_path)})

    assert caught.value.reason == "NO_STACK_FOUND"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trainer=no-port", "trainer"),
        ("trainer=", "trainer"),
        ("trainer=host:1,spare=host:2", "spare"),
        ("trainer=http://host:1", "trainer"),
        ("trainer=host:1?x", "trainer"),
        ("/nowhere/endpoints.json", "/nowhere/endpoints.json"),
    ],
)
def test_what_is_no_address_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Endpoints.find(text, {})


@pytest.mark.parametrize("content", ["", "[]", "{", '{"trainer": 7}', '{"trainer": "host"}'])
def test_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(content)

    with pytest.raises(InvalidArgument, match=r"endpoints\.json"):
        Endpoints.find(path, {})


def test_service_without_address_is_an_error_once_it_is_called() -> None:
    with (
        Client({"trainer": "127.0.0.1:1"}, token="t") as client,
        pytest.raises(InvalidArgument, match="storage"),
    ):
        client.whoami()


def test_service_that_is_not_there_is_named_with_its_address() -> None:
    with Client({"trainer": "127.0.0.1:1"}) as client, pytest.raises(Unavailable) as caught:
        client.pipelines()

    assert caught.value.reason == "CANNOT_REACH"
    assert "trainer" in caught.value.message
    assert "127.0.0.1:1" in caught.value.message


def test_token_comes_from_the_nearest_place(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    environment = {"GUIDEHALL_TOKEN": "from-environment", "GUIDEHALL_TOKEN_FILE": str(path)}

    def sent(token: str | None, environ: dict[str, str]) -> tuple[tuple[str, str], ...]:
        return Credentials.find(token, environ).metadata()

    assert sent("given", environment) == (("authorization", "Bearer given"),)
    assert sent(None, environment) == (("authorization", "Bearer from-environment"),)
    del environment["GUIDEHALL_TOKEN"]
    assert sent(None, environment) == (("authorization", "Bearer from-file"),)
    assert sent(None, {}) == ()


def test_token_file_is_read_anew_for_every_call(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first")
    credentials = Credentials.find(None, {"GUIDEHALL_TOKEN_FILE": str(path)})
    credentials.metadata()

    path.write_text("second")

    assert credentials.metadata() == (("authorization", "Bearer second"),)


def test_missing_token_file_is_said() -> None:
    credentials = Credentials.find(None, {"GUIDEHALL_TOKEN_FILE": "/nowhere/token"})

    with pytest.raises(Unauthenticated, match="/nowhere/token"):
        credentials.metadata()


def test_token_is_never_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        Credentials.find("two words-secret", {})

    assert "secret" not in caught.value.message
    assert "hidden" not in repr(Credentials.find("hidden", {}))


def test_certificates_come_from_the_environment() -> None:
    tls = Tls.from_environment({"GUIDEHALL_CA_FILE": "/ca.pem"})

    assert tls == Tls(ca_file=Path("/ca.pem"))


def test_certificate_that_cannot_be_read_is_named() -> None:
    tls = Tls(ca_file=Path("/nowhere/ca.pem"))

    with (
        Client({"trainer": "grpcs://127.0.0.1:1"}, tls=tls) as client,
        pytest.raises(InvalidArgument, match=r"/nowhere/ca\.pem"),
    ):
        client.pipelines()
