"""A tenant that has its limits, and what it is told."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.gateway import GatewayUnderTest

LIMITS = "/v1/tenants/default/limits"


async def limit(gw: GatewayUnderTest, **limits: float) -> None:
    assert (await gw.client.put(LIMITS, json=limits)).status_code == 200


async def submit(gw: GatewayUnderTest, **more: Any) -> httpx.Response:
    return await gw.client.post("/v1/jobs", json={"prompt": "a lighthouse"}, **more)


def named(answer: httpx.Response) -> str:
    """The limit that a refusal names."""
    assert answer.status_code == 429, answer.text
    return str(answer.json()["errors"][0]["field"])
