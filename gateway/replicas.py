"""How many gateways there are: each keeps a lease in the memory bucket ``gateways``, and counts those of the others.

As with workers, a lease ends by silence alone, and silence counts only while there is contact with the bus: a broker
that restarts and forgets its memory makes nobody alone.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

from gateway.broker_clock import BrokerClock
from gateway.loops import forever
from shared.bus import Batch, Bus
from shared.clock import Clock
from shared.errors import BusError
from shared.messages import GatewayLease, encode
from shared.telemetry import log
from shared.topology import GATEWAYS

_LOG = log(__name__)

#: A gateway that has been silent for so long is not counted any more; each renews three times as often.
LEASE_S = 6.0
#: After which a lease is no longer kept in mind, whatever the contact was.
_FORGOTTEN_S = 10 * LEASE_S
_LEAVING_S = 0.5


class Replicas:
    """Filled by the follower of ``gateways``."""

    def __init__(self, bus: Bus, clock: Clock, broker_clock: BrokerClock) -> None:
        self._bus = bus
        self._clock = clock
        self._broker_clock = broker_clock
        self._bucket = bus.bucket(GATEWAYS.name)
        self._others: dict[str, float] = {}
        #: Of this start of this gateway.
        self.name = f"gateway-{secrets.token_hex(4)}"
        self._beat = 0

    def count(self) -> int:
        """This one, and the others that are there."""
        if not self._others:
            return 1
        contact, now = self._bus.contact_s(), self._clock.monotonic()
        return 1 + sum(min(now - at, contact) < LEASE_S for at in self._others.values())

    def on_gateways(self, batch: Batch) -> None:
        """Leases, from the follower."""
        now = self._clock.monotonic()
        for entry in batch.entries:
            self._broker_clock.saw(entry.timestamp)
            if entry.value is None:
                self._others.pop(entry.key, None)
            elif entry.key != self.name:
                self._others[entry.key] = now - self._broker_clock.since(entry.timestamp)
        for name in [name for name, at in self._others.items() if now - at > _FORGOTTEN_S]:
            del self._others[name]

    async def renew(self) -> None:
        """Keep this gateway's lease until cancelled."""
        await forever("lease", self._clock, self._renew)

    async def _renew(self) -> None:
        self._beat += 1
        lease = GatewayLease(gateway=self.name, beat=self._beat, lease_s=LEASE_S)
        try:
            await self._bucket.put(self.name, encode(lease))
        except BusError as error:
            _LOG.debug("the lease was not renewed", error=type(error).__name__)
        await self._clock.sleep(LEASE_S / 3)

    async def leave(self) -> None:
        """The others may have this one's part at once."""
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(_LEAVING_S):
                await self._bucket.delete(self.name)
