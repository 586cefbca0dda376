"""``genfleet limits`` and ``genfleet usage`` against a scripted gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import cli, options, tenants
from tests.support.scripted_gateway import Answer, ScriptedGateway, problem, serving, view

OWN: dict[str, Any] = {
    "weight": 2.0,
    "max_queued": 5,
    "max_running": None,
    "submits_per_s": None,
    "burst": None,
    "max_stored_bytes": None,
}
LIMITS: dict[str, Any] = {
    "tenant": "acme",
    **OWN,
    "submits_per_s": 0.5,
    "burst": 4,
    "queued": 3,
    "running": 1,
    "stored_bytes": 2048,
}
SHOWN = """weight             2
max_queued         5              3 wait
max_running        none           1 at workers
submits_per_s      0.5
burst              4
max_stored_bytes   none           2048 kept
"""


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ScriptedGateway]:
    with serving() as script:
        monkeypatch.setenv("GENFLEET_URL", script.url)
        monkeypatch.chdir(tmp_path)
        yield script


def usage_of(tenant: str, complete: bool = True) -> dict[str, object]:
    jobs = {"queued": 3, "succeeded": 40}
    return {"tenant": tenant, "device_s": 90.4, "jobs": jobs, "limits": {**LIMITS}, "complete": complete}


def test_limits_are_shown(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("GET /v1/tenants/acme/limits", view(**LIMITS, own=OWN))
    assert cli.run(["limits", "acme"]) == options.OK
    assert capsys.readouterr().out == SHOWN
    assert cli.run(["limits", "acme", "--json"]) == options.OK
    assert json.loads(capsys.readouterr().out) == {**LIMITS, "own": OWN}


def test_what_is_not_named_stays(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """And what is the settings' does not become the tenant's own."""
    path = "/v1/tenants/acme/limits"
    gateway.on(f"GET {path}", view(**LIMITS, own=OWN))
    gateway.on(f"PUT {path}", view(**LIMITS, own=OWN))
    more = ["--submits-per-s", "2.5", "--burst", "10", "--max-queued", "none", "--max-stored-bytes", "5e9"]
    assert cli.run(["limits", "acme", *more]) == options.OK
    (asked,) = gateway.of(f"PUT {path}")
    changed = {"submits_per_s": 2.5, "burst": 10, "max_queued": None, "max_stored_bytes": 5_000_000_000}
    assert json.loads(asked.body) == {**OWN, **changed}
    assert capsys.readouterr().out == SHOWN


def test_what_is_no_number_is_told(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["limits", "acme", "--max-queued", "many"]) == options.USAGE
    assert "--max-queued takes a number or `none`, not 'many'" in capsys.readouterr().err
    assert gateway.asked == []


def test_a_limit_that_cannot_be_is_the_gateways_to_refuse(
    gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.on("GET /v1/tenants/acme/limits", view(**LIMITS, own=OWN))
    gateway.on("PUT /v1/tenants/acme/limits", problem(422, "weight: too small", ("weight", "too small")))
    assert cli.run(["limits", "acme", "--weight", "0"]) == options.USAGE
    assert "weight: too small" in capsys.readouterr().err


def test_usage_is_a_line_for_each(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("GET /v1/usage", view(data=[usage_of("acme")], next=None))
    assert cli.run(["usage"]) == options.OK
    assert capsys.readouterr().out == "acme                               90 s    2.05 kB  3 queued  40 succeeded\n"
    assert gateway.of("GET /v1/usage")[0].query == ""


def test_all_pages_are_shown(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on(
        "GET /v1/usage", view(data=[usage_of("acme")], next="acme"), view(data=[usage_of("b", False)], next=None)
    )
    assert cli.run(["usage", "--all"]) == options.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["acme", "b"]
    assert lines[1].endswith("(the archive is still being read)")
    assert [asked.query for asked in gateway.of("GET /v1/usage")] == ["tenant=%2A", "tenant=%2A&after=acme"]


def test_usage_as_json_is_the_gateways_own(gateway: ScriptedGateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.on("GET /v1/usage", Answer(body=json.dumps({"data": [usage_of("b")], "next": None}).encode()))
    assert cli.run(["usage", "--tenant", "b", "--json"]) == options.OK
    assert json.loads(capsys.readouterr().out) == {"data": [usage_of("b")]}
    assert gateway.of("GET /v1/usage")[0].query == "tenant=b"


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (123_456_789, "123 MB"), (2 * 10**18, "2e+03 PB")]
)
def test_sizes_read_well(count: int, shown: str) -> None:
    assert tenants.size(count) == shown
