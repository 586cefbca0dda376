"""Promises 1, 2, 4 and 8 under fire: everything is killed, stopped and cut off in random order, and nothing is lost.

The size is for every run of the tests; ``make soak`` runs the same for longer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import chaos, replay

pytestmark = pytest.mark.system

JOBS, KILLS, SECONDS, POOLS, SEED = 200, 10, 25.0, 3, 1


async def test_nothing_is_lost_and_nothing_happens_twice(tmp_path: Path) -> None:
    """Row 9."""
    report = await chaos(tmp_path, jobs=JOBS, kills=KILLS, seconds=SECONDS, seed=SEED, pools=POOLS)
    again = replay(jobs=JOBS, kills=KILLS, seconds=SECONDS, seed=SEED, pools=POOLS)
    assert not report.broken, "\n".join([*report.broken, f"everything is in {tmp_path}", again])
    assert report.accepted == JOBS + report.retried == sum(report.states.values()) + report.deleted
    assert report.webhooks == report.accepted
    assert report.retried > 0
    assert report.deleted > 0
    assert sum(report.kills.values()) == KILLS
    assert (report.lost, report.double) == (0, 0)
    assert report.revisions_seen > JOBS, "the witness saw nothing"
