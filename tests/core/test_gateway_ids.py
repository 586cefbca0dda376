"""Ids of jobs: by time, and never the same twice, however many are made from what the system drew at once."""

from __future__ import annotations

from gateway import ids


def test_fresh_ids_are_ids_and_none_comes_twice() -> None:
    made = [ids.fresh(1_700_000_000.0) for _ in range(5_000)]
    assert len({name[12:] for name in made}) == len(made)
    assert all(ids.parse(name) == name for name in made)
    assert {name[:12] for name in made} == {f"{1_700_000_000_000:012x}"}


def test_fresh_ids_order_by_time() -> None:
    assert ids.fresh(1_700_000_000.0) < ids.fresh(1_700_000_000.001) < ids.fresh(1_800_000_000.0)
