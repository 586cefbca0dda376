"""Which layouts a group of ranks offers, and which one a job gets. Pure: no torch.

A layout takes ``cfg * ulysses`` ranks. Where that is fewer than the group has, the others repeat the same work on the
same numbers: simple, exact, and all ranks stay in step. Offered is every pair whose product divides the width, with a
Ulysses degree that divides the model's heads.
"""

from __future__ import annotations

from msgspec.structs import replace

from shared.messages import Layout, Parallel
from workers.engine.errors import CannotLoad, NotServed
from workers.pool import PoolLayout


def offered(width: int, heads: int, wish: PoolLayout) -> tuple[Layout, ...]:
    """Every layout that the group can run, the one that jobs get by default first.

    Raises:
        CannotLoad: the pool's own layout is not among them.
    """
    sharding = Layout(
        dit_fsdp=wish.dit_fsdp and width > 1,
        t5_fsdp=wish.t5_fsdp and width > 1,
        vae_parallel=wish.vae_parallel and width > 1,
    )
    pairs = [
        (cfg, ulysses)
        for cfg in (2, 1)
        for ulysses in range(width, 0, -1)
        if width % (cfg * ulysses) == 0 and heads % ulysses == 0
    ]
    # Most ranks at work first; of those, CFG parallel before a wider Ulysses, because it exchanges less.
    pairs.sort(key=lambda pair: -pair[0] * pair[1])
    asked = [pair for pair in pairs if wish.cfg in (None, pair[0]) and wish.ulysses in (None, pair[1])]
    if not asked:
        raise CannotLoad(
            f"the pool's layout cfg={wish.cfg}, ulysses={wish.ulysses} is not possible on {width} ranks "
            f"with {heads} attention heads; on offer: {describe(pairs)}"
        )
    pairs.remove(asked[0])
    return tuple(replace(sharding, cfg=cfg, ulysses=ulysses) for cfg, ulysses in (asked[0], *pairs))


def describe(pairs: list[tuple[int, int]]) -> str:
    """Layouts for people: ``cfg 2 × ulysses 4, …``."""
    return ", ".join(f"cfg {cfg} × ulysses {ulysses}" for cfg, ulysses in pairs)


def choose(offer: tuple[Layout, ...], wish: Parallel) -> Layout:
    """The layout that a job gets: the first on offer that has all that it asks for.

    Raises:
        NotServed: none has; the message lists the layouts on offer.
    """
    default = offer[0]
    for name, is_on, wished in (
        ("dit_fsdp", default.dit_fsdp, wish.dit_fsdp),
        ("t5_fsdp", default.t5_fsdp, wish.t5_fsdp),
    ):
        if wished and not is_on:
            raise NotServed(f"parallel.{name}: the pool was launched without it")
    if wish.vae_parallel and not default.vae_parallel:
        raise NotServed("parallel.vae_parallel: the pool was launched without it")
    for layout in offer:
        if wish.cfg_size in (None, layout.cfg) and wish.ulysses_size in (None, layout.ulysses):
            return layout if wish.vae_parallel is not False else replace(layout, vae_parallel=False)
    on_offer = describe([(layout.cfg, layout.ulysses) for layout in offer])
    raise NotServed(
        f"parallel: cfg_size={wish.cfg_size}, ulysses_size={wish.ulysses_size} is not possible here; "
        f"on offer: {on_offer}"
    )
