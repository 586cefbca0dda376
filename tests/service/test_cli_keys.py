"""The command line's key: shown to the gateway and to nobody else; and what ``genfleet keys`` and ``audit`` say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import cli, options
from deploy.client import Gateway, OutputView
from tests.support.scripted_gateway import Answer, ScriptedGateway, problem, serving, view

KEY = "gf_0123456789abcdef_" + "x" * 43
MADE = {"id": "0123456789abcdef", "tenant": "studio", "role": "user", "state": "active", "name": "ci"}


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    with serving() as script:
        monkeypatch.setenv("GENFLEET_URL", script.url)
        yield script


def shown(gateway: ScriptedGateway, route: str) -> list[str | None]:
    return [asked.headers.get("authorization") for asked in gateway.of(route)]


def test_every_command_shows_the_key(gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gateway.on("GET /v1/workers", view(data=[]))
    assert cli.run(["workers"]) == options.OK
    monkeypatch.setenv("GENFLEET_KEY", KEY)
    assert cli.run(["workers"]) == options.OK
    monkeypatch.delenv("GENFLEET_KEY")
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("GENFLEET_KEY_FILE", str(tmp_path / "key"))
    assert cli.run(["workers"]) == options.OK
    assert shown(gateway, "GET /v1/workers") == [None, f"Bearer {KEY}", f"Bearer {KEY}"]


def test_the_key_is_shown_to_nobody_else(gateway: ScriptedGateway, tmp_path: Path) -> None:
    with serving() as elsewhere:
        elsewhere.on("GET /out.mp4", Answer(body=b"film", media_type="video/mp4"))
        with Gateway(gateway.url, KEY) as there:
            there.download(OutputView(index=0, url=f"{elsewhere.url}/out.mp4"), tmp_path / "out.mp4")
        assert (tmp_path / "out.mp4").read_bytes() == b"film"
        assert shown(elsewhere, "GET /out.mp4") == [None]


def test_a_refusal_says_where_a_key_goes(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("GET /v1/workers", problem(401, "this needs a key"))
    assert cli.run(["workers"]) == options.FAILED
    told = capsys.readouterr().err
    assert "this needs a key" in told
    assert "GENFLEET_KEY_FILE" in told


def test_a_made_keys_text_comes_alone_on_stdout(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("POST /v1/keys", view(201, **MADE, key=KEY))
    assert cli.run(["keys", "create", "--tenant", "studio", "--name", "ci", "--expires-days", "2"]) == options.OK
    told = capsys.readouterr()
    assert told.out == f"{KEY}\n"
    assert "0123456789abcdef of studio (user)" in told.err
    (asked,) = gateway.of("POST /v1/keys")
    assert json.loads(asked.body) == {"tenant": "studio", "role": "user", "name": "ci", "expires_s": 172800.0}


def test_a_role_that_is_none_is_not_asked_for(gateway: ScriptedGateway) -> None:
    assert cli.run(["keys", "create", "--role", "emperor"]) == options.USAGE
    assert gateway.of("POST /v1/keys") == []


def test_keys_are_listed_a_line_each(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    used = {**MADE, "id": "fedcba9876543210", "last_used_at": 1790000000.0, "expires_at": 1790086400.0}
    gateway.on("GET /v1/keys", view(data=[MADE, used]))
    assert cli.run(["keys", "list"]) == options.OK
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["0123456789abcdef", "active", "user", "studio", "never", "used", "ci"]
    assert "used 2026-09-" in second
    assert "until 2026-09-" in second


def test_rotate_and_revoke(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("POST /v1/keys/0123456789abcdef/rotate", view(200, **MADE, key=KEY))
    assert cli.run(["keys", "rotate", "0123456789abcdef", "--grace-s", "60"]) == options.OK
    assert capsys.readouterr().out == f"{KEY}\n"
    (asked,) = gateway.of("POST /v1/keys/0123456789abcdef/rotate")
    assert json.loads(asked.body) == {"grace_s": 60.0}
    gateway.on("DELETE /v1/keys/0123456789abcdef", view(200, **{**MADE, "state": "revoked"}))
    assert cli.run(["keys", "revoke", "0123456789abcdef"]) == options.OK
    assert capsys.readouterr().out == "0123456789abcdef is revoked\n"


def test_the_audit_log_is_a_line_for_each_act(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"at": 1790000000.0, "by": "bootstrap", "action": "worker.drain", "target": "w1", "detail": "a loud fan"}
    gateway.on("GET /v1/audit", view(data=[entry]))
    assert cli.run(["audit", "--limit", "5"]) == options.OK
    assert capsys.readouterr().out.split()[2:] == ["bootstrap", "worker.drain", "w1", "a", "loud", "fan"]
    assert gateway.of("GET /v1/audit")[0].query == "limit=5"
