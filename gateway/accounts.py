"""What is counted of tenants beside their jobs: how many gateways share out their rates, what is kept of them, and what
they have used."""

from __future__ import annotations

from collections.abc import Callable

from gateway.broker_clock import BrokerClock
from gateway.entries import decoded
from gateway.replicas import Replicas
from gateway.stored import Stored
from shared.bus import Batch, Bus
from shared.clock import Clock
from shared.messages import KeptInput, TenantUsage
from shared.topology import GATEWAYS, UPLOADS, USAGE


class Accounts:
    """Filled by the followers of ``gateways``, ``uploads`` and ``usage``.

    Attributes:
        usage: by tenant, as the leading scheduler wrote it down last.
    """

    def __init__(self, bus: Bus, clock: Clock, broker_clock: BrokerClock) -> None:
        self._clock = clock
        self._broker_clock = broker_clock
        self.replicas = Replicas(bus, clock, broker_clock)
        self.stored = Stored()
        self.usage: dict[str, TenantUsage] = {}
        #: What is to be followed, and by whom.
        self.followers: tuple[tuple[str, Callable[[Batch], None]], ...] = (
            (GATEWAYS.name, self.replicas.on_gateways),
            (UPLOADS.name, self._on_uploads),
            (USAGE.name, self._on_usage),
        )

    def _on_uploads(self, batch: Batch) -> None:
        now = self._clock.monotonic()
        for entry in batch.entries:
            self._broker_clock.saw(entry.timestamp)
            file = decoded(entry, KeptInput)
            if file is not None:
                tenant, _, sha256 = entry.key.partition(".")
                self.stored.uploaded(tenant, sha256, file.size, now - self._broker_clock.since(entry.timestamp))
        self.stored.forget_uploads(now)

    def _on_usage(self, batch: Batch) -> None:
        for entry in batch.entries:
            usage = decoded(entry, TenantUsage)
            if usage is not None:
                self.usage[usage.tenant] = usage
