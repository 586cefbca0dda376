"""What operators and admins did: who, what, to what, when. Durable in the bucket ``audit`` for 90 days, and the newest
of it here in memory, for ``GET /v1/audit``.

An act is noted before it is done: what cannot be noted is not done. The one exception is a full bucket: somebody whose
key was stolen must be able to revoke it; then the log of this process has the entry.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.auth import Caller
from gateway.entries import decoded
from gateway.problems import bus_down
from shared.bus import Batch, Bus, Entry
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable
from shared.messages import AuditEntry, encode
from shared.telemetry import log
from shared.topology import AUDIT

if TYPE_CHECKING:
    from gateway.parts import Gateway

_LOG = log(__name__)

#: So many of the newest are listed.
LISTED = 10_000
#: A longer target or detail is cut.
_MAX_TARGET = 200
_MAX_DETAIL = 1000


class Noted(NamedTuple):
    """An entry, and the bucket's revision of its writing, which is its place in the order."""

    revision: int
    entry: AuditEntry


class Audit:
    """The log. Filled by the follower of ``audit``."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock
        self._noted: deque[Noted] = deque(maxlen=LISTED)

    def on_audit(self, batch: Batch) -> None:
        """Entries of ``audit``."""
        if batch.reset:
            self._noted.clear()
        for entry in batch.entries:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        found = decoded(entry, AuditEntry)
        if found is not None and (not self._noted or entry.revision > self._noted[-1].revision):
            self._noted.append(Noted(entry.revision, found))

    def page(self, before: int | None, limit: int) -> tuple[Sequence[AuditEntry], int | None]:
        """The newest entries older than that revision (None: than nothing), newest first, and the revision at which the
        next page goes on (None: there is none)."""
        older = (one for one in reversed(self._noted) if before is None or one.revision < before)
        found = [one for one, _ in zip(older, range(limit + 1), strict=False)]
        shown = found[:limit]
        return [one.entry for one in shown], shown[-1].revision if len(found) > limit else None

    async def note(self, caller: Caller, action: str, target: str, detail: str = "") -> None:
        """Write it down. Raises as the module's ``note``."""
        now = self._clock.wall()
        entry = AuditEntry(
            id=f"{int(now * 1000):013d}-{secrets.token_hex(8)}",
            at=now,
            by=caller.by,
            tenant=caller.tenant,
            role=caller.role,
            action=action,
            target=target[:_MAX_TARGET],
            detail=detail[:_MAX_DETAIL],
        )
        value = encode(entry)
        _LOG.info("audit", entry=value.decode())
        try:
            await self._bus.bucket(AUDIT.name).create(entry.id, value)
        except BucketFull:
            _LOG.error("the audit log is full; this entry is here alone", entry=value.decode())
        except BusUnavailable:
            raise bus_down() from None


async def note(gateway: Gateway, caller: Caller, action: str, target: str, detail: str = "") -> None:
    """Write down what somebody with more than a user's rights is about to do; call it when the request is known to be
    in order, before anything is done.

    Args:
        action: what, as ``<thing>.<deed>``: ``worker.drain``, ``key.revoke``.
        target: to what: an id, a name; empty for the whole fleet.
        detail: what else matters; never a secret, nor what a user wrote.

    Raises:
        Problem: 503; it could not be written down, so it must not be done.
    """
    await gateway.audit.note(caller, action, target, detail)
