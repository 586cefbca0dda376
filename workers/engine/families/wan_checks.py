"""What can be said of a request to a Wan checkpoint before any rank hears of it, layout and LoRAs aside. Pure."""

from __future__ import annotations

from shared.messages import JobRequest, ModelCard, Task
from workers.engine.checkpoint import Checkpoint
from workers.engine.errors import NotServed
from workers.engine.families.wan_conditions.base import Conditioner, check_inputs


def check(request: JobRequest, card: ModelCard, checkpoint: Checkpoint, conditioner: Conditioner) -> None:
    """Refuse what the checkpoint cannot do under that card.

    Raises:
        NotServed: names the field.
    """
    if request.task not in card.tasks:
        raise NotServed(f"task: {card.name} does not do {request.task!r}")
    if request.solver not in card.solvers:
        raise NotServed(f"solver: {request.solver!r} is not one of {', '.join(card.solvers)}")
    _check_size(request, checkpoint)
    if request.task == Task.TEXT_TO_IMAGE and request.num_frames != 1:
        raise NotServed(f"num_frames: text-to-image is one frame, not {request.num_frames}")
    if request.guidance_scale_2 is not None and "transformer_2" not in checkpoint.parts:
        raise NotServed("guidance_scale_2: this model has one expert only")
    check_inputs(conditioner.takes, request)
    conditioner.check(request)


def _check_size(request: JobRequest, checkpoint: Checkpoint) -> None:
    vae, (_, high, wide) = checkpoint.vae, checkpoint.transformer.patch_size
    columns, rows = vae.scale_factor_spatial * wide, vae.scale_factor_spatial * high
    if request.width < columns or request.width % columns or request.height < rows or request.height % rows:
        raise NotServed(
            f"size: {request.width}x{request.height} is not possible; "
            f"width must be a multiple of {columns}, height of {rows}"
        )
    temporal = vae.scale_factor_temporal
    if request.num_frames < 1 or (request.num_frames - 1) % temporal:
        raise NotServed(f"num_frames: {request.num_frames} is not of the form {temporal}n + 1")
    if request.steps < 1:
        raise NotServed("steps: at least 1")


def is_guided(request: JobRequest) -> bool:
    """Whether any expert's steps have the negative prompt's branch."""
    return max(request.guidance_scale, request.guidance_scale_2 or 0.0) > 1.0
