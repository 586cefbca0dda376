"""How long a job takes on a kind of worker: learnt from those that have ended. Pure.

What is known best comes first: jobs of the same model and size on the same kind of worker, by their steps; the model on
that kind, by steps times pixels times frames; a worker's own measured seconds per step; and the model on another kind,
as if it went as fast as it has devices.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from shared.messages import JobRequest, WorkerLease

#: Weight of the newest, once there are as many that it would count more in a mean.
_LEARN = 0.1
_KEPT = 4096

_Key = TypeVar("_Key")


class Kind(NamedTuple):
    """Workers that go equally fast: the device's word, its name, and how many of them a group has."""

    device: str
    name: str
    width: int


def kind_of(lease: WorkerLease) -> Kind:
    """The worker's kind."""
    return Kind(lease.device, lease.device_name, max(1, lease.width))


def steps_of(request: JobRequest) -> int:
    """Denoising steps over all outputs."""
    return request.steps * request.n


class _Mean:
    """A mean in which the newest count most."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += max(_LEARN, 1.0 / self.count) * (value - self.value)


class Paces:
    """What was learnt. Steps of less than one and volumes of nothing are taken as one."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, int, Kind], _Mean] = {}
        self._rough: dict[tuple[str, Kind], _Mean] = {}
        self._told: dict[tuple[str, Kind], float] = {}
        self._kinds: dict[str, list[Kind]] = {}

    def learn(self, model: str, volume: int, steps: int, kind: Kind, seconds: float) -> None:
        """A job of so many steps took so long."""
        volume, steps = max(1, volume), max(1, steps)
        if seconds <= 0.0:
            return
        self._mean(self._exact, (model, volume, kind)).add(seconds / steps)
        if (model, kind) not in self._rough:
            self._kinds.setdefault(model, []).append(kind)
        self._mean(self._rough, (model, kind)).add(seconds / steps / volume)

    def told(self, model: str, kind: Kind, step_s: float) -> None:
        """A worker of that kind says that a step takes so long."""
        if step_s > 0.0:
            self._told[model, kind] = step_s

    def _mean(self, table: dict[_Key, _Mean], key: _Key) -> _Mean:
        found = table.get(key)
        if found is None:
            if len(table) >= _KEPT:
                del table[next(iter(table))]
            found = table[key] = _Mean()
        return found

    def expected_s(self, model: str, volume: int, steps: int, kind: Kind) -> float | None:
        """Seconds that a job is expected to take there, loading not counted; None if nothing is known."""
        volume, steps = max(1, volume), max(1, steps)
        exact = self._exact.get((model, volume, kind))
        if exact is not None:
            return steps * exact.value
        rough = self._rough.get((model, kind))
        if rough is not None:
            return steps * volume * rough.value
        step_s = self._told.get((model, kind))
        if step_s is not None:
            return steps * step_s
        for other in self._kinds.get(model, ()):
            there = self._rough.get((model, other))
            if there is not None:
                return steps * volume * there.value * other.width / kind.width
        return None
