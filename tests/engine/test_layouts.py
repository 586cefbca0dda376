"""Which layouts a group offers and which a job gets."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from shared.messages import Layout, Parallel
from workers.engine.errors import CannotLoad, NotServed
from workers.engine.parallel.layouts import choose, offered
from workers.pool import PoolLayout

Degrees = tuple[int, int, int]


def degrees(width: int, heads: int, wish: PoolLayout | None = None, full_width: int | None = None) -> list[Degrees]:
    offer = offered(width, heads, wish or PoolLayout(), full_width)
    return [(layout.cfg, layout.ulysses, layout.ring) for layout in offer]


@pytest.mark.parametrize(
    ("width", "heads", "first", "missing"),
    [
        (1, 40, (1, 1, 1), (2, 1, 1)),
        (2, 40, (2, 1, 1), (2, 2, 1)),
        (8, 40, (2, 4, 1), (2, 8, 1)),
        # Ulysses 8 cannot be, which ring makes up for.
        (8, 12, (2, 4, 1), (1, 8, 1)),
        (3, 40, (1, 1, 3), (1, 3, 1)),
        (16, 12, (2, 4, 2), (2, 8, 1)),
    ],
)
def test_offer(width: int, heads: int, first: Degrees, missing: Degrees) -> None:
    offer = degrees(width, heads)
    assert offer[0] == first
    assert missing not in offer
    assert (1, 1, 1) in offer
    assert len(offer) == len(set(offer))
    assert all(width % (cfg * ulysses * ring) == 0 and heads % ulysses == 0 for cfg, ulysses, ring in offer)


def test_the_pools_wish_comes_first() -> None:
    assert degrees(8, 40, PoolLayout(cfg=1))[0] == (1, 8, 1)
    assert degrees(8, 40, PoolLayout(ulysses=2))[0] == (2, 2, 2)
    assert degrees(8, 40, PoolLayout(ulysses=2, ring=1))[0] == (2, 2, 1)
    assert degrees(8, 12, PoolLayout(cfg=1, ring=2))[0] == (1, 4, 2)


@pytest.mark.parametrize(
    ("wish", "firsts"),
    [
        (PoolLayout(cfg=2, ulysses=4), [(2, 4, 1), (2, 2, 1), (2, 1, 1), (1, 1, 1)]),
        (PoolLayout(cfg=1, ulysses=8), [(1, 8, 1), (1, 4, 1), (1, 2, 1), (1, 1, 1)]),
        (PoolLayout(cfg=2, ulysses=2, ring=2), [(2, 2, 2), (2, 2, 1), (2, 1, 1), (1, 1, 1)]),
        (PoolLayout(cfg=1, ring=4), [(1, 2, 4), (1, 1, 4), (1, 2, 1), (1, 1, 1)]),
    ],
)
def test_a_narrower_group_comes_as_near_to_the_pools_wish_as_it_can(wish: PoolLayout, firsts: list[Degrees]) -> None:
    """8 → 4 → 2 → 1: the wish of the whole group must not keep a narrower one from coming up."""
    assert [degrees(width, 40, wish, 8)[0] for width in (8, 4, 2, 1)] == firsts


def test_a_job_without_guidance_does_not_do_its_work_twice() -> None:
    offer = offered(8, 40, PoolLayout())
    assert choose(offer, Parallel(), guided=False) == Layout(ulysses=8, vae_parallel=True)
    assert choose(offer, Parallel(cfg_size=2), guided=False).cfg == 2
    assert choose(offer, Parallel(ulysses_size=2), guided=False) == Layout(ulysses=2, ring=4, vae_parallel=True)
    assert choose(offered(2, 40, PoolLayout(cfg=2)), Parallel(), guided=False).ulysses == 2


def test_a_pool_that_asks_for_what_the_heads_do_not_allow_is_refused() -> None:
    with pytest.raises(CannotLoad, match="12 attention heads; on offer: cfg 2 × ulysses 4"):
        offered(8, 12, PoolLayout(cfg=1, ulysses=8))


def test_sharding_needs_more_than_one_rank() -> None:
    (only,) = offered(1, 40, PoolLayout(dit_fsdp=True, t5_fsdp=True))
    assert (only.dit_fsdp, only.t5_fsdp, only.vae_parallel) == (False, False, False)


def test_a_job_gets_what_it_asks_for() -> None:
    offer = offered(8, 40, PoolLayout(dit_fsdp=True))
    assert choose(offer, Parallel()) == offer[0]
    assert choose(offer, Parallel(ulysses_size=8)).cfg == 1
    assert choose(offer, Parallel(cfg_size=1, ulysses_size=2, ring_size=1)).ulysses == 2
    assert choose(offer, Parallel(ring_size=4)) == replace(offer[0], ulysses=1, ring=4)
    assert choose(offer, Parallel(vae_parallel=False)).vae_parallel is False
    assert choose(offer, Parallel(dit_fsdp=True)) == offer[0]


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (Parallel(ulysses_size=3), "on offer: cfg 2 × ulysses 4"),
        (Parallel(cfg_size=2, ulysses_size=8), "cfg=2, ulysses=8 is not possible here"),
        (Parallel(ring_size=3), "ring=3 is not possible here; on offer: .*cfg 1 × ulysses 1 × ring 8"),
        (Parallel(t5_fsdp=True), "t5_fsdp"),
        (Parallel(dit_fsdp=True), "dit_fsdp"),
        (Parallel(vae_parallel=True), "vae_parallel"),
    ],
)
def test_a_job_that_asks_for_what_there_is_not_is_refused(wish: Parallel, named: str) -> None:
    with pytest.raises(NotServed, match=named):
        choose(offered(8, 40, PoolLayout(vae_parallel=False)), wish)


def test_a_job_that_wants_no_sharding_is_refused_where_the_weights_are_sharded() -> None:
    offer = offered(8, 40, PoolLayout(dit_fsdp=True, t5_fsdp=True))
    for wish, named in ((Parallel(dit_fsdp=False), "dit_fsdp"), (Parallel(t5_fsdp=False), "t5_fsdp")):
        with pytest.raises(NotServed, match=f"{named}: the pool was launched with it"):
            choose(offer, wish)
