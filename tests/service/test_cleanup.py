"""``POST /admin/cleanup``: asked of the gateway, done by the leading scheduler."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from shared.messages import CleanupAsked, encode
from shared.settings import Settings
from shared.topology import CLEANUP, CLEANUP_ASKED, CLEANUP_DONE, input_key
from tests.support.archive_house import ARCHIVED_S, SHORT, House, housed, scheduling
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, gateway
from tests.support.memory_bus import MemoryBroker

#: One job of each tenant is kept.
FEW = replace(SHORT, retain_count=1)


@pytest.fixture
async def house(broker: MemoryBroker, tmp_path: Path) -> AsyncIterator[House]:
    async with housed(broker, tmp_path, FEW) as made:
        yield made


async def cleaned(house: House) -> dict[str, object]:
    """Ask, and let time pass until that is answered."""
    asked = asyncio.create_task(house.gw.client.post("/admin/cleanup"))
    await house.until(asked.done)
    answer = asked.result()
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_what_has_expired_goes_now_with_its_files(house: House, tmp_path: Path) -> None:
    jobs = [await house.ended() for _ in range(3)]
    key = input_key("default", "a" * 64)
    await house.gw.artifacts.put(key, b"nothing refers to it")
    file = tmp_path / "artifacts" / key
    old = file.stat().st_mtime - 2 * 86_400
    os.utime(file, (old, old))
    await house.gw.clock.advance(ARCHIVED_S)
    # Long before the minute in which the leader looks by itself.
    assert [len(await house.files(job)) for job in jobs] == [1, 1, 1]
    assert await cleaned(house) == {"status": "done", "removed_jobs": 2, "removed_files": 1}
    assert [len(await house.files(job)) for job in jobs] == [0, 0, 1]
    statuses = [(await house.gw.client.get(f"/v1/jobs/{job}")).status_code for job in jobs]
    assert statuses == [410, 410, 200]
    assert not file.exists()
    assert await cleaned(house) == {"status": "done", "removed_jobs": 0, "removed_files": 0}


async def test_several_at_once_are_all_answered(house: House) -> None:
    asked = [asyncio.create_task(house.gw.client.post("/admin/cleanup")) for _ in range(3)]
    await house.until(lambda: all(task.done() for task in asked))
    assert [task.result().json()["status"] for task in asked] == ["done"] * 3


async def test_a_wish_outlives_who_was_at_it_and_is_fulfilled_once(broker: MemoryBroker, tmp_path: Path) -> None:
    async with housed(broker, tmp_path, FEW) as house:
        await house.ended()
        await house.gw.clock.advance(ARCHIVED_S)
    async with gateway(broker, tmp_path / "artifacts", name="second") as gw:
        bucket = gw.bus.bucket(CLEANUP.name)
        await bucket.put(CLEANUP_ASKED, encode(CleanupAsked(id="left")))
        async with scheduling(broker, gw, FEW, "scheduler-2"):
            async with asyncio.timeout(BOUND_S):
                while (done := await bucket.get(CLEANUP_DONE)) is None:
                    await gw.clock.advance(1.0)
            revision = done.revision
        async with scheduling(broker, gw, FEW, "scheduler-3"):
            for _ in range(20):
                await gw.clock.advance(1.0)
            again = await bucket.get(CLEANUP_DONE)
            assert again is not None
            assert again.revision == revision


async def test_without_a_scheduler_it_stays_asked(
    broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.dialects.cleanup._WAIT_S", 0.05)
    async with gateway(broker, tmp_path / "artifacts") as gw:
        answer = await gw.client.post("/admin/cleanup")
        assert (answer.status_code, answer.json()["status"]) == (202, "asked")
        assert await gw.bus.bucket(CLEANUP.name).get(CLEANUP_ASKED) is not None
        await settle()


async def test_it_is_for_admins(broker: MemoryBroker, tmp_path: Path) -> None:
    """Row 25 of the faults."""
    settings = Settings(auth="keys", admin_key="k" * 40, secret="s" * 40)
    async with gateway(broker, tmp_path / "artifacts", settings) as gw:
        assert (await gw.client.post("/admin/cleanup")).status_code == 401
        admin = {"Authorization": f"Bearer {'k' * 40}"}
        body = {"name": "app", "role": "operator", "tenant": "acme"}
        made = await gw.client.post("/v1/keys", json=body, headers=admin)
        assert made.status_code == 201, made.text
        operator = {"Authorization": f"Bearer {made.json()['key']}"}
        assert (await gw.client.post("/admin/cleanup", headers=operator)).status_code == 403
