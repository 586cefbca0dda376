"""What tests of webhooks need: receivers that a test scripts, and gateways whose webhooks go to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gateway.webhooks.dispatcher import CLAIM_MARGIN_S
from gateway.webhooks.schedule import Failed, Told, Verdict, verdict
from shared.artifacts import open_store
from shared.messages import Delivery, decode
from shared.settings import Settings
from shared.topology import DELIVERED, DELIVERIES, delivery_key
from tests.support.clock import FakeClock, settle
from tests.support.gateway import Fleet, GatewayUnderTest, gateway
from tests.support.memory_bus import MemoryBroker

URL, OTHER = "https://a.example/hooks?key=hidden", "https://b.example/hooks"
SETTINGS = Settings(secret="0123456789abcdef" * 3, public_url="https://api.example")
CLAIM_S = SETTINGS.webhook_timeout_s + CLAIM_MARGIN_S
HOUR_S = 3600.0
#: Long enough for whatever would go wrong to show.
A_WHILE_S = 300.0


@dataclass(frozen=True)
class Try:
    """One that reached the receivers."""

    gateway: str
    url: str
    at: float
    body: bytes
    headers: dict[str, str]

    @property
    def ident(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receivers:
    """The rest of the world. ``answers``: by URL, what is said to a try; without one it is 200."""

    clock: FakeClock
    tries: list[Try] = field(default_factory=list)
    answers: dict[str, Callable[[Try], Verdict]] = field(default_factory=dict)
    hanging: dict[str, asyncio.Event] = field(default_factory=dict)

    def hang(self, url: str) -> asyncio.Event:
        """From now on that URL answers nothing until the event is set."""
        self.hanging[url] = asyncio.Event()
        return self.hanging[url]

    def ids(self, url: str = "") -> list[str]:
        return [one.ident for one in self.tries if url in ("", one.url)]


@dataclass
class Sender:
    """A gateway's way to them."""

    name: str
    receivers: Receivers

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> Verdict:
        made = Try(self.name, url, self.receivers.clock.monotonic(), body, headers)
        self.receivers.tries.append(made)
        if url in self.receivers.hanging:
            waiting = asyncio.ensure_future(self.receivers.hanging[url].wait())
            limit = asyncio.ensure_future(self.receivers.clock.sleep(SETTINGS.webhook_timeout_s))
            try:
                await asyncio.wait((waiting, limit), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                limit.cancel()
            if not self.receivers.hanging[url].is_set():
                return Failed(error="took too long", down=True)
        return self.receivers.answers.get(url, takes)(made)


def takes(_: Try) -> Verdict:
    """200."""
    return Told(200)


def says(status: int, header: str | None = None) -> Callable[[Try], Verdict]:
    """That status, and that ``Retry-After``."""
    return lambda _: verdict(status, header)


@dataclass
class World:
    """A bus, receivers, and gateways on one clock."""

    broker: MemoryBroker
    folder: Path
    clock: FakeClock
    receivers: Receivers
    fleet: Fleet

    @asynccontextmanager
    async def gateway(self, name: str = "gateway-1", settings: Settings = SETTINGS) -> AsyncIterator[GatewayUnderTest]:
        sender = Sender(name, self.receivers)
        async with gateway(self.broker, self.folder, settings, name, sender) as made:
            yield made

    async def job(self, gw: GatewayUnderTest, url: str = URL, **body: object) -> str:
        """A job that waits for its end."""
        job = str((await gw.submit(webhook_url=url, **body))["id"])
        await self.fleet.run(job)
        return job

    async def ended(self, gw: GatewayUnderTest, url: str = URL, **body: object) -> str:
        job = await self.job(gw, url, **body)
        await self.fleet.finish(job)
        await settle()
        return job

    def entry(self, bucket: str, job: str) -> Delivery | None:
        entry = self.broker.streams[bucket].last.get(delivery_key("default", job))
        return None if entry is None else decode(entry.value or b"", Delivery)

    def open(self, job: str) -> Delivery | None:
        return self.entry(DELIVERIES.name, job)

    def delivered(self, job: str) -> Delivery | None:
        return self.entry(DELIVERED.name, job)

    def only_delivered(self, job: str) -> bool:
        return self.open(job) is None and self.delivered(job) is not None


async def world_of(broker: MemoryBroker, clock: FakeClock, folder: Path) -> World:
    """One in which a model is served."""
    fleet = Fleet(broker, open_store(str(folder)), clock)
    await fleet.announce()
    return World(broker, folder, clock, Receivers(clock), fleet)


async def webhook(gw: GatewayUnderTest, job: str) -> dict[str, object]:
    """What the job's view says of its webhook."""
    view = (await gw.view(job))["webhook"]
    assert isinstance(view, dict)
    return view
