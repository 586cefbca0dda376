"""The shown error of an estimate covers what it claims: four of five jobs start, and end, within it.

``docs/scheduling.md`` has the figures of these runs; ``python -m tests.simulation.test_estimates`` prints them.
"""

from __future__ import annotations

import pytest

from gateway.estimates import COVERS
from scheduler.workload import Arrivals, Model, Pool, Tenant, Workload
from tests.simulation.estimating import Findings, off, watch

_VIDEO = Model(name="video", median_s=160.0, p95_s=300.0, load_s=60.0)
_IMAGE = Model(name="image", median_s=12.0, p95_s=25.0, load_s=30.0)


HOURS = 8.0


def day(seed: int, busy: float) -> Workload:
    """Eight hours of two tenants and a batch on thirteen workers of two kinds; ``busy``: how much of the fleet is asked
    for on average."""
    video = 10 * 3600 / 175 * busy
    image = 3 * 3600 / 13 * busy
    return Workload(
        name="estimates",
        seed=seed,
        hours=HOURS,
        models=(_VIDEO, _IMAGE),
        pools=(
            Pool(name="wide", workers=10, models=("video",), width=8, mtbf_h=60.0, repair_s=600.0),
            Pool(name="one", workers=3, models=("image",), width=1),
        ),
        tenants=(Tenant(name="studio", weight=2.0), Tenant(name="batch", max_running=8)),
        arrivals=(
            Arrivals(tenant="studio", model="video", process="diurnal", peak_h=5.0, per_hour=0.5 * video, priority=6),
            Arrivals(tenant="app", model="video", per_hour=0.3 * video),
            Arrivals(tenant="batch", model="video", process="bursts", burst=40, per_hour=0.2 * video, priority=2),
            Arrivals(tenant="app", model="image", process="bursts", burst=20, per_hour=image, priority=7),
        ),
    )


@pytest.mark.parametrize(("seed", "busy"), [(1, 0.85), (2, 1.05)])
def test_four_of_five_start_and_end_within_the_shown_error(seed: int, busy: float) -> None:
    found = watch(day(seed, busy))
    assert len(found.told()) > 300
    starts, ends = found.coverage()
    assert COVERS - 0.08 <= starts <= COVERS + 0.12
    assert COVERS - 0.08 <= ends <= COVERS + 0.15
    for third in found.thirds():
        assert found.coverage(third)[0] >= COVERS - 0.2


def test_half_of_the_starts_come_within_a_quarter_of_the_middle_estimate() -> None:
    found = watch(day(3, 0.95)).told()
    assert off(found, 0.5) <= 0.25 * (found[len(found) // 2].said.eta_s or 0.0)


def describe(name: str, found: Findings) -> str:
    """A row of the table in the docs."""
    starts, ends = found.coverage()
    thirds = ", ".join(f"{found.coverage(third)[0]:.0%}" for third in found.thirds())
    told = found.told()
    shown = sorted((one.said.eta_error_s or 0.0) for one in told)[len(told) // 2]
    median = (told[len(told) // 2].said.eta_s or 0.0) if told else 0.0
    quantiles = " / ".join(f"{off(told, share):.0f}" for share in (0.5, 0.8, 0.95))
    cells = (name, len(told), f"{median:.0f} s", f"{quantiles} s", f"{shown:.0f} s", f"{starts:.0%} ({thirds})")
    return "".join(f"| {cell} " for cell in cells) + f"| {ends:.0%} |"


if __name__ == "__main__":
    for seed, busy in ((1, 0.85), (3, 0.95), (2, 1.05)):
        print(describe(f"{busy:.0%}", watch(day(seed, busy))))
