"""What an agent reads to know whether it should go on: its orders, and the record of the job it holds.

Both are read, not listened for: a nudge only says "look now", so a lost one costs a moment and no promise.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from shared.bus import Bus, Entry
from shared.errors import BusUnavailable
from shared.messages import TERMINAL, CancelOrder, JobRecord, State, decode
from shared.topology import JOBS, ORDERS, cancel_key, drain_key

#: What decoding raises for bytes that are not that message.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Stop(StrEnum):
    """Why an attempt is to end before it is done."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    TAKEN = "taken"
    DRAIN = "drain"


class Standing(StrEnum):
    """How a job's record stands to one attempt at it."""

    #: The attempt is the one that counts.
    CURRENT = "current"
    #: As CURRENT, and it is to be stopped.
    CANCELLING = "cancelling"
    #: The attempt's end is in the record.
    FOLDED = "folded"
    #: The job was put back into the queue: this attempt counts no more.
    REQUEUED = "requeued"
    #: Another attempt counts, or ended the job.
    SUPERSEDED = "superseded"
    #: There is no record.
    GONE = "gone"


def standing(entry: Entry | None, epoch: int) -> Standing:
    """How the record in this entry stands to the attempt of this epoch. A record that this version cannot read
    counts as CURRENT: nothing may be decided from it."""
    if entry is None or entry.value is None:
        return Standing.GONE
    try:
        record = decode(entry.value, JobRecord)
    except UNREADABLE:
        return Standing.CURRENT
    if record.epoch > epoch or (record.state in TERMINAL and record.epoch != epoch):
        return Standing.SUPERSEDED
    if record.epoch < epoch:
        return Standing.CURRENT
    if record.state in TERMINAL:
        return Standing.FOLDED
    if record.state is State.QUEUED:
        return Standing.REQUEUED
    return Standing.CANCELLING if record.state is State.CANCELLING else Standing.CURRENT


_STOPS = {
    Standing.CURRENT: None,
    Standing.CANCELLING: Stop.CANCEL,
    Standing.FOLDED: Stop.TAKEN,
    Standing.REQUEUED: Stop.TAKEN,
    Standing.SUPERSEDED: Stop.TAKEN,
    Standing.GONE: Stop.TAKEN,
}


class Orders:
    """The orders of one start of one agent."""

    def __init__(self, bus: Bus, worker: str, incarnation: str) -> None:
        self._orders = bus.bucket(ORDERS.name)
        self._jobs = bus.bucket(JOBS.name)
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
            if entry is not None and entry.value is not None:
                order = decode(entry.value, CancelOrder)
                if (order.job, order.epoch) == (job, epoch):
                    return Stop.CANCEL
            return _STOPS[standing(await self._jobs.get(job), epoch)]
        except (BusUnavailable, *UNREADABLE):
            return None
