"""The fleet simulation: small fleets whose figures can be known."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from scheduler.simulate import Simulation
from scheduler.workload import Arrivals, Model, Pool, Tenant, Workload, WorkloadError, read

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "workloads"
ONE = Workload(
    name="one",
    hours=1.0,
    models=(Model(name="m", median_s=10.0, p95_s=10.0),),
    pools=(Pool(name="p", workers=4, models=("m",)),),
    arrivals=(Arrivals(tenant="t", model="m", per_hour=600),),
)


def test_every_job_ends_and_the_fleet_is_as_busy_as_its_work() -> None:
    report = Simulation(ONE).run()
    assert report.jobs == report.succeeded == sum(waits.jobs for waits in report.priorities)
    assert report.jobs > 500
    busy = report.jobs * 10.0 / (4 * report.hours * 3600)
    assert report.utilisation == pytest.approx(busy, rel=0.01)


def test_a_seed_gives_the_same_figures() -> None:
    first, again = Simulation(ONE).run(), Simulation(ONE).run()
    same = {"decide_s": 0.0, "wall_s": 0.0}
    assert replace(first, **same) == replace(again, **same)
    other = Simulation(replace(ONE, seed=2)).run()
    assert other.priorities != first.priorities


def test_losses_of_workers_cost_no_job() -> None:
    pool = Pool(name="p", workers=4, models=("m",), mtbf_h=0.05, repair_s=30.0)
    report = Simulation(replace(ONE, pools=(pool,))).run()
    assert report.lost_workers > 10
    assert report.requeues > 0
    assert report.jobs == report.succeeded


def test_shares_follow_weights_while_two_tenants_want_more_than_there_is() -> None:
    each = 1400.0
    workload = replace(
        ONE,
        hours=2.0,
        tenants=(Tenant(name="a", weight=3.0),),
        arrivals=(
            Arrivals(tenant="a", model="m", per_hour=each),
            Arrivals(tenant="b", model="m", per_hour=each),
        ),
    )
    report = Simulation(workload).run()
    used = report.course.used_s
    half = len(used["a"]) // 4
    assert used["a"][half] > 1.5 * used["b"][half]
    for one in report.starved:
        assert one.wait_s <= one.bound_s


def test_jobs_that_always_fail_end_as_failed() -> None:
    model = Model(name="m", median_s=10.0, p95_s=20.0, fails=1.0)
    report = Simulation(replace(ONE, hours=0.02, models=(model,))).run()
    assert report.failed == report.jobs > 0


def test_example_workloads_can_be_read() -> None:
    found = sorted(FOLDER.glob("*.toml"))
    assert found
    for path in found:
        assert read(path).models


def test_a_model_that_no_pool_serves_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text(
        'name="x"\nhours=1\npools=[]\narrivals=[{tenant="t",model="m",per_hour=1}]\n'
        '[[models]]\nname="m"\nmedian_s=1\np95_s=2\n'
    )
    with pytest.raises(WorkloadError, match="no pool serves m"):
        read(path)
    path.write_text("hours = 'many'")
    with pytest.raises(WorkloadError):
        read(path)
