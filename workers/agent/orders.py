"""What an agent reads to know whether it should go on: its orders.

They are read, not listened for: a nudge only says "look now", so a lost one costs a moment and no promise. Records are
none of a worker's business, and its credentials do not open them: that a job has gone on without an attempt is said by
an order too, or by an assignment of the job at a later epoch.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shared.bus import Bus
from shared.errors import BusUnavailable
from shared.messages import CancelOrder, decode
from shared.topology import ORDERS, cancel_key, drain_key

#: What decoding raises for bytes that are not that message.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Stop(StrEnum):
    """Why an attempt is to end before it is done."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    TAKEN = "taken"
    DRAIN = "drain"


class Orders:
    """The orders of one start of one agent."""

    def __init__(self, bus: Bus, worker: str, incarnation: str) -> None:
        self._orders = bus.bucket(ORDERS.name)
        self._worker = worker
        self._incarnation = incarnation

    async def drain(self) -> bool | None:
        """True: take no more jobs. False: that order was taken back. None: there is none, or no answer."""
        try:
            entry = await self._orders.get(drain_key(self._worker, self._incarnation))
        except BusUnavailable:
            return None
        return None if entry is None else entry.value is not None

    async def stop(self, job: str, epoch: int) -> Stop | None:
        """Why the attempt should stop, or None if it should go on (or nobody answers)."""
        try:
            entry = await self._orders.get(cancel_key(self._worker, self._incarnation, job, epoch))
            if entry is None or entry.value is None:
                return None
            order = decode(entry.value, CancelOrder)
        except (BusUnavailable, *UNREADABLE):
            return None
        if (order.job, order.epoch) != (job, epoch):
            return None
        return Stop.TAKEN if order.superseded else Stop.CANCEL
