"""``genfleet webhooks`` against a scripted gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from deploy import cli
from tests.support.scripted_gateway import ScriptedGateway, problem, serving, view

JOB = "0123456789abcdef0123456789abcdef"
ROW = {
    "id": f"msg_{JOB}", "job": JOB, "tenant": "acme", "event": "job.failed", "url": "https://a.example/hooks",
    "state": "pending", "tries": 3, "last_status": 503, "last_error": "answered 503", "age_s": 90.0,
    "next_try_in_s": 71.2,
}  # fmt: skip


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedGateway]:
    with serving() as script:
        monkeypatch.setenv("GENFLEET_URL", script.url)
        yield script


def test_list_shows_all_pages(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    page = "GET /v1/webhooks/deliveries"
    gateway.on(page, view(data=[ROW], next="acme.1"), view(data=[{**ROW, "next_try_in_s": None}], next=None))
    assert cli.run(["webhooks", "list", "--state", "pending", "--receiver", "https://a.example", "--all"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    for word in (JOB, "acme", "pending", "3 tries", "job.failed", "https://a.example/hooks", "answered 503"):
        assert word in first
    assert "again in 71 s" in first
    assert "again in" not in second
    queries = [asked.query for asked in gateway.of(page)]
    assert "state=pending" in queries[0]
    assert "tenant=%2A" in queries[0] or "tenant=*" in queries[0]
    assert "after=acme.1" in queries[1]


def test_list_as_json(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("GET /v1/webhooks/deliveries", view(data=[ROW], next=None))
    assert cli.run(["webhooks", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"data": [ROW]}


def test_replay_of_one(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on(f"POST /v1/jobs/{JOB}/webhook/replay", view(202, url="https://a.example/", state="pending"))
    assert cli.run(["webhooks", "replay", JOB]) == 0
    assert capsys.readouterr().out == "it is delivered once more\n"


def test_replay_of_many(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    route = "POST /v1/webhooks/replay"
    gateway.on(route, view(202, replayed=1000, all=False), view(202, replayed=7, all=True))
    options = ["--state", "given_up", "--receiver", "https://a.example", "--since-s", "60"]
    assert cli.run(["webhooks", "replay", *options]) == 0
    assert cli.run(["webhooks", "replay", "--tenant", "acme"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["1000 are delivered once more; there are more: say it again", "7 are delivered once more"]
    bodies = [json.loads(asked.body) for asked in gateway.of(route)]
    assert bodies == [{"state": "given_up", "receiver": "https://a.example", "since_s": 60.0}, {"tenant": "acme"}]


@pytest.mark.parametrize("arguments", [[], [JOB, "--state", "given_up"]])
def test_replay_of_nothing_or_of_both_is_a_mistake(
    gateway: ScriptedGateway, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["webhooks", "replay", *arguments]) == 2
    assert "name a job" in capsys.readouterr().err
    assert gateway.asked == []


def test_the_secret_and_another_one(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("GET /v1/webhooks/secret", view(secret="whsec_YQ==", version=1, previous_for_s=0.0))
    gateway.on("POST /v1/webhooks/secret/rotate", view(secret="whsec_Yg==", version=2, previous_for_s=86400.0))
    assert cli.run(["webhooks", "secret"]) == 0
    assert cli.run(["webhooks", "secret", "--rotate"]) == 0
    assert capsys.readouterr().out == "whsec_YQ==\nwhsec_Yg==\n"


def test_what_the_gateway_refuses_is_said(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on(f"POST /v1/jobs/{JOB}/webhook/replay", problem(409, "the job named no webhook_url, or has not ended"))
    assert cli.run(["webhooks", "replay", JOB]) == 1
    assert "named no webhook_url" in capsys.readouterr().err


def test_a_job_is_submitted_with_an_address(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("POST /v1/jobs", view(202, id=JOB, state="queued"))
    assert cli.run(["submit", "--prompt", "a lighthouse", "--webhook-url", "https://a.example/hooks"]) == 0
    (asked,) = gateway.of("POST /v1/jobs")
    assert b'name="webhook_url"' in asked.body
    assert b"https://a.example/hooks" in asked.body
