"""Lists and places against a plain list; the broker's time; who is in the fleet's way."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.broker_clock import BrokerClock
from gateway.index import Filters, JobIndex, Place, QueueIndex, cursor, from_cursor
from shared.errors import InvalidRequest
from shared.messages import JobRecord, JobRequest, State
from tests.support.clock import FakeClock

REQUEST = JobRequest(
    model="a",
    task="text-to-video",
    prompt="x",
    width=64,
    height=64,
    num_frames=1,
    fps=8,
    steps=4,
    guidance_scale=1.0,
    shift=1.0,
    solver="unipc",
    seed=0,
)

records = st.builds(
    lambda number, age, state, model, tenant, priority, steps: JobRecord(
        id=f"{number:032x}",
        request=replace(REQUEST, model=model, steps=steps),
        payload_hash="",
        created_at=float(age),
        state=state,
        tenant=tenant,
        priority=priority,
    ),
    number=st.integers(0, 1000),
    age=st.integers(0, 5),
    state=st.sampled_from(State),
    model=st.sampled_from(["a", "b"]),
    tenant=st.sampled_from(["t", "u"]),
    priority=st.integers(0, 2),
    steps=st.integers(1, 9),
)
many = st.lists(records, max_size=20, unique_by=lambda record: record.id)


@settings(max_examples=60)
@given(before=many, states=st.lists(st.sampled_from(State), min_size=20, max_size=20), dropped=st.integers(0, 20))
def test_an_index_is_what_a_scan_would_find(before: list[JobRecord], states: list[State], dropped: int) -> None:
    index, queue = JobIndex(), QueueIndex(ageing_s=600.0)
    for record in before:
        index.add(record)
        queue.add(record)
    after = [replace(record, state=state) for record, state in zip(before, states, strict=False)]
    for old, new in zip(before, after, strict=True):
        index.move(old, new)
        queue.remove(old)
        queue.add(new)
    for record in after[:dropped]:
        index.remove(record)
        queue.remove(record)
    kept = after[dropped:]

    for tenant in ("t", "u"):
        for filters in (
            Filters(),
            Filters(states=frozenset({"queued"})),
            Filters(states=frozenset({"queued", "failed"})),
            Filters(model="a"),
            Filters(task="text-to-video", model="b"),
        ):
            wanted = [
                Place(record.created_at, record.id)
                for record in kept
                if record.tenant == tenant
                and (not filters.states or record.state in filters.states)
                and filters.model in ("", record.request.model)
            ]
            found = list(index.following(tenant, filters, None))
            assert found == sorted(found, reverse=True)
            assert set(wanted) <= set(found)
            if len(found) > 1:
                assert list(index.following(tenant, filters, found[0])) == found[1:]
            oldest = replace(filters, ascending=True)
            assert list(index.following(tenant, oldest, None)) == found[::-1]
            if len(found) > 1:
                assert list(index.following(tenant, oldest, found[1])) == found[:1]
    assert +index.states == {state: n for state in State if (n := sum(r.state is state for r in kept))}

    queued = [record for record in kept if record.state is State.QUEUED]
    assert len(queue) == len(queued)
    for record in queued:
        same = [other for other in queued if other.request.model == record.request.model]
        own = [other for other in same if other.tenant == record.tenant]
        assert queue.ahead(record) == sum(_rank(other) < _rank(record) for other in own)
        assert queue.tenants(record.request.model)[record.tenant] == len(own)
    assert queue.waiting == Counter(record.tenant for record in queued)
    held = (State.ASSIGNED, State.RUNNING, State.CANCELLING)
    assert queue.running == Counter(record.tenant for record in kept if record.state in held)


def _rank(record: JobRecord) -> tuple[float, str]:
    return record.created_at - record.priority * 600.0, record.id


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=40))
def test_a_cursor_comes_back(created_at: float, job: str) -> None:
    place = Place(created_at, job)
    assert from_cursor(cursor(place)) == place


@given(st.text(max_size=60))
def test_a_cursor_of_somebody_elses_making_is_refused_or_harmless(word: str) -> None:
    try:
        place: Place | None = from_cursor(word)
    except InvalidRequest:
        place = None
    assert place is None or (isinstance(place.created_at, float) and isinstance(place.id, str))


def test_the_quickest_delivery_tells_the_brokers_time() -> None:
    clock = FakeClock(monotonic=100.0)
    broker = BrokerClock(clock)
    assert broker.now() is None
    assert broker.since(5.0) == 0.0
    broker.saw(4990.0)  # written ten seconds ago
    assert broker.now() == 4990.0
    broker.saw(5000.0)  # written just now
    broker.saw(4995.0)
    assert broker.now() == 5000.0
    assert broker.since(4970.0) == 30.0
    assert broker.since(None) == 0.0
    assert broker.since(6000.0) == 0.0


async def test_a_broker_whose_clock_was_set_back_is_believed_again() -> None:
    clock = FakeClock(monotonic=100.0)
    broker = BrokerClock(clock)
    broker.saw(9000.0)
    for _ in range(3):
        await clock.advance(BrokerClock.WINDOW_S + 1)
        broker.saw(clock.monotonic() + 400.0)
    assert broker.now() == pytest.approx(clock.monotonic() + 400.0)
