"""The gateway's index over the archive gives what a scan of everything would give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import retained_index
from gateway.index import Filters, Place
from gateway.retained_index import Retained, RetainedIndex
from gateway.stored import Kept, Stored

TENANTS, STATES, MODELS, TASKS = ("a", "b"), ("succeeded", "failed", "cancelled"), ("m1", "m2"), ("t1", "t2")

jobs = st.builds(
    Retained,
    id=st.integers(0, 40).map(lambda number: f"{number:032x}"),
    tenant=st.sampled_from(TENANTS),
    state=st.sampled_from(STATES),
    model=st.sampled_from(MODELS),
    task=st.sampled_from(TASKS),
    created_at=st.integers(0, 5).map(float),
)
filters = st.builds(
    Filters,
    states=st.frozensets(st.sampled_from((*STATES, "queued"))),
    model=st.sampled_from(("", *MODELS, "other")),
    task=st.sampled_from(("", *TASKS)),
    ascending=st.booleans(),
)


@pytest.fixture
def index() -> Iterator[RetainedIndex]:
    made = RetainedIndex()
    yield made
    made.close()


def pages(index: RetainedIndex, tenant: str, wanted: Filters, count: int) -> list[Place]:
    """All places, page by page."""
    found: list[Place] = []
    after: Place | None = None
    while True:
        page, after = index.following(tenant, wanted, after, count)
        assert len(page) <= count
        found += page
        if after is None:
            return found


def fits(job: Retained, tenant: str, wanted: Filters) -> bool:
    return (
        job.tenant == tenant
        and (not wanted.states or job.state in wanted.states)
        and (not wanted.model or job.model == wanted.model)
        and (not wanted.task or job.task == wanted.task)
    )


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(st.lists(jobs, max_size=12), max_size=5),
    gone=st.lists(st.integers(0, 40).map(lambda number: f"{number:032x}"), max_size=6),
    wanted=filters,
    tenant=st.sampled_from((*TENANTS, "nobody")),
    count=st.integers(1, 6),
    looked_at=st.sampled_from((7, 5000)),
)
def test_pages_are_what_a_scan_gives(
    batches: list[list[Retained]], gone: list[str], wanted: Filters, tenant: str, count: int, looked_at: int
) -> None:
    index = RetainedIndex()
    kept: dict[str, Retained] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retained_index, "MAX_LOOKED_AT", looked_at)
        for batch in batches:
            index.add(batch)
            for job in {job.id: job for job in batch}.values():
                kept.setdefault(job.id, job)
        for name in gone:
            index.delete("a", name)
            kept.pop(name, None)
        assert len(index) == len(kept)
        places = [Place(job.created_at, job.id) for job in kept.values() if fits(job, tenant, wanted)]
        assert pages(index, tenant, wanted, count) == sorted(places, reverse=not wanted.ascending)
    index.close()


def job(number: int) -> Retained:
    return Retained(id=f"{number:032x}", tenant="a", state="failed", model="m", task="t", created_at=float(number))


def test_a_deleted_job_does_not_come_back(index: RetainedIndex) -> None:
    index.delete("a", job(1).id)
    index.add([job(1), job(2)])
    assert pages(index, "a", Filters(), 10) == [Place(2.0, job(2).id)]
    assert index.holds(job(1).id)
    assert index.holds(job(2).id)
    assert not index.holds(job(3).id)


def test_what_is_not_known_is_removed_without_ado(index: RetainedIndex) -> None:
    index.remove(job(1).id)
    index.add([])
    assert len(index) == 0
    assert pages(index, "a", Filters(), 10) == []


def test_after_a_clear_it_is_filled_anew(index: RetainedIndex) -> None:
    index.add([job(1)])
    index.clear()
    assert pages(index, "a", Filters(), 10) == []
    index.add([job(2)])
    assert pages(index, "a", Filters(states=frozenset({"failed"})), 10) == [Place(2.0, job(2).id)]


deeds = st.lists(
    st.tuples(
        st.sampled_from(("add", "add", "add", "remove", "delete", "clear")),
        st.integers(0, 6),
        st.integers(0, 3),
        st.frozensets(st.sampled_from("xyz")),
    ),
    max_size=25,
)


@given(deeds)
def test_what_is_kept_is_that_of_the_jobs_it_holds(done: list[tuple[str, int, int, frozenset[str]]]) -> None:
    stored = Stored()
    index = RetainedIndex(stored)
    held: dict[str, tuple[str, Kept]] = {}
    gone: set[str] = set()
    for deed, number, outputs, inputs in done:
        job, tenant = f"{number:032x}", TENANTS[number % 2]
        if deed == "add":
            what = Kept(outputs * 1000, dict.fromkeys(inputs, 7))
            row = Retained(id=job, tenant=tenant, state="failed", model="m1", task="t1", created_at=0.0, kept=what)
            index.add([row])
            if job not in gone:
                held.setdefault(job, (tenant, what))
        elif deed == "clear":
            index.clear()
            held.clear()
        else:
            index.delete(tenant, job) if deed == "delete" else index.remove(job)
            gone |= {job} if deed == "delete" else set()
            held.pop(job, None)
        for owner in TENANTS:
            own = [what for of, what in held.values() if of == owner]
            files = {name for what in own for name in what.inputs}
            assert stored.bytes_of(owner) == sum(what.outputs for what in own) + 7 * len(files)
            assert sum(index.states(owner).values()) == len(own)
    index.close()
    stored.close()
