"""Which layouts a group of ranks offers, and which one a job gets. Pure: no torch.

A layout takes ``cfg * ulysses * ring`` ranks. Where that is fewer than the group has, the others repeat the same work
on the same numbers: simple, exact, and all ranks stay in step. Offered is every layout whose product divides the width,
with a Ulysses degree that divides the model's heads. CFG and Ulysses give bit for bit what one rank gives, ring rounds
differently: it is taken by default only where it puts ranks to work that Ulysses cannot reach.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from shared.messages import Layout, Parallel
from workers.engine.errors import CannotLoad, NotServed
from workers.pool import PoolLayout


def offered(width: int, heads: int, wish: PoolLayout, full_width: int | None = None) -> tuple[Layout, ...]:
    """Every layout that the group can run, the one that jobs get by default first.

    Args:
        width: ranks in the group.
        heads: attention heads of the model.
        wish: of the pool.
        full_width: of the pool; a group that is narrower comes as near to the wish as it can.

    Raises:
        CannotLoad: the pool's own layout is not among them.
    """
    sharding = Layout(
        dit_fsdp=wish.dit_fsdp and width > 1,
        t5_fsdp=wish.t5_fsdp and width > 1,
        vae_parallel=wish.vae_parallel and width > 1,
    )
    degrees = range(1, width + 1)
    layouts = [
        replace(sharding, cfg=cfg, ulysses=ulysses, ring=ring)
        for cfg in (1, 2)
        for ulysses in degrees
        for ring in degrees
        if width % (cfg * ulysses * ring) == 0 and heads % ulysses == 0
    ]
    layouts.sort(key=_preference)
    asked = [layout for layout in layouts if _is(layout, wish.cfg, wish.ulysses, wish.ring)]
    if not asked and full_width is not None and width < full_width:
        asked = [
            layout
            for layout in layouts
            if layout.cfg <= (wish.cfg or 2)
            and layout.ulysses <= (wish.ulysses or width)
            # Ring takes what the narrower Ulysses leaves only if the pool has a ring.
            and layout.ring <= (wish.ring or 1)
        ]
    if not asked:
        raise CannotLoad(
            f"the pool's layout {_words(wish.cfg, wish.ulysses, wish.ring)} is not possible on {width} ranks "
            f"with {heads} attention heads; on offer: {describe(layouts)}"
        )
    layouts.remove(asked[0])
    return (asked[0], *layouts)


def _preference(layout: Layout) -> tuple[int, int, int]:
    """Most ranks at work first; of those, the narrower ring, then CFG parallel before a wider Ulysses, because it
    exchanges less."""
    return -layout.cfg * layout.ulysses * layout.ring, layout.ring, -layout.cfg


def _is(layout: Layout, cfg: int | None, ulysses: int | None, ring: int | None) -> bool:
    return cfg in (None, layout.cfg) and ulysses in (None, layout.ulysses) and ring in (None, layout.ring)


def _words(cfg: int | None, ulysses: int | None, ring: int | None) -> str:
    asked = {"cfg": cfg, "ulysses": ulysses, "ring": ring}
    return ", ".join(f"{name}={degree}" for name, degree in asked.items() if degree is not None)


def describe(layouts: Iterable[Layout]) -> str:
    """Layouts for people: ``cfg 2 × ulysses 4, …``."""
    return ", ".join(
        f"cfg {layout.cfg} × ulysses {layout.ulysses}" + (f" × ring {layout.ring}" if layout.ring > 1 else "")
        for layout in layouts
    )


def choose(offer: tuple[Layout, ...], wish: Parallel, *, guided: bool = True) -> Layout:
    """The layout that a job gets: the first on offer that has all that it asks for.

    Args:
        offer: of the group.
        wish: of the job.
        guided: whether the job has two halves of guidance; one without has nothing to do for ``cfg`` 2, and gets the
            widest layout with 1 unless it asks for another.

    Raises:
        NotServed: none has; the message lists the layouts on offer.
    """
    default = offer[0]
    for name, is_on, wished in (
        ("dit_fsdp", default.dit_fsdp, wish.dit_fsdp),
        ("t5_fsdp", default.t5_fsdp, wish.t5_fsdp),
        # A VAE that can be split need not be.
        ("vae_parallel", default.vae_parallel, wish.vae_parallel or None),
    ):
        if wished is not None and wished != is_on:
            raise NotServed(f"parallel.{name}: the pool was launched with{'' if is_on else 'out'} it")
    fitting = [layout for layout in offer if _is(layout, wish.cfg_size, wish.ulysses_size, wish.ring_size)]
    if not fitting:
        raise NotServed(
            f"parallel: {_words(wish.cfg_size, wish.ulysses_size, wish.ring_size)} is not possible here; "
            f"on offer: {describe(offer)}"
        )
    layout = fitting[0]
    if not guided and layout.cfg > 1 and wish.cfg_size is None:
        layout = min((one for one in fitting if one.cfg == 1), key=_preference, default=layout)
    return replace(layout, vae_parallel=False) if wish.vae_parallel is False else layout
