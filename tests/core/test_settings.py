"""Settings: where they come from, what wins, and how a mistake is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import Settings, load, to_environ, variable


def test_with_nothing_given_all_is_default() -> None:
    assert load({}) == Settings()
    assert load({"HOME": "/", "GENFLEETPORT": "1"}) == Settings()


def test_the_environment_is_read_into_the_types_of_the_fields() -> None:
    environ = {"GENFLEET_PORT": "9000", "GENFLEET_LEASE_S": "2.5", "GENFLEET_MODEL": "7", "GENFLEET_DEVICES": "0,1"}
    settings = load(environ)
    assert (settings.port, settings.lease_s, settings.model, settings.devices) == (9000, 2.5, "7", "0,1")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "genfleet.toml"
    config.write_text('port = 9000\nhost = "::1"\nlease_s = 3\n')
    settings = load({"GENFLEET_CONFIG": str(config), "GENFLEET_PORT": "9001"})
    assert (settings.port, settings.host, settings.lease_s) == (9001, "::1", 3.0)


def test_a_secret_comes_from_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("abc\n")
    assert load({"GENFLEET_NATS_TOKEN_FILE": str(secret)}).nats_token == "abc"


def test_a_file_of_a_secret_wins_over_the_config_file(tmp_path: Path) -> None:
    secret, config = tmp_path / "token", tmp_path / "genfleet.toml"
    secret.write_text("from-file")
    config.write_text('nats_token = "from-config"\n')
    environ = {"GENFLEET_CONFIG": str(config), "GENFLEET_NATS_TOKEN_FILE": str(secret)}
    assert load(environ).nats_token == "from-file"


def test_a_setting_that_itself_names_a_file_is_not_read() -> None:
    assert load({"GENFLEET_LOG_FILE": "/nowhere/genfleet.log"}).log_file == "/nowhere/genfleet.log"


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("abc")
    with pytest.raises(SettingsError, match="GENFLEET_NATS_TOKEN_FILE: GENFLEET_NATS_TOKEN is set too"):
        load({"GENFLEET_NATS_TOKEN_FILE": str(secret), "GENFLEET_NATS_TOKEN": "def"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("PORT", ""),
        ("LEASE_S", "0"),
        ("LOG_LEVEL", "loud"),
        ("DEVICE", "tpu"),
        ("WORKERS", "0"),
        ("DEFAULT_PRIORITY", "10"),
        ("WORKER", "Not A Name"),
        ("DRAIN_GRACE_S", "-1"),
    ],
)
def test_a_value_that_is_not_allowed_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^GENFLEET_{name}: "):
        load({f"GENFLEET_{name}": value})


def test_a_value_of_the_file_that_is_not_allowed_names_the_file_and_the_setting(tmp_path: Path) -> None:
    config = tmp_path / "genfleet.toml"
    config.write_text("port = [1]\n")
    with pytest.raises(SettingsError, match=r"genfleet\.toml: port: "):
        load({"GENFLEET_CONFIG": str(config)})


@pytest.mark.parametrize("name", ["GENFLEET_PORTS", "GENFLEET_", "GENFLEET_TOKEN"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: there is no such setting"):
        load({name: "1"})


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "genfleet.toml"
    config.write_text("prot = 1\n")
    with pytest.raises(SettingsError, match=r"genfleet\.toml: prot: there is no such setting"):
        load({"GENFLEET_CONFIG": str(config)})


def test_an_unknown_secret_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("abc")
    with pytest.raises(SettingsError, match="GENFLEET_TOKEN_FILE: there is no such setting"):
        load({"GENFLEET_TOKEN_FILE": str(secret)})


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"port = "])
def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    config = tmp_path / "genfleet.toml"
    if content is not None:
        config.write_bytes(content)
    with pytest.raises(SettingsError, match=r"GENFLEET_CONFIG: cannot read .*genfleet\.toml"):
        load({"GENFLEET_CONFIG": str(config)})


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="GENFLEET_NATS_TOKEN_FILE: cannot read"):
        load({"GENFLEET_NATS_TOKEN_FILE": str(tmp_path / "nothing")})


def test_settings_travel_through_an_environment() -> None:
    settings = Settings(port=0, worker="worker-0", lease_s=2.5, log_level="debug", unknown_model="queue")
    environ = to_environ(settings)
    assert set(environ) == {variable(name) for name in ("port", "worker", "lease_s", "log_level", "unknown_model")}
    assert load(environ) == settings


def test_every_default_is_itself_allowed() -> None:
    defaults = Settings()
    environ = {variable(name): str(getattr(defaults, name)) for name in Settings.__struct_fields__ if name != "worker"}
    assert load(environ) == defaults


def test_an_option_wins_over_all_and_is_named_when_it_is_wrong() -> None:
    environ = {"GENFLEET_PORT": "9000", "GENFLEET_GROUP_SIZE": "4"}
    settings = load(environ, {"port": 9001})
    assert (settings.port, settings.group_size) == (9001, 4)
    with pytest.raises(SettingsError, match=r"^--group-size: Expected `int` >= 0"):
        load(environ, {"group_size": -1})


def test_the_documentation_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(GENFLEET_[A-Z0-9_]+)` \| (?:`(.*?)`)? ?\| \S", page, re.MULTILINE)
    defaults = Settings()
    shown = {name: getattr(defaults, name) for name in Settings.__struct_fields__}
    assert dict(rows) == {variable(name): "" if value in ("", None) else str(value) for name, value in shown.items()}
    assert len(rows) == len(shown)
