"""When queued jobs start, and what the shown error claims."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.estimates import COVERS, Estimates, Scores, Starts
from shared import lifecycle
from shared.lifecycle import Stamp
from shared.messages import JobRecord, Succeeded
from shared.pace import Kind
from tests.support.scripted_rank import a_request

ONE = Kind("cpu", "", 1)


def test_a_slot_takes_the_next_when_it_is_done() -> None:
    starts = Starts([(2.0, 5.0), (3.0, 5.0)])
    assert [starts.at(ahead) for ahead in range(5)] == [2.0, 3.0, 7.0, 8.0, 12.0]
    assert Starts([(0.0, 5.0)]).at(0) == 0.0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.5, 100.0)), min_size=1, max_size=20), st.integers(0, 20_000)
)
def test_starts_never_go_back_and_far_ones_follow_the_pace(slots: list[tuple[float, float]], ahead: int) -> None:
    starts = Starts(slots)
    assert starts.at(ahead) <= starts.at(ahead + 1) + 1e-9
    rate = sum(1.0 / each for _, each in slots)
    slowest = max(each for _, each in slots)
    assert starts.at(ahead) == pytest.approx(ahead / rate, abs=110.0 + 2 * slowest)


def test_the_error_is_shown_when_there_are_enough_scores() -> None:
    scores = Scores()
    for _ in range(7):
        scores.add(10.0, 12.0, 10.0)
    assert scores.error_s(10.0, 10.0) is None
    scores.add(10.0, 12.0, 10.0)
    assert scores.error_s(10.0, 10.0) == pytest.approx(2.0)
    assert scores.error_s(30.0, 10.0) == pytest.approx(4.0)


def test_the_error_covers_what_it_claims() -> None:
    draw = random.Random(5)
    scores = Scores()
    covered = 0
    for _ in range(4000):
        estimated = draw.uniform(0.0, 500.0)
        came = (estimated + 10.0) * draw.lognormvariate(0.1, 0.4)
        error = scores.error_s(estimated, 10.0)
        covered += error is not None and abs(came - estimated) <= error
        scores.add(estimated, came, 10.0)
    assert COVERS - 0.03 <= covered / 4000 <= COVERS + 0.03


def test_what_ended_is_learnt_without_the_time_to_load() -> None:
    estimates = Estimates()
    stamp = Stamp(by="test", at=0.0)
    queued = lifecycle.born(JobRecord(id="j", request=a_request(steps=10), payload_hash="", created_at=0.0), stamp)
    estimates.seen(queued, 0.0, None)
    assert estimates.each_s(queued.request.model, ONE) is None
    running = lifecycle.run(lifecycle.assign(queued, "w", "i", stamp), stamp)
    estimates.seen(running, 5.0, ONE)
    assert estimates.left_s("w", ONE, 6.0) == [(running, 0.0)]
    ended = lifecycle.fold(running, 1, Succeeded(outputs=(), used={"load_s": 20.0}), 50.0, stamp)
    assert ended is not None
    estimates.seen(ended, 55.0, ONE)
    assert estimates.takes_s(queued, ONE) == 30.0
    assert estimates.left_s("w", ONE, 60.0) == []
    estimates.seen(running, 100.0, ONE)
    assert estimates.left_s("w", ONE, 110.0) == [(running, 20.0)]
    # Longer than was expected: a quarter of that again.
    assert estimates.left_s("w", ONE, 500.0) == [(running, 7.5)]
    estimates.forget("j")
    assert estimates.left_s("w", ONE, 500.0) == []
