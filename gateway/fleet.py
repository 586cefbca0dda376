"""The workers and models that a gateway has heard of."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from msgspec.structs import replace

from gateway.broker_clock import BrokerClock
from gateway.entries import decoded
from gateway.resolve import Offer
from shared.bus import Batch, Bus
from shared.cards import Cards
from shared.clock import Clock
from shared.messages import Layout, ModelCard, WorkerLease, WorkerState

#: A worker that has not renewed its lease for so long is forgotten.
_FORGET_WORKER_S = 60.0
#: The state of one that has been silent for two lease times; the other states are its own words.
LOST = "lost"
#: How long a list of workers is gone by, if no lease says anything else: silence is noticed so late.
GOOD_FOR_S = 0.25
_MODELS_REMEMBERED = 256
_UP = (WorkerState.IDLE, WorkerState.BUSY)


@dataclass(frozen=True, slots=True)
class Seen:
    """A lease, and when it was last renewed on this process's monotonic clock."""

    lease: WorkerLease
    at: float


@dataclass(frozen=True, slots=True)
class _There:
    """The workers of one model: those that are there, those that serve it now, and the layouts that these offer."""

    until: float
    generation: int
    listing: list[WorkerLease]
    serving: list[WorkerLease]
    offers: tuple[Offer, ...]


class Fleet:
    """Filled by the followers of the buckets ``workers`` and ``models``.

    A broker restart empties ``workers`` (it is in memory), but no worker is gone because of that: leases end by
    silence alone, and silence counts only while there is contact with the bus.

    Attributes:
        generation: another number whenever a lease or card says something else than before, but for which jobs are
            held. What is asked at each submit is remembered as long as it stays: there may be hundreds of workers.
    """

    def __init__(self, bus: Bus, clock: Clock, broker_clock: BrokerClock) -> None:
        self._bus = bus
        self._clock = clock
        self._broker_clock = broker_clock
        #: Of each model the card that counts.
        self.models: dict[str, ModelCard] = {}
        self._leases: dict[str, Seen] = {}
        self._cards = Cards(self._leases.__contains__)
        self._by_model: dict[str, set[str]] = defaultdict(set)
        self._there: dict[str, _There] = {}
        self.generation = 0

    def on_workers(self, batch: Batch) -> None:
        """Leases, from the follower."""
        for entry in batch.entries:
            self._broker_clock.saw(entry.timestamp)
            before = self.lease(entry.key)
            self._forget(entry.key)
            lease = decoded(entry, WorkerLease)
            if before is None or lease is None or _says(before) != _says(lease):
                self.generation += 1
            if lease is not None:
                renewed = self._clock.monotonic() - self._broker_clock.since(entry.timestamp)
                self._leases[entry.key] = Seen(lease, renewed)
                for model in lease.models:
                    self._by_model[model].add(entry.key)
            if before is None or lease is None:
                self._choose(*(known.models if (known := lease or before) is not None else ()))

    def on_models(self, batch: Batch) -> None:
        """Model cards, from the follower."""
        self.generation += 1
        if batch.reset:
            self._cards.clear()
            self.models.clear()
        for entry in batch.entries:
            self._choose(self._cards.take(entry.key, decoded(entry, ModelCard)))

    def _choose(self, *models: str) -> None:
        for model in models:
            card = self._cards.get(model)
            if card is None:
                self.models.pop(model, None)
            else:
                self.models[model] = card

    def workers(self) -> list[tuple[WorkerLease, str, float]]:
        """All leases by worker, each with the worker's state as seen from here and the seconds since it was renewed."""
        for name, seen in list(self._leases.items()):
            if self._silence(seen) > _FORGET_WORKER_S:
                self._forget(name)
                self._choose(*seen.lease.models)
        now = self._clock.monotonic()
        return [(seen.lease, self._state(seen), now - seen.at) for _, seen in sorted(self._leases.items(), key=_name)]

    def lease(self, worker: str) -> WorkerLease | None:
        """The worker's last lease."""
        seen = self._leases.get(worker)
        return None if seen is None else seen.lease

    def listing(self, model: str) -> list[WorkerLease]:
        """Leases of the workers that are there and can serve the model, if not just now. Not to be changed."""
        return self._of(model).listing

    def serving(self, model: str) -> list[WorkerLease]:
        """Leases of the workers that serve the model now. Not to be changed."""
        return self._of(model).serving

    def starting(self, model: str) -> bool:
        """Whether some worker is about to serve the model, or one is starting that has not said what it serves."""
        return any(
            self._state(seen) == WorkerState.STARTING and (not seen.lease.models or model in seen.lease.models)
            for seen in self._leases.values()
        )

    def offers(self, model: str) -> tuple[Offer, ...]:
        """The layouts that are on offer for the model."""
        return self._of(model).offers

    def layouts(self, model: str) -> tuple[Layout, ...]:
        """The same, each once, in the order of the workers' names."""
        leases = sorted(self.serving(model), key=lambda lease: lease.worker)
        return tuple(dict.fromkeys(layout for lease in leases for layout in lease.layouts))

    def _of(self, model: str) -> _There:
        now = self._clock.monotonic()
        known = self._there.get(model)
        if known is not None and known.generation == self.generation and now < known.until:
            return known
        found = [self._leases[name] for name in self._by_model.get(model, ())]
        serving = [seen.lease for seen in found if self._state(seen) in _UP]
        made = _There(
            until=now + GOOD_FOR_S,
            generation=self.generation,
            listing=[seen.lease for seen in found if self._state(seen) != LOST],
            serving=serving,
            offers=tuple(
                Offer(layout=layout, full_width=lease.full_width) for lease in serving for layout in lease.layouts
            ),
        )
        if len(self._there) > _MODELS_REMEMBERED:
            self._there.clear()
        self._there[model] = made
        return made

    def _silence(self, seen: Seen) -> float:
        return min(self._clock.monotonic() - seen.at, self._bus.contact_s())

    def _state(self, seen: Seen) -> str:
        return LOST if self._silence(seen) > 2 * seen.lease.lease_s else str(seen.lease.state)

    def _forget(self, name: str) -> None:
        seen = self._leases.pop(name, None)
        for model in seen.lease.models if seen else ():
            self._by_model[model].discard(name)
            if not self._by_model[model]:
                del self._by_model[model]


def mean_step_s(model: str, leases: list[WorkerLease]) -> float | None:
    """Measured seconds per denoising step of the model, over these workers."""
    measured = [lease.step_s[model] for lease in leases if model in lease.step_s]
    return sum(measured) / len(measured) if measured else None


def _says(lease: WorkerLease) -> WorkerLease:
    """The lease without what changes all the time and concerns nobody who waits."""
    return replace(lease, beat=0, held=(), state=WorkerState.BUSY if lease.state in _UP else lease.state)


def _name(item: tuple[str, Seen]) -> str:
    return item[0]
