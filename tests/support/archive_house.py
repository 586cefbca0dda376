"""A scheduler and gateways on the in-memory bus, whose jobs end and are archived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from scheduler.shell import Scheduler
from shared.settings import Settings
from shared.topology import DELETED, JOBS
from tests.support.clock import settle
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

TENANT = "default"
#: Shorter than any deployment's: the clock is not real, but its ticks are.
SHORT = Settings(archive_after_s=5.0, marker_ttl_s=20.0)
#: A while past both, and past what else the leader waits for.
ARCHIVED_S, PURGED_S, FINISHED_S, RETAINED_S = 7.0, 22.0, 70.0, 70.0


@dataclass
class House:
    """A gateway, a leading scheduler, and the rest played by hand."""

    gw: GatewayUnderTest
    fleet: Fleet
    scheduler: Scheduler
    broker: MemoryBroker

    async def ended(self, **body: object) -> str:
        """A job that has just succeeded, with one file."""
        job = str((await self.gw.submit(**body))["id"])
        await self.fleet.complete(job)
        return job

    async def archived(self, **body: object) -> str:
        """A job in the archive."""
        job = await self.ended(**body)
        await self.gw.clock.advance(ARCHIVED_S)
        assert self.marker(job)
        return job

    def keys(self, bucket: str) -> set[str]:
        return {entry.key for entry in self.broker.streams[bucket].last.values() if entry.value is not None}

    def marker(self, job: str) -> bool:
        entry = self.broker.streams[JOBS.name].last.get(job)
        return entry is not None and entry.value is None

    async def until(self, check: Callable[[], bool]) -> None:
        """Let time pass until it holds; the store's own threads take real time too."""
        async with asyncio.timeout(BOUND_S):
            while not check():
                await self.gw.clock.advance(0.5)
                await asyncio.sleep(0.001)

    async def finished(self) -> None:
        """Wait until no deletion is pending."""
        await self.until(lambda: not any(key.startswith("pending.") for key in self.keys(DELETED.name)))

    async def files(self, job: str) -> list[str]:
        return [stored.key async for stored in self.gw.artifacts.list(job)]


@asynccontextmanager
async def scheduling(
    broker: MemoryBroker, gw: GatewayUnderTest, settings: Settings, name: str = "scheduler-1"
) -> AsyncIterator[Scheduler]:
    made = Scheduler(broker.connect(name), settings, broker.clock, name=name, artifacts=gw.artifacts)
    task = asyncio.ensure_future(made.run())
    await settle()
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def housed(broker: MemoryBroker, folder: Path, settings: Settings | None = None) -> AsyncIterator[House]:
    settings = settings or SHORT
    async with gateway(broker, folder / "artifacts") as gw:
        fleet = Fleet(broker, gw.artifacts, broker.clock)
        await fleet.announce()
        async with scheduling(broker, gw, settings) as scheduler:
            yield House(gw, fleet, scheduler, broker)


def is_problem(answer: httpx.Response, status: int) -> bool:
    return answer.status_code == status and answer.headers["content-type"] == "application/problem+json"


async def listed(client: httpx.AsyncClient, query: str = "") -> list[str]:
    """Ids over all pages."""
    found: list[str] = []
    after = ""
    while True:
        answer = (await client.get(f"/v1/jobs?{query}{after}")).json()
        found += [view["id"] for view in answer["data"]]
        if answer["next"] is None:
            return found
        after = f"&after={answer['next']}"
