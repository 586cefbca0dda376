"""The worker's sign of life in the bucket ``workers``.

Renewed by compare-and-set on the agent's own last write, so that an agent notices when another one has started under
its name: a new start forfeits the old one's jobs, and the old one must go. A lease that has vanished (a memory bucket
after a broker restart) is simply written again. With several replicas of the bucket a read may come from one that lags
behind, and shows what this agent wrote before; that is no reason to overwrite what refused it.
"""

from __future__ import annotations

from msgspec.structs import replace

from shared.bus import Bus
from shared.errors import BusError, BusUnavailable, GenfleetError, WrongRevision
from shared.messages import ModelCard, WorkerLease, decode, encode
from shared.telemetry import log
from shared.topology import MODELS, WORKERS, model_key
from workers.agent.orders import UNREADABLE

#: Reads in a row that may show an older lease than the last that was acknowledged.
MAX_STALE_READS = 5

_log = log(__name__)


class Superseded(GenfleetError):
    """Another agent has started under this worker's name: this one must stop."""


class LeasePace:
    """When the next lease may go out: at once as a rule, but a worker whose jobs take milliseconds must not write more
    leases than results. A bucket of ``IN_A_ROW`` tokens, one more every ``SPACING_S``. Times in seconds."""

    IN_A_ROW = 10
    SPACING_S = 0.05

    def __init__(self, now: float) -> None:
        #: The time until which the tokens taken so far would last at the even pace.
        self._paid = now - self.IN_A_ROW * self.SPACING_S

    def wait(self, now: float) -> float:
        """Take a token; how long to wait for it."""
        self._paid = max(self._paid, now - self.IN_A_ROW * self.SPACING_S) + self.SPACING_S
        return self._paid - now


class LeaseKeeper:
    """Publishes one agent's lease and its model cards.

    Attributes:
        failures: publications that the bus did not confirm.
    """

    def __init__(self, bus: Bus) -> None:
        self._workers = bus.bucket(WORKERS.name)
        self._models = bus.bucket(MODELS.name)
        self._beat = 0
        #: Of the last write that was acknowledged: its revision and beat.
        self._revision: int | None = None
        self._known_beat = 0
        self._stale_reads = 0
        self._away = False
        self._announced: dict[str, ModelCard] = {}
        self.failures = 0

    async def publish(self, lease: WorkerLease) -> bool:
        """Write the lease with the next beat; whether the bus confirmed it.

        Raises:
            Superseded: the key holds another start's lease, newer than this one's last.
        """
        self._beat += 1
        try:
            self._revision = await self._write(replace(lease, beat=self._beat))
            self._known_beat = self._beat
        except BusError as error:
            self.failures += 1
            if not self._away:
                _log.warning("lease_not_renewed", error=str(error))
            self._away = True
            return False
        if self._away:
            _log.info("lease_renewed")
        self._away = False
        return True

    async def _write(self, lease: WorkerLease) -> int:
        value = encode(lease)
        if self._revision is not None:
            try:
                return await self._workers.update(lease.worker, value, self._revision)
            except WrongRevision:
                found = await self._workers.get(lease.worker)
            there = None if found is None or found.value is None else _lease(found.value)
            if found is not None and found.value is not None:
                if there is None or there.incarnation != lease.incarnation:
                    raise Superseded
                if there.beat <= self._known_beat and self._stale_reads < MAX_STALE_READS:
                    self._stale_reads += 1
                    raise BusUnavailable("the lease was read from a replica that lags behind")
        self._stale_reads = 0
        return await self._workers.put(lease.worker, value)

    async def announce(self, worker: str, cards: tuple[ModelCard, ...]) -> None:
        """Make the cards known as this worker's, where what is known differs. May be called again and again."""
        for card in cards:
            if self._announced.get(card.name) == card:
                continue
            value = encode(card)
            try:
                key = model_key(worker, card.name)
                found = await self._models.get(key)
                if found is None or found.value != value:
                    await self._models.put(key, value)
            except BusError as error:
                _log.warning("model_not_announced", model=card.name, error=str(error))
                continue
            self._announced[card.name] = card

    async def withdraw(self, worker: str, incarnation: str) -> None:
        """Take the lease back, if it is still this agent's: observers need not wait for it to run out."""
        try:
            found = await self._workers.get(worker)
            there = None if found is None or found.value is None else _lease(found.value)
            if found is not None and there is not None and there.incarnation == incarnation:
                await self._workers.delete(worker, found.revision)
        except BusError as error:
            _log.info("lease_left", error=str(error))


def _lease(value: bytes) -> WorkerLease | None:
    try:
        return decode(value, WorkerLease)
    except UNREADABLE:
        return None
