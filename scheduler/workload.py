"""What a fleet simulation is told: models, pools, tenants and how their jobs arrive, in one TOML file. See
``deploy/workloads``."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from scheduler.policy import Times
from shared.errors import GenfleetError

Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
#: Of the standard normal distribution.
_Z95 = 1.6449


class WorkloadError(GenfleetError):
    """The workload cannot be simulated."""


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model. A job's time is lognormal, given by its median and 95th percentile; ``fails``: share of attempts that
    fail; ``load_s``: a worker that has another model loaded takes so long to load this one."""

    name: str
    median_s: Positive
    p95_s: Positive
    load_s: Annotated[float, Meta(ge=0)] = 60.0
    fails: Share = 0.0

    def draw(self, random: Random) -> float:
        """Seconds that a job takes."""
        sigma = math.log(max(self.p95_s / self.median_s, 1.0)) / _Z95
        return self.median_s * math.exp(random.gauss(0.0, sigma))


class Pool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Workers of one kind. The first model is loaded at the start. ``mtbf_h``: hours between losses of one worker, on
    average; it comes back after ``repair_s``, empty."""

    name: str
    workers: Annotated[int, Meta(ge=1)]
    models: tuple[str, ...]
    width: Annotated[int, Meta(ge=1)] = 1
    mtbf_h: Positive | None = None
    repair_s: Positive = 300.0


class Tenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's share and limit, as an operator would set them."""

    name: str
    weight: Positive = 1.0
    max_running: int | None = None


class Arrivals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stream of jobs, on average ``per_hour``, from ``from_h`` on.

    ``poisson``: evenly. ``bursts``: so many at once as ``burst`` says. ``diurnal``: in a wave over 24 hours that swings
    by ``swing`` of the average and is highest at ``peak_h``.
    """

    tenant: str
    model: str
    per_hour: Positive
    process: Literal["poisson", "bursts", "diurnal"] = "poisson"
    priority: Annotated[int, Meta(ge=0, le=9)] = 5
    burst: Annotated[int, Meta(ge=1)] = 100
    swing: Share = 0.8
    peak_h: float = 15.0
    from_h: float = 0.0
    until_h: float | None = None

    def times(self, random: Random, hours: float) -> Iterator[float]:
        """Seconds at which its jobs arrive, in order."""
        now, end = self.from_h * 3600, min(self.until_h or hours, hours) * 3600
        each = self.burst if self.process == "bursts" else 1
        peak = self.per_hour * (1 + self.swing) if self.process == "diurnal" else self.per_hour
        while True:
            now += random.expovariate(peak / each / 3600)
            if now >= end:
                return
            if self.process == "diurnal" and random.random() * peak > self._rate(now):
                continue  # thinning: Lewis and Shedler, 1979
            for _ in range(each):
                yield now

    def _rate(self, now: float) -> float:
        return self.per_hour * (1 + self.swing * math.cos((now / 3600 - self.peak_h) / 24 * 2 * math.pi))


class Workload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. ``hours`` of arrivals; then the fleet works off what is left. ``detect_s``: until the loss of a worker
    is known; ``write_s`` and ``ask_s``: what a write and a question to a worker take."""

    name: str
    hours: Positive
    models: tuple[Model, ...]
    pools: tuple[Pool, ...]
    arrivals: tuple[Arrivals, ...]
    tenants: tuple[Tenant, ...] = ()
    seed: int = 1
    max_attempts: Annotated[int, Meta(ge=1)] = 3
    detect_s: Positive = 6.0
    write_s: Positive = 0.001
    ask_s: Positive = 0.002
    times: Times = Times()


def read(path: Path) -> Workload:
    """The workload in that file.

    Raises:
        WorkloadError: it cannot be read, or speaks of a model that it does not describe.
    """
    try:
        workload = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Workload)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise WorkloadError(f"{path}: {error}") from error
    known = {model.name for model in workload.models}
    served = {model for pool in workload.pools for model in pool.models}
    asked = {arrivals.model for arrivals in workload.arrivals}
    if unknown := (served | asked) - known:
        raise WorkloadError(f"{path}: no such models: {', '.join(sorted(unknown))}")
    if unserved := asked - served:
        raise WorkloadError(f"{path}: no pool serves {', '.join(sorted(unserved))}")
    return workload
