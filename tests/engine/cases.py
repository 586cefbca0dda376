"""What the ranks of a gloo group do in tests, and the same in one process to compare with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from msgspec.structs import replace

from shared.messages import JobRequest, Layout, Parallel
from tests.support.framed import read_picture, read_reference
from tests.support.gloo import Ranks
from workers.engine import devices
from workers.engine.acceleration.attention_cache import Cache
from workers.engine.course import Alone, Course, Silent, Where
from workers.engine.errors import AgreedFailure, StoppedAt
from workers.engine.families.base import Job
from workers.engine.families.wan import Wan
from workers.engine.lockstep import Beat, Command, Leave, Lockstep, Work
from workers.engine.media import Clip
from workers.engine.opening import open_model
from workers.engine.parallel.mesh import Mesh
from workers.engine.stages import decode
from workers.engine.stages import vae as causal
from workers.pool import Pool, PoolLayout

Array = npt.NDArray[np.float32]


class Outcome(Struct):
    """Latents after the last step, frames, how many attention outputs came from the cache, steps that were skipped."""

    latents: Array
    frames: npt.NDArray[np.uint8]
    reused: int
    parameters: int = 0
    skipped: int = 0


_loaded: dict[tuple[str, int, bool], Wan] = {}
_meshes: dict[int, Mesh] = {}
_lockstep: dict[int, Lockstep] = {}


def mesh(world: int) -> Mesh:
    """This process's places in a group of so many ranks: one for all models, as in a real rank. Each of gloo's groups
    has a thread that wakes up a hundred times a second."""
    if world not in _meshes:
        _meshes[world] = Mesh("cpu", world)
    return _meshes[world]


def family(folder: Path, world: int, fsdp: bool = False) -> Wan:
    """The model on this rank, loaded once per process."""
    key = (str(folder), world, fsdp)
    if key not in _loaded:
        pool = Pool(model=str(folder), width=world, layout=PoolLayout(dit_fsdp=fsdp, t5_fsdp=fsdp))
        opened = open_model(pool, devices.open_device("cpu"), mesh(world))
        assert isinstance(opened, Wan)
        _loaded[key] = opened
    return _loaded[key]


def lockstep(ranks: Ranks) -> Lockstep:
    """This process's control group, made once."""
    if ranks.world not in _lockstep:
        _lockstep[ranks.world] = Lockstep(ranks.rank, ranks.world, timeout_s=60.0)
    return _lockstep[ranks.world]


def outcome(model: Wan, job: Job, course: Course) -> Outcome:
    """What the job makes, before it is written to a file."""
    request = job.request
    cache = Cache(request.cache, request.steps)
    conditions = model.conditions(job, model.texts(request, course), course)
    place = model.prepare(job.layout, cache, request)
    state = model.start(request, request.seed, conditions)
    for after in model.denoising(request, state, conditions, place, course):
        state = after
    skipped = model._skipped()
    latents = conditions.given.end(state.latents)
    split = model._vae_split(job)
    chunks = decode.frames(model._vae, latents, split) if split is not None or model._mesh.rank == 0 else iter(())
    frames = [frame for chunk in chunks for frame in chunk]
    held = sum(parameter.numel() for parameter in _local(model))
    stacked = np.stack(frames) if frames else np.zeros(0, np.uint8)
    return Outcome(latents.numpy(), stacked, cache.reused, held, skipped)


def _local(model: Wan) -> list[torch.Tensor]:
    from torch.distributed.tensor import DTensor

    parameters: list[torch.Tensor] = list(model._transformers[0].parameters())
    return [p.to_local() if isinstance(p, DTensor) else p for p in parameters]


def job_of(
    request: JobRequest,
    layout: Layout,
    image: Path | None = None,
    *,
    last_image: Path | None = None,
    references: tuple[Path, ...] = (),
    **clips: Clip,
) -> Job:
    """The job as rank 0 would make it."""
    named = {"image": image, "last_image": last_image}
    pictures = {
        name: read_picture(path, request.width, request.height) for name, path in named.items() if path is not None
    }
    for index, path in enumerate(references):
        pictures[f"references.{index}"] = read_reference(path, request.width, request.height)
    return Job(request, layout, pictures, None, clips)


def alone(folder: Path, request: JobRequest, image: Path | None = None, **inputs: Any) -> Outcome:
    """The job in one process."""
    model = family(folder, 1)
    return outcome(model, job_of(request, model.check(request), image, **inputs), _course(Alone()))


def together(
    ranks: Ranks,
    folder: Path,
    request: JobRequest,
    image: Path | None = None,
    fsdp: bool = False,
    inputs: dict[str, Any] | None = None,
    at_least: int = 1,
) -> list[tuple[Layout, Outcome]]:
    """The job in every layout without a ring that the group offers, or those that take at least so many ranks."""
    model = family(folder, ranks.world, fsdp)
    made = []
    for layout in (each for each in model.layouts if each.ring == 1 and each.cfg * each.ulysses >= at_least):
        wish = Parallel(cfg_size=layout.cfg, ulysses_size=layout.ulysses, ring_size=layout.ring)
        chosen = model.check(replace(request, parallel=wish))
        assert chosen == layout
        made.append(
            (chosen, outcome(model, job_of(request, chosen, image, **(inputs or {})), _course(lockstep(ranks))))
        )
    return made


def _course(unison: Any, listener: Any = None) -> Course:
    return Course(unison, listener or Silent(), devices.open_device("cpu").is_out_of_memory)


def vae_split(ranks: Ranks, folder: Path, columns: int) -> dict[str, float]:
    """Largest difference of pixels and of latents, split against whole, on this rank; 5 frames of 8 latent rows."""
    vae = family(folder, ranks.world)._vae
    split = family(folder, ranks.world)._split
    assert split is not None
    generator = torch.Generator().manual_seed(0)
    side = vae.config.scale_factor_spatial
    pixels = torch.rand(1, 3, 5, 8 * side, side * columns, generator=generator) * 2 - 1
    latents = torch.randn(1, vae.config.z_dim, 2, 8, columns, generator=generator)
    chunks = [pixels[:, :, :1], pixels[:, :, 1:]]
    whole_latents = causal.encode(vae, chunks)
    whole_pixels = torch.cat(list(causal.decode(vae, latents)), 2)
    with split.active():
        split_latents = split.whole(causal.encode(vae, [split.part(chunk, side) for chunk in chunks]))
        split_pixels = split.whole(torch.cat(list(causal.decode(vae, split.part(latents))), 2))
    return {
        "encode": float((split_latents - whole_latents).abs().max()),
        "decode": float((split_pixels - whole_pixels).abs().max()),
    }


class StopAt:
    """A listener that wants to stop once a step is reached, and remembers the way."""

    def __init__(self, step: int) -> None:
        self.step, self.way = step, list[Where]()

    def at(self, where: Where) -> None:
        self.way.append(where)

    def show(self, picture: Callable[[], bytes]) -> None:
        return None

    def should_stop(self) -> bool:
        return bool(self.way) and self.way[-1].step >= self.step


def stopped_then_next(ranks: Ranks, folder: Path, request: JobRequest, step: int) -> tuple[int, Outcome]:
    """Rank 0 stops a job before that step; then the group does the job in full. Where this rank stopped, and the
    second outcome."""
    model = family(folder, ranks.world)
    layout = model.layouts[0]
    listener = StopAt(step) if ranks.rank == 0 else Silent()
    stopped = -1
    try:
        model.run(job_of(request, layout, None), _course(lockstep(ranks), listener))
    except StoppedAt as where:
        stopped = where.step
        model.forget()
    return stopped, outcome(model, job_of(request, layout, None), _course(lockstep(ranks)))


def poisoned_then_next(ranks: Ranks, folder: Path, request: JobRequest, bad: int) -> tuple[str, Outcome]:
    """On one rank the start of a job is not finite; then the group does the job in full."""
    model = family(folder, ranks.world)
    layout, usual = model.layouts[0], model.start

    def broken(*args: Any) -> Any:
        state = usual(*args)
        return replace(state, latents=state.latents * float("nan"))

    if ranks.rank == bad:
        model.start = broken  # type: ignore[method-assign,assignment]
    told = ""
    try:
        model.run(job_of(request, layout, None), _course(lockstep(ranks)))
    except AgreedFailure as failure:
        told = f"{failure.reason}: {failure}"
    finally:
        model.start = usual  # type: ignore[method-assign]
    model.forget()
    return told, outcome(model, job_of(request, layout, None), _course(lockstep(ranks)))


def commands(ranks: Ranks, request: JobRequest) -> list[str]:
    """Rank 0 leads three commands; what every rank saw."""
    control = lockstep(ranks)
    sent: list[Command] = [Beat(), Work(request, Layout(cfg=2), {}), Leave()]
    if ranks.rank == 0:
        for command in sent:
            control.lead(command)
        return [repr(command) for command in sent]
    return [repr(control.follow()) for _ in sent]


def smallest_of(ranks: Ranks, values: tuple[int, ...]) -> int:
    """What all ranks agree on as the smallest of what each says."""
    return lockstep(ranks).smallest(values[ranks.rank])
