"""What is kept of tenants: every output, every input once, for as long as something is the reason."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stored import Kept, Stored
from shared.topology import UPLOADS

DAY_S = UPLOADS.ttl_s or 0.0


@pytest.fixture
def stored() -> Stored:
    return Stored()


def test_an_input_counts_once_however_many_use_it(stored: Stored) -> None:
    job = Kept(10, {"a": 100, "b": 7})
    stored.add("t", job)
    stored.add("t", job)
    assert stored.bytes_of("t") == 2 * 10 + 107
    stored.remove("t", job)
    assert stored.bytes_of("t") == 10 + 107
    stored.remove("t", job)
    assert stored.bytes_of("t") == 0


def test_tenants_do_not_share_inputs(stored: Stored) -> None:
    stored.add("t", Kept(0, {"a": 100}))
    assert stored.new("u", {"a": 100}) == 100
    assert stored.new("t", {"a": 100, "b": 1}) == 1
    stored.add("u", Kept(0, {"a": 100}))
    assert (stored.bytes_of("t"), stored.bytes_of("u")) == (100, 100)


def test_an_upload_counts_until_the_sweep_has_removed_it(stored: Stored) -> None:
    stored.uploaded("t", "a", 100, at=0.0)
    stored.uploaded("t", "a", 100, at=50.0)
    stored.forget_uploads(DAY_S + 49.0)
    assert stored.bytes_of("t") == 100
    stored.forget_uploads(DAY_S + 50.0)
    assert stored.bytes_of("t") == 0


def test_an_upload_that_a_job_uses_counts_once_and_stays(stored: Stored) -> None:
    stored.uploaded("t", "a", 100, at=0.0)
    stored.add("t", Kept(5, {"a": 100}))
    assert stored.bytes_of("t") == 105
    stored.forget_uploads(DAY_S)
    assert stored.bytes_of("t") == 105
    stored.remove("t", Kept(5, {"a": 100}))
    assert stored.bytes_of("t") == 0


@given(
    st.lists(st.tuples(st.sampled_from("tu"), st.integers(0, 5), st.frozensets(st.sampled_from("abc"))), max_size=30)
)
def test_the_sum_is_that_of_what_is_there(jobs: list[tuple[str, int, frozenset[str]]]) -> None:
    sizes = {"a": 1000, "b": 2000, "c": 4000}
    stored = Stored()
    there: list[tuple[str, Kept]] = []
    for tenant, outputs, inputs in jobs:
        if outputs == 0 and there:
            stored.remove(*there.pop(len(there) // 2))
        else:
            job = Kept(outputs, {name: sizes[name] for name in inputs})
            there.append((tenant, job))
            stored.add(tenant, job)
        expected: Counter[str] = Counter()
        for owner in "tu":
            expected[owner] = sum(job.outputs for of, job in there if of == owner) + sum(
                sizes[name] for name in sizes if any(name in job.inputs for of, job in there if of == owner)
            )
            assert stored.bytes_of(owner) == expected[owner]
