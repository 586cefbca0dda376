"""A job's end makes a delivery: written by the first gateway that sees the end. The leader makes sure of it before the
job is archived (``scheduler.archive``), so none is lost if no gateway was there."""

from __future__ import annotations

import asyncio
from collections import deque

from gateway.entries import decoded
from gateway.loops import forever
from gateway.webhooks.book import Book
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BusError, BusUnavailable, KeyExists
from shared.messages import Delivery, JobRecord, encode
from shared.telemetry import log, places
from shared.topology import DELIVERIES, delivery_key
from shared.webhooks import delivery_of

_LOG = log(__name__)

_AT_ONCE = 16
AGAIN_S = 1.0


class Owing:
    """Writes what is owed.

    Args:
        name: of this start of this gateway.
    """

    def __init__(self, bus: Bus, book: Book, clock: Clock, name: str) -> None:
        self._deliveries = bus.bucket(DELIVERIES.name)
        self._book = book
        self._clock = clock
        self._name = name
        self._owed: deque[Delivery] = deque()
        self._some = asyncio.Event()

    def ended(self, record: JobRecord) -> None:
        """The job has ended."""
        if record.webhook_url is None or self._book.knows(delivery_key(record.tenant, record.id)):
            return
        delivery = delivery_of(record, self._name)
        if delivery is not None:
            self._owed.append(delivery)
            self._some.set()

    async def run(self) -> None:
        """Write them, until cancelled."""
        await forever("owed webhooks", self._clock, self._write)

    async def _write(self) -> None:
        await self._some.wait()
        some = [self._owed.popleft() for _ in range(min(_AT_ONCE, len(self._owed)))]
        unsure = [one for one in await asyncio.gather(*map(self._create, some)) if one is not None]
        self._owed.extendleft(unsure)
        if not self._owed:
            self._some.clear()
        if unsure:
            await self._clock.sleep(AGAIN_S)

    async def _tidy(self, key: str, made: Delivery) -> None:
        """Whoever made it may have died before it was taken from what is owed."""
        entry = await self._deliveries.get(key)
        left = None if entry is None else decoded(entry, Delivery)
        if entry is not None and left is not None and left.round <= made.round:
            await self._deliveries.purge(key, entry.revision)

    async def _create(self, delivery: Delivery) -> Delivery | None:
        """Write that it is owed; the delivery if that has to be done once more."""
        key = delivery_key(delivery.tenant, delivery.job)
        if self._book.knows(key):
            return None
        try:
            made = await self._book.was_made(key)
            if made is not None:
                self._book.settle(key, made)
                await self._tidy(key, made)
            else:
                self._book.put(key, delivery, await self._deliveries.create(key, encode(delivery)))
        except KeyExists:
            return None
        except BusUnavailable:
            return delivery
        except BusError as error:
            _LOG.error("a webhook cannot be kept; the leader will try again", key=key, error=repr(error))
        except Exception as error:
            # The others that are written with it must not be lost over what is wrong with this one.
            _LOG.error("a webhook could not be kept; the leader will try again", key=key, places=places(error))
        return None
