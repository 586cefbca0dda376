"""A chaos run is drawn from its seed alone, and hits everything."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.plan import Blow, Target, faults, jobs


def test_the_same_seed_is_the_same_run() -> None:
    assert faults(1, 60, 200.0) == faults(1, 60, 200.0) != faults(2, 60, 200.0)
    assert jobs(1, 50, 200.0) == jobs(1, 50, 200.0) != jobs(2, 50, 200.0)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_kills_as_asked_of_everything(seed: int) -> None:
    drawn = faults(seed, 60, 200.0)
    killed = Counter(fault.target for fault in drawn if fault.blow is Blow.KILL)
    assert killed == dict.fromkeys(Target, 12)
    lesser = [fault for fault in drawn if fault.blow is not Blow.KILL]
    assert len(lesser) == 20
    assert {fault.blow for fault in lesser} == set(Blow) - {Blow.KILL}
    assert [fault.at_s for fault in drawn] == sorted(fault.at_s for fault in drawn)
    assert drawn[0].at_s >= 0
    assert drawn[-1].at_s <= 200.0


def test_a_small_run_hits_everything_too() -> None:
    assert {fault.target for fault in faults(3, 5, 20.0)} == set(Target)
    assert faults(3, 0, 20.0) == ()


def test_jobs_come_evenly_each_with_its_own_key() -> None:
    drawn = jobs(1, 2000, 200.0)
    assert len({job.key for job in drawn}) == 2000
    assert drawn[1000].at_s == 100.0
    shares = {
        "cancelled": sum(job.cancel_after_s is not None for job in drawn),
        "failing": sum(job.may_fail for job in drawn),
        "watched": sum(job.watched for job in drawn),
        "sent twice": sum(job.sent_twice for job in drawn),
        "reprioritised": sum(job.reprioritised is not None for job in drawn),
        "retried": sum(job.retried for job in drawn),
        "deleted": sum(job.deleted for job in drawn),
    }
    assert all(20 < share < 300 for share in shares.values()), shares
    assert not any(job.deleted and (job.retried or job.watched) for job in drawn)
