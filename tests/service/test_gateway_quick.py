"""The plain submit is answered before the framework's routing: as the route would answer it, and counted as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

PLAIN = {"content-type": "application/json"}
ROUTED = {"content-type": "application/json; charset=utf-8"}
CHANGING = ("id", "created_at", "transitions", "queue")


@pytest.fixture
async def gw(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway(broker, tmp_path / "artifacts") as running:
        await Fleet(broker, running.artifacts, broker.clock).announce()
        yield running


def same(answer: httpx.Response) -> tuple[int, dict[str, Any], set[str]]:
    """What must not depend on the way that the answer took."""
    body = answer.json()
    for name in CHANGING:
        body.pop(name, None)
    body.get("request", {}).pop("seed", None)
    return answer.status_code, body, set(answer.headers)


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": "a boat"}',
        b"",
        b"[]",
        b"{",
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"prompt": "a boat", "colour": "red"}',
        b'{"prompt": "a boat", "steps": 1e999}',
        b'{"prompt": "a boat", "model": "no-such"}',
        b'{"prompt": "a boat", "image": "data:image/png;base64,AAAA"}',
        b'{"prompt": "%s"}' % (b"a" * 2_000_000),
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_both_ways_give_the_same_answer(gw: GatewayUnderTest, body: bytes) -> None:
    answers = [await gw.client.post("/v1/jobs", content=body, headers=headers) for headers in (PLAIN, ROUTED)]
    assert same(answers[0]) == same(answers[1])


async def test_a_key_means_the_same_job_on_both_ways(gw: GatewayUnderTest) -> None:
    body = b'{"prompt": "a boat"}'
    first, second = [
        await gw.client.post("/v1/jobs", content=body, headers={**headers, "Idempotency-Key": "k"})
        for headers in (PLAIN, ROUTED)
    ]
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert first.headers["location"] == f"/v1/jobs/{first.json()['id']}"


async def test_both_ways_are_counted_as_one_route(gw: GatewayUnderTest) -> None:
    for headers in (PLAIN, ROUTED):
        await gw.client.post("/v1/jobs", content=b'{"prompt": "a boat"}', headers=headers)
        await gw.client.post("/v1/jobs", content=b"[]", headers=headers)
    lines = (await gw.client.get("/metrics")).text.splitlines()
    assert 'genfleet_gateway_requests_total{method="POST",route="/v1/jobs",status="202"} 2.0' in lines
    assert 'genfleet_gateway_requests_total{method="POST",route="/v1/jobs",status="422"} 2.0' in lines
