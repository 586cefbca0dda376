"""Which layouts a group offers and which a job gets."""

from __future__ import annotations

import pytest

from shared.messages import Parallel
from workers.engine.errors import CannotLoad, NotServed
from workers.engine.parallel.layouts import choose, offered
from workers.pool import PoolLayout


def pairs(width: int, heads: int, wish: PoolLayout | None = None) -> list[tuple[int, int]]:
    return [(layout.cfg, layout.ulysses) for layout in offered(width, heads, wish or PoolLayout())]


@pytest.mark.parametrize(
    ("width", "heads", "first", "missing"),
    [
        (1, 40, (1, 1), (2, 1)),
        (2, 40, (2, 1), (2, 2)),
        (8, 40, (2, 4), (2, 8)),
        (8, 12, (2, 4), (1, 8)),
        (3, 40, (1, 1), (1, 3)),
    ],
)
def test_offer(width: int, heads: int, first: tuple[int, int], missing: tuple[int, int]) -> None:
    offer = pairs(width, heads)
    assert offer[0] == first
    assert missing not in offer
    assert (1, 1) in offer
    assert len(offer) == len(set(offer))


def test_the_pools_wish_comes_first() -> None:
    assert pairs(8, 40, PoolLayout(cfg=1))[0] == (1, 8)
    assert pairs(8, 40, PoolLayout(ulysses=2))[0] == (2, 2)


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
    assert choose(offer, Parallel(cfg_size=1, ulysses_size=2)).ulysses == 2
    assert choose(offer, Parallel(vae_parallel=False)).vae_parallel is False
    assert choose(offer, Parallel(dit_fsdp=True)) == offer[0]


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        (Parallel(ulysses_size=3), "on offer: cfg 2 × ulysses 4"),
        (Parallel(cfg_size=2, ulysses_size=8), "cfg_size=2, ulysses_size=8"),
        (Parallel(t5_fsdp=True), "t5_fsdp"),
        (Parallel(dit_fsdp=True), "dit_fsdp"),
        (Parallel(vae_parallel=True), "vae_parallel"),
    ],
)
def test_a_job_that_asks_for_what_there_is_not_is_refused(wish: Parallel, named: str) -> None:
    with pytest.raises(NotServed, match=named):
        choose(offered(8, 40, PoolLayout(vae_parallel=False)), wish)
