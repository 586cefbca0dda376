"""What the ranks of a gloo group do with LoRAs in tests, and the same in one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from msgspec.structs import replace

from shared.messages import JobRequest, Layout, LoraUse, Parallel
from tests.engine import cases
from tests.support.gloo import Ranks
from workers.engine import devices
from workers.engine.course import Alone, Course, Silent, Unison
from workers.engine.families.wan import Wan
from workers.engine.opening import open_model
from workers.pool import Pool, PoolLayout
from workers.pool_lora import PoolLora

#: Latents without a LoRA, with one, and without again.
Three = tuple[cases.Array, cases.Array, cases.Array]


def model_of(folder: Path, table: tuple[PoolLora, ...], world: int, fsdp: bool = False) -> Wan:
    """The pool's model on this rank."""
    pool = Pool(model=str(folder), width=world, layout=PoolLayout(dit_fsdp=fsdp), lora=table)
    opened = open_model(pool, devices.open_device("cpu"), cases.mesh(world))
    assert isinstance(opened, Wan)
    return opened


def three(model: Wan, request: JobRequest, layout: Layout, unison: Unison) -> Three:
    """A job without the LoRA ``style``, one with it, and one without."""
    course = Course(unison, Silent(), devices.open_device("cpu").is_out_of_memory)
    made = []
    for loras in ((), (LoraUse(name="style", weight=0.5),), ()):
        asked = replace(request, loras=loras)
        model.check(asked)
        with course.agreed(0):
            model._loras.use(asked.loras)
        made.append(cases.outcome(model, cases.job_of(asked, layout), course).latents)
    return made[0], made[1], made[2]


def alone(folder: Path, table: tuple[PoolLora, ...], request: JobRequest) -> Three:
    """In one process."""
    model = model_of(folder, table, 1)
    return three(model, request, model.check(request), Alone())


def together(
    ranks: Ranks, folder: Path, table: tuple[PoolLora, ...], request: JobRequest, fsdp: bool, alone: Three
) -> list[float]:
    """The largest differences from one process, on this rank, for CFG and for Ulysses over the whole group."""
    model = model_of(folder, table, ranks.world, fsdp)
    worst = []
    for parallel in (Parallel(cfg_size=2), Parallel(cfg_size=1, ulysses_size=ranks.world)):
        layout = model.check(replace(request, parallel=parallel))
        made = three(model, request, layout, cases.lockstep(ranks))
        worst += [float(np.abs(mine - theirs).max()) for mine, theirs in zip(made, alone, strict=True)]
    return worst
