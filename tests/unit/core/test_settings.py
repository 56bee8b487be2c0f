"""Settings: read once, nothing unknown, nothing secret shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from guidehall.core.settings import (
    AuthSettings,
    ChannelSettings,
    GrpcSettings,
    NatsSettings,
    OpsSettings,
    PostgresSettings,
    ServiceSettings,
    SettingsError,
    TlsSettings,
    config_command,
)


class ToySettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="GUIDEHALL_TOY__")

    grpc: GrpcSettings = GrpcSettings()
    ops: OpsSettings = OpsSettings(port=7204)
    storage: ChannelSettings = ChannelSettings(target="127.0.0.1:7102")
    nats: NatsSettings = NatsSettings()
    auth: AuthSettings = AuthSettings()
    postgres: PostgresSettings
    origins: tuple[str, ...] = ("http://localhost",)
    title: str = ""


REQUIRED = {"GUIDEHALL_TOY__POSTGRES__DATABASE": "toy", "GUIDEHALL_TOY__POSTGRES__USER": "toy"}


def load(**variables: str) -> ToySettings:
    return ToySettings.load(REQUIRED | {f"GUIDEHALL_TOY__{name}": text for name, text in variables.items()})


def test_values_are_read_at_their_place() -> None:
    settings = load(GRPC__PORT="7101", GRPC__TLS__CA_FILE="/ca.pem", ORIGINS='["a", "b"]', AUTH__MODE="token")

    assert settings.grpc.port == 7101
    assert settings.grpc.tls.ca_file == Path("/ca.pem")
    assert settings.origins == ("a", "b")
    assert settings.auth.mode == "token"


def test_one_value_of_a_group_leaves_the_others_as_the_program_set_them() -> None:
    settings = load(OPS__HOST="0.0.0.0", STORAGE__TLS__CA_FILE="/ca.pem")

    assert settings.ops == OpsSettings(host="0.0.0.0", port=7204)
    assert settings.storage.target == "127.0.0.1:7102"


def test_other_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEHALL_TOY__GRPC__PORT", "1")

    settings = ToySettings.load(REQUIRED | {"GUIDEHALL_TRAINER_PORT": "tcp://10.0.0.1:80", "PORT": "2"})

    assert settings.grpc.port == 0
    assert ToySettings(postgres=PostgresSettings(database="a", user="b")).grpc.port == 0


def test_the_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in REQUIRED.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("GUIDEHALL_TOY__GRPC__PORT", "7109")

    assert ToySettings.load().grpc.port == 7109


def test_an_unknown_variable_is_refused_with_what_may_have_been_meant() -> None:
    with pytest.raises(
        SettingsError, match=r"GUIDEHALL_TOY__GRPC__PRT is not a setting; did you mean .*GRPC__PORT"
    ):
        load(GRPC__PRT="1")


def test_an_unknown_variable_like_no_other_is_refused_too() -> None:
    with pytest.raises(SettingsError, match=r"GUIDEHALL_TOY__ZZZZZZ is not a setting$"):
        load(ZZZZZZ="1")


def test_a_missing_value_is_named_as_its_variable() -> None:
    with pytest.raises(SettingsError, match="GUIDEHALL_TOY__POSTGRES__USER: Field required"):
        ToySettings.load({"GUIDEHALL_TOY__POSTGRES__DATABASE": "toy"})


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load(NATS__URL="").nats.url is None


@pytest.mark.parametrize("secret", ["{not json", "[1, 2]", "  padded  "])
def test_a_secret_is_taken_as_it_is_written(secret: str, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(secret + "\n")

    for settings in (load(NATS__PASSWORD=secret), load(NATS__PASSWORD_FILE=str(path))):
        assert settings.nats.password == SecretStr(secret)


def test_a_setting_that_is_a_file_is_no_secret_from_a_file() -> None:
    assert load(AUTH__TRUST_FILE="/trust.json").auth.trust_file == Path("/trust.json")


def test_a_value_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x")

    with pytest.raises(SettingsError, match="NATS__PASSWORD is given twice"):
        load(NATS__PASSWORD="y", NATS__PASSWORD_FILE=str(tmp_path / "password"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the file"),
        (b"", "must hold"),
        (b"\xff\xfe", "no text"),
        (b"x" * 70_000, "must hold"),
    ],
)
def test_a_bad_secret_file_is_named_by_its_variable(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SettingsError, match=f"NATS__PASSWORD_FILE: .*{said}"):
        load(NATS__PASSWORD_FILE=str(path))


def test_errors_never_show_values() -> None:
    with pytest.raises(SettingsError) as caught:
        load(GRPC__PORT="hunter2", AUTH__MODE="hunter2", NATS__CONNECT_SECONDS="hunter2")

    assert str(caught.value).count("GUIDEHALL_TOY__") == 3
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_list_must_be_json() -> None:
    with pytest.raises(SettingsError, match="GUIDEHALL_TOY__ORIGINS: must be JSON"):
        load(ORIGINS="a,b")


def test_what_is_shown_holds_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in REQUIRED.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("GUIDEHALL_TOY__POSTGRES__PASSWORD", "hunter2")
    monkeypatch.setenv("GUIDEHALL_TOY__NATS__URL", "nats://someone:hunter2@broker:4222")

    config_command(ToySettings, ["show"])

    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert json.loads(shown)["nats"]["url"] == "nats://**********@broker:4222"
    assert "hunter2" not in repr(ToySettings.load().postgres)


def test_config_names_the_variables_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEHALL_TOY__NONSENSE", "1")

    with pytest.raises(SystemExit, match="GUIDEHALL_TOY__NONSENSE"):
        config_command(ToySettings, [])
    with pytest.raises(SystemExit, match="usage"):
        config_command(ToySettings, ["erase"])


def test_every_variable_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    config_command(ToySettings, ["describe"])

    lines = capsys.readouterr().out.splitlines()
    assert "GUIDEHALL_TOY__OPS__PORT (int, default 7204)" in lines
    assert "GUIDEHALL_TOY__POSTGRES__USER (str, required)" in lines
    assert any(
        line.startswith("GUIDEHALL_TOY__GRPC__TLS__RELOAD_SECONDS (float, default 60.0): ") for line in lines
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().grpc.port = 1  # type: ignore[misc]


def test_a_database_url_quotes_what_it_is_made_of() -> None:
    settings = PostgresSettings(database="a/b", user="u@x", password=SecretStr("p:/@%"))

    assert settings.dsn() == "postgresql+asyncpg://u%40x:p%3A%2F%40%25@127.0.0.1:5432/a%2Fb"


@pytest.mark.parametrize(
    "files", [{"cert_file": Path("a")}, {"key_file": Path("a")}, {"client_ca_file": Path("a")}]
)
def test_half_a_certificate_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ValidationError):
        TlsSettings(**files)
