"""The gateway's followers: one per bucket and process, for as long as it lives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from shared.bus import Batch, Bus
from shared.clock import Clock
from shared.telemetry import log

_LOG = log(__name__)

#: Pause before a follower that failed begins again.
AGAIN_S = 1.0


class Following:
    """Hands on what the buckets bring.

    Args:
        needed: buckets that must have been read once before the gateway knows enough to answer.
    """

    def __init__(self, bus: Bus, clock: Clock, needed: frozenset[str]) -> None:
        self._bus = bus
        self._clock = clock
        self._missing = set(needed)
        self._all = asyncio.Event()

    @property
    def caught_up(self) -> bool:
        """Whether all that is needed has been read once."""
        return not self._missing

    async def wait_caught_up(self) -> None:
        """Return once all that is needed has been read."""
        await self._all.wait()

    async def follow(self, name: str, take: Callable[[Batch], Awaitable[None] | None]) -> None:
        """Give every batch of the bucket to ``take``, until cancelled."""
        while True:
            try:
                async for batch in self._bus.bucket(name).follow():
                    work = take(batch)
                    if work is not None:
                        await work
                    if batch.caught_up and name in self._missing:
                        self._missing.discard(name)
                        if not self._missing:
                            self._all.set()
            except Exception:
                # A follower outlives everything that the bus knows of; what ends one is a fault of ours, and one
                # that does not come back would freeze every stream.
                _LOG.exception("a follower failed", bucket=name)
            await self._clock.sleep(AGAIN_S)
