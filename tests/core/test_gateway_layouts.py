"""A layout that nobody can give is refused at submit, naming those on offer; every field of ``parallel`` counts."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from gateway.resolve import UNANNOUNCED, Offer, describe, fits, resolve
from gateway.schema.requests import ParallelBody, SubmitBody
from scheduler.events import Wish
from scheduler.policy import offers as scheduler_offers
from shared.errors import InvalidRequest
from shared.messages import Layout, Parallel

CARD = replace(UNANNOUNCED, name="wan", heads=12)
OFFERS = (
    Offer(layout=Layout(cfg=2, ulysses=4, vae_parallel=True, dit_fsdp=True), full_width=8),
    Offer(layout=Layout(cfg=1, ulysses=4, ring=2, vae_parallel=True, dit_fsdp=True), full_width=8),
)


def asked(*offers: Offer, **parallel: object) -> Parallel:
    body = SubmitBody(prompt="a", parallel=msgspec.convert(parallel, ParallelBody))
    return resolve(body, CARD, {}, offers, 1, "wan").parallel


@pytest.mark.parametrize(
    "wish",
    [
        {"ring_size": 2},
        {"cfg_size": 1, "ulysses_size": 4, "ring_size": 2},
        {"ring_size": 1, "vae_parallel": False},
        {"dit_fsdp": True, "vae_parallel": True},
        {"t5_fsdp": False},
    ],
)
def test_what_is_on_offer_is_taken(wish: dict[str, int | bool]) -> None:
    assert asked(*OFFERS, **wish) == Parallel(**wish)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"ring_size": 4}, "parallel"),
        ({"cfg_size": 2, "ring_size": 2}, "parallel"),
        ({"cfg_size": 1, "ring_size": 1}, "parallel"),
        ({"dit_fsdp": False}, "parallel"),
        ({"t5_fsdp": True}, "parallel"),
        ({"ulysses_size": 8}, "parallel.ulysses_size"),
    ],
)
def test_what_is_not_is_refused_with_what_is(wish: dict[str, int | bool], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(*OFFERS, **wish)
    assert refused.value.field == field
    assert "on offer: cfg_size 1 ulysses_size 4 ring_size 2 dit_fsdp vae_parallel; cfg_size 2 ulysses_size 4" in str(
        refused.value
    )


def test_what_the_heads_forbid_is_refused_even_if_no_worker_is_there() -> None:
    assert asked(ulysses_size=6) == Parallel(ulysses_size=6)
    with pytest.raises(InvalidRequest, match="8 does not divide the model's 12 attention heads"):
        asked(ulysses_size=8)


def test_a_group_that_narrowed_may_come_back_with_its_ring() -> None:
    narrowed = Offer(layout=Layout(), full_width=8)
    assert asked(narrowed, ulysses_size=2, ring_size=4).ring_size == 4
    with pytest.raises(InvalidRequest, match="on offer: cfg_size 1 ulysses_size 1"):
        asked(narrowed, ulysses_size=4, ring_size=4)


@pytest.mark.parametrize(
    "wish",
    [
        Parallel(ring_size=2),
        Parallel(ring_size=1, vae_parallel=False),
        Parallel(ring_size=4),
        Parallel(dit_fsdp=False),
        Parallel(vae_parallel=True, cfg_size=2),
    ],
)
def test_the_scheduler_judges_as_the_gateway_does(wish: Parallel) -> None:
    layouts = tuple(offer.layout for offer in OFFERS)
    judged = scheduler_offers(Wish(model="wan", parallel=wish), layouts)
    assert judged == any(fits(wish, layout) for layout in layouts)


def test_a_ring_is_described_where_there_is_one() -> None:
    assert describe(Layout(cfg=2)) == "cfg_size 2 ulysses_size 1"
    assert describe(Layout(ring=3)) == "cfg_size 1 ulysses_size 1 ring_size 3"
