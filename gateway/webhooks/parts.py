"""The webhooks of one gateway, put together."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry

from gateway.following import Following
from gateway.links import Links
from gateway.live import Live
from gateway.webhooks.dispatcher import Dispatcher
from gateway.webhooks.metrics import WebhookMetrics
from gateway.webhooks.owing import Owing
from gateway.webhooks.payload import Payloads
from gateway.webhooks.replay import Replays
from gateway.webhooks.secret_versions import SecretVersions
from gateway.webhooks.sending import Addresses, GuardedSender, Sender, policy_of, resolve_apart
from shared.bus import Bus
from shared.clock import Clock
from shared.guarded_http import GuardedHttp
from shared.settings import Settings
from shared.topology import DELIVERIES, WEBHOOKS


class Webhooks:
    """Everything that routes and submits need of them. ``start`` before the view follows the jobs.

    Args:
        secret: the deployment's.
        sender: instead of the network.

    Raises:
        SettingsError: ``webhook_networks``.
    """

    def __init__(
        self,
        bus: Bus,
        live: Live,
        links: Links,
        settings: Settings,
        clock: Clock,
        name: str,
        secret: str,
        registry: CollectorRegistry,
        sender: Sender | None = None,
    ) -> None:
        policy = policy_of(settings)
        self.addresses = Addresses(policy)
        self.secrets = SecretVersions(bus, clock, live.broker_clock, secret)
        self.dispatcher = Dispatcher(
            bus,
            live,
            settings,
            clock,
            name,
            self.secrets,
            Payloads(live, links, settings.base_url),
            sender or GuardedSender(GuardedHttp(policy, resolver=resolve_apart)),
            self.addresses,
            WebhookMetrics(registry, live.deliveries),
        )
        self.replays = Replays(bus, live.deliveries, live.broker_clock, self.dispatcher.expect)
        self._owing = Owing(bus, live.deliveries, clock, name)
        live.on_end = self._owing.ended
        self._book = live.deliveries
        self._following = Following(bus, clock, frozenset({WEBHOOKS.name}))
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow and to deliver."""
        loops = (
            self._following.follow(WEBHOOKS.name, self.secrets.on_webhooks),
            self._book.follow_delivered(),
            self._follow_deliveries(),
            self._owing.run(),
        )
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        self.dispatcher.start(self._following.wait_caught_up())

    @property
    def caught_up(self) -> bool:
        """Whether all tenants' secrets are known."""
        return self._following.caught_up

    async def _follow_deliveries(self) -> None:
        await self._book.hears.wait()  # the broker's clock is known from then on, and nothing that is made is missed
        await self._following.follow(DELIVERIES.name, self._book.on_deliveries)

    async def stop(self) -> None:
        """End both."""
        await self.dispatcher.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
