"""A gateway whose link to the broker is a black hole: nothing is closed, nothing arrives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from tests.support.nats_server import NatsServer
from tests.support.proxy import Proxy
from tests.support.service_process import ServiceProcess

pytestmark = pytest.mark.system

BOUND_S = 60.0


async def ready(client: httpx.AsyncClient, status: int) -> None:
    """Wait until /readyz says that."""
    async with asyncio.timeout(BOUND_S):
        while (await client.get("/readyz")).status_code != status:  # noqa: ASYNC110 - another process gives no other sign
            await asyncio.sleep(0.05)


async def test_a_black_holed_gateway_says_so_and_comes_back(nats_server: NatsServer, tmp_path: Path) -> None:
    """Row 4: unready, submits answered 503 and not hanging, a job known before still shown; afterwards all by itself
    as before."""
    async with Proxy(nats_server.port) as proxy:
        settings = replace(
            nats_server.settings(),
            nats_url=f"nats://127.0.0.1:{proxy.port}",
            artifacts=str(tmp_path / "artifacts"),
            port=0,
            unknown_model="queue",
        )
        with ServiceProcess("gateway", settings, tmp_path / "gateway.log") as gateway:
            await asyncio.to_thread(gateway.wait_for, "ready", BOUND_S)
            line = gateway.event("ready")
            assert line is not None
            async with httpx.AsyncClient(base_url=str(line["url"]), timeout=BOUND_S) as client:
                await ready(client, 200)
                body, key = {"prompt": "a", "model": "m"}, {"Idempotency-Key": "k"}
                first = await client.post("/v1/jobs", json=body)
                assert first.status_code == 202
                proxy.black_hole()
                await ready(client, 503)
                refused = await client.post("/v1/jobs", json=body, headers=key)
                assert refused.status_code == 503
                shown = await client.get(f"/v1/jobs/{first.json()['id']}")
                assert (shown.status_code, shown.json()["state"]) == (200, "queued")
                proxy.heal()
                await ready(client, 200)
                again = await client.post("/v1/jobs", json=body, headers=key)
                assert (again.status_code, again.json()["id"]) == (202, refused.json()["id"])
