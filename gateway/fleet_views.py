"""From leases and cards to what the API shows of workers and models; of jobs: ``gateway.views``. Pure."""

from __future__ import annotations

from gateway.schema.fleet import FloatRangeView, IntRangeView, LayoutView, ModelView, QuarantineView, WorkerView
from gateway.views import cache_body, step_cache_body
from shared.messages import (
    FloatRange,
    IntRange,
    Layout,
    ModelCard,
    WorkerControl,
    WorkerLease,
    WorkerQuarantine,
)


def layout_view(layout: Layout) -> LayoutView:
    """A layout."""
    return LayoutView(
        cfg=layout.cfg,
        ulysses=layout.ulysses,
        ring=layout.ring,
        dit_fsdp=layout.dit_fsdp,
        t5_fsdp=layout.t5_fsdp,
        vae_parallel=layout.vae_parallel,
    )


def worker_view(
    lease: WorkerLease,
    state: str,
    renewed_s: float,
    control: WorkerControl | None = None,
    quarantine: WorkerQuarantine | None = None,
) -> WorkerView:
    """A worker, whose lease was last renewed that long ago, and what was decided about it."""
    drained = control is not None and control.drained
    return WorkerView(
        id=lease.worker,
        incarnation=lease.incarnation,
        state=state,
        pool=lease.pool,
        host=lease.host,
        device=lease.device,
        device_name=lease.device_name,
        width=lease.width,
        full_width=lease.full_width,
        models=lease.models,
        layouts=tuple(layout_view(layout) for layout in lease.layouts),
        jobs=len(lease.held),
        capacity=lease.capacity,
        loaded=lease.loaded,
        detail=lease.detail,
        renewed_s=round(renewed_s, 1),
        device_memory=lease.device_memory,
        loaded_models=lease.loaded_models,
        load_s=lease.load_s,
        drained=drained,
        drain_reason=control.reason if control is not None and drained else "",
        quarantine=None
        if quarantine is None
        else QuarantineView(
            failures=quarantine.failures,
            rest_s=quarantine.rest_s,
            reason=quarantine.reason,
            message=quarantine.message,
        ),
    )


def model_view(card: ModelCard, workers: int, layouts: tuple[Layout, ...], step_s: float | None) -> ModelView:
    """A model, and who serves it now."""
    return ModelView(
        id=card.name,
        title=card.title,
        description=card.description,
        licence=card.licence,
        family=card.family,
        tasks=card.tasks,
        width=_integers(card.width),
        height=_integers(card.height),
        max_pixels=card.max_pixels,
        num_frames=_integers(card.num_frames),
        fps=_integers(card.fps),
        steps=_integers(card.steps),
        guidance_scale=_numbers(card.guidance_scale),
        guidance_scale_2=_maybe(card.guidance_scale_2),
        shift=_numbers(card.shift),
        strength=_maybe(card.strength),
        control_scale=_maybe(card.control_scale),
        clip_len=None if card.clip_len is None else _integers(card.clip_len),
        overlap=None if card.overlap is None else _integers(card.overlap),
        also_takes=card.also_takes,
        solvers=card.solvers,
        negative_prompt=card.negative_prompt,
        max_n=card.max_n,
        cache=cache_body(card.cache),
        step_cache=step_cache_body(card.step_cache),
        loras=card.loras,
        workers=workers,
        layouts=tuple(layout_view(layout) for layout in layouts),
        step_s=step_s,
    )


def _integers(allowed: IntRange) -> IntRangeView:
    return IntRangeView(
        min=allowed.min,
        max=allowed.max,
        default=allowed.default,
        multiple_of=allowed.multiple_of,
        offset=allowed.offset,
    )


def _maybe(allowed: FloatRange | None) -> FloatRangeView | None:
    return None if allowed is None else _numbers(allowed)


def _numbers(allowed: FloatRange) -> FloatRangeView:
    return FloatRangeView(min=allowed.min, max=allowed.max, default=allowed.default)
