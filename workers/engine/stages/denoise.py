"""The denoise loop's parts: the noise that a job starts from, one step, and the explicit value carried between steps.

``DenoiseState`` is all that the loop carries: it can be written down (safetensors, no pickle) and continued elsewhere,
on another layout even, with the same result. What it leaves out is the attention cache and the step cache, which are as
large as many videos: a job with a cache continues with the same result from steps at which the cache holds nothing
needed, ``can_continue``.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import safetensors.torch
import torch
import torch.distributed as dist
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor

from shared.messages import AttentionCache, StepCache
from workers.engine import noise_schedulers as noise
from workers.engine.acceleration import attention_cache, step_cache
from workers.engine.parallel.collective import collective
from workers.engine.parallel.mesh import Place

#: (latents, model timestep, branch) → the model's output, float32. Branch 0 is the prompt's, 1 the negative prompt's.
Model = Callable[[Tensor, int, int], Tensor]


class DenoiseState(Struct, frozen=True):
    """What denoising carries from step to step.

    Attributes:
        step: the 0-based step to do next.
        latents: [1, z, f, h, w], float32.
        history: of the noise scheduler.
        generator: state of the job's CPU generator.
    """

    step: int
    latents: Tensor
    history: noise.History
    generator: Tensor


def start(shape: tuple[int, ...], seed: int, device: torch.device) -> DenoiseState:
    """The state before the first step. The noise is drawn on the CPU, whole and by every rank, so that it is the same
    whatever the device and layout."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(shape, generator=generator, dtype=torch.float32)
    return DenoiseState(0, latents.to(device), noise.History(), generator.get_state())


def advance(
    state: DenoiseState, plan: noise.Schedule, model: Model, guidance: float, place: Place | None = None
) -> DenoiseState:
    """The state after one more step. Collective over the layout's ranks.

    Args:
        state: the state before.
        plan: the job's sigmas.
        model: the denoiser with its conditions.
        guidance: scale of classifier-free guidance (Ho & Salimans, arXiv:2207.12598); the negative branch is computed
            iff it is above 1.
        place: this rank's groups.
    """
    timestep = plan.timesteps[state.step]
    output = _guided(state.latents, timestep, model, guidance, place)
    latents, history = noise.step(plan, state.step, state.latents, output, state.history)
    return replace(state, step=state.step + 1, latents=latents, history=history)


def _guided(latents: Tensor, timestep: int, model: Model, guidance: float, place: Place | None) -> Tensor:
    group = place.cfg_group if place is not None else None
    if guidance <= 1.0:
        return model(latents, timestep, 0)
    if place is None or group is None:
        positive, negative = model(latents, timestep, 0), model(latents, timestep, 1)
    else:
        mine = model(latents, timestep, place.cfg_index).contiguous()
        positive, negative = torch.empty_like(mine), torch.empty_like(mine)
        with collective():
            dist.all_gather([positive, negative], mine, group=group)
    return negative + guidance * (positive - negative)


def is_finite(state: DenoiseState) -> bool:
    """Whether all latents are numbers."""
    return bool(torch.isfinite(state.latents).all())


def can_continue(step: int, cache: AttentionCache | None, steps: int, skips: StepCache | None = None) -> bool:
    """Whether a job continued at that step elsewhere, with empty caches, gives the same result.

    Which steps a step cache skips is known only by doing them. So with one, a job continues where it computes all
    blocks for certain, or where no step may be skipped any more; and what the attention cache gives must have been
    stored since, in a step that is not skipped.
    """
    following = range(step, steps)
    skippable: set[int] = set()
    if skips is not None and step_cache.is_on(skips, steps):
        # Step 0 has nothing to reuse, whatever the setting says.
        skippable = {s for s in following if s > 0 and step_cache.may_skip(skips, s)}
    if step in skippable:
        return False
    if cache is None or not attention_cache.is_on(cache, steps):
        return True
    first = next((s for s in following if attention_cache.reuses(cache, s)), None)
    return first is None or any(
        attention_cache.stores(cache, s) and not attention_cache.reuses(cache, s) and s not in skippable
        for s in range(step, first)
    )


def to_bytes(state: DenoiseState) -> bytes:
    """The state written down."""
    tensors = {
        "latents": state.latents,
        "generator": state.generator,
        **{f"history.{name}": tensor for name, tensor in noise.history_tensors(state.history).items()},
    }
    there = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    about = {"state": json.dumps({"version": 1, "step": state.step, "last_order": state.history.last_order})}
    return safetensors.torch.save(there, metadata=about)


def from_bytes(data: bytes, device: torch.device) -> DenoiseState:
    """The inverse of ``to_bytes``.

    Raises:
        ValueError: the bytes are not such a state.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["state"])
        tensors = safetensors.torch.load(data)
        latents, generator = tensors.pop("latents"), tensors.pop("generator")
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"not a written denoising state: {error}") from error
    past = {name.removeprefix("history."): tensor.to(device) for name, tensor in tensors.items()}
    history = noise.history_from(past, int(about["last_order"]))
    return DenoiseState(int(about["step"]), latents.to(device), history, generator)
