"""Callers of gateways whose webhooks they look at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from msgspec.structs import replace

from tests.support.clock import settle
from tests.support.gateway import GatewayUnderTest
from tests.support.webhooks import SETTINGS, URL, World, says, webhook

ADMIN = "the-first-key-" + "a" * 32
KEYED = replace(SETTINGS, auth="keys", admin_key=ADMIN)


@dataclass
class Somebody:
    """Calls with a key."""

    gw: GatewayUnderTest
    key: str

    async def __call__(self, method: str, path: str, **more: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return await self.gw.client.request(method, path, headers=headers, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def keyed(world: World, *kinds: tuple[str, str]) -> AsyncIterator[tuple[GatewayUnderTest, list[Somebody]]]:
    """A gateway that asks for keys, and somebody for each tenant and role."""
    async with world.gateway(settings=KEYED) as gw:
        admin, found = Somebody(gw, ADMIN), []
        for tenant, role in kinds:
            made = await admin("POST", "/v1/keys", json={"tenant": tenant, "role": role, "name": f"{tenant} {role}"})
            assert made.status_code == 201, made.text
            found.append(Somebody(gw, made.json()["key"]))
        await settle()
        yield gw, found


async def submitted(who: Somebody, **body: object) -> str:
    answer = await who("POST", "/v1/jobs", json={"prompt": "a lighthouse", "webhook_url": URL, **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def given_up(world: World, gw: GatewayUnderTest, url: str = URL) -> str:
    world.receivers.answers[url] = says(410)
    job = await world.ended(gw, url)
    assert (await webhook(gw, job))["state"] == "given_up"
    del world.receivers.answers[url]
    return job


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
