"""From records to what the API shows of jobs; of workers and models: ``gateway.fleet_views``. Pure."""

from __future__ import annotations

import base64

import msgspec

from gateway.schema.jobs import (
    ErrorView,
    InputView,
    JobView,
    OutputView,
    PreviewView,
    ProgressView,
    QueueView,
    RequestView,
    SheetView,
    TransitionView,
    WebhookView,
)
from gateway.schema.requests import CacheBody, LoraBody, ParallelBody, StepCacheBody
from shared.messages import (
    TERMINAL,
    AttentionCache,
    Input,
    JobRecord,
    Output,
    Progress,
    Stage,
    State,
    StepCache,
    Transition,
)
from shared.pictures import sheet_of

#: Where each stage begins and ends in a job's whole, 0 to 1. Denoising is nearly all of it.
_SHARES: dict[str, tuple[float, float]] = {
    Stage.PREPARING: (0.0, 0.01),
    Stage.ENCODE_TEXT: (0.01, 0.03),
    Stage.ENCODE_IMAGE: (0.03, 0.05),
    Stage.DENOISE: (0.05, 0.9),
    Stage.DECODE: (0.9, 0.97),
    Stage.MUX: (0.97, 0.99),
    Stage.UPLOADING: (0.99, 1.0),
}
#: Between these a job is as often as it has outputs; the stages outside are passed once.
_PER_OUTPUT = (0.05, 0.99)
_EXECUTING = (State.ASSIGNED, State.RUNNING, State.CANCELLING)


def job_view(
    record: JobRecord, progress: Progress | None, queue: QueueView | None, webhook: WebhookView | None = None
) -> JobView:
    """The job; ``progress`` and ``queue`` are shown only while they say something about its present state."""
    return JobView(
        id=record.id,
        state=record.state,
        epoch=record.epoch,
        model=record.request.model,
        task=record.request.task,
        priority=record.priority,
        created_at=record.created_at,
        request=request_view(record),
        progress=progress_view(progress, record.request.n) if concerns(progress, record) else None,
        queue=queue if record.state is State.QUEUED else None,
        outputs=output_views(record),
        error=error_view(record),
        transitions=tuple(transition_view(entry) for entry in record.transitions),
        attempts=record.attempts,
        metadata=record.metadata,
        waited_s=record.waited_s,
        ran_s=record.ran_s,
        used=record.used,
        retry_of=record.retry_of,
        webhook=webhook,
    )


def concerns(progress: Progress | None, record: JobRecord) -> bool:
    """Whether that progress is of the attempt that the record is in."""
    return (
        progress is not None
        and (progress.epoch, progress.worker) == (record.epoch, record.worker)
        and record.state in _EXECUTING
    )


def progress_view(progress: Progress | None, outputs: int) -> ProgressView | None:
    """How far a job of so many outputs is, over all stages."""
    if progress is None:
        return None
    return ProgressView(
        epoch=progress.epoch,
        stage=progress.stage,
        step=progress.step,
        total_steps=progress.total_steps,
        eta_s=progress.eta_s,
        fraction=round(_fraction(progress, outputs), 4),
    )


def _fraction(progress: Progress, outputs: int) -> float:
    """Steps are counted over all outputs, which pass through the stages one after another."""
    start, end = _SHARES.get(progress.stage, (0.0, 0.0))
    total = max(1, progress.total_steps)
    step = min(progress.step, total)
    first, last = _PER_OUTPUT
    if not first <= start < last:
        return start + (end - start) * step / total
    output = min(outputs - 1, step * outputs // total)
    share = start + (end - start) * (step * outputs / total - output)
    return first + ((last - first) * output + share - first) / outputs


def request_view(record: JobRecord) -> RequestView:
    """What the job does."""
    request = record.request
    parallel = request.parallel
    return RequestView(
        model=request.model,
        task=request.task,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=_input(request.image),
        last_image=_input(request.last_image),
        video=_input(request.video),
        mask=_input(request.mask),
        references=tuple(_shown(given) for given in request.references),
        pose=_input(request.pose),
        face=_input(request.face),
        background=_input(request.background),
        clip_len=request.clip_len,
        overlap=request.overlap,
        size=f"{request.width}x{request.height}",
        num_frames=request.num_frames,
        fps=request.fps,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        guidance_scale_2=request.guidance_scale_2,
        shift=request.shift,
        strength=request.strength,
        control_scale=request.control_scale,
        solver=request.solver,
        seed=request.seed,
        n=request.n,
        parallel=ParallelBody(
            cfg_size=parallel.cfg_size,
            ulysses_size=parallel.ulysses_size,
            ring_size=parallel.ring_size,
            vae_parallel=parallel.vae_parallel,
            dit_fsdp=parallel.dit_fsdp,
            t5_fsdp=parallel.t5_fsdp,
        ),
        cache=cache_body(request.cache),
        step_cache=step_cache_body(request.step_cache),
        loras=tuple(LoraBody(name=lora.name, weight=lora.weight) for lora in request.loras),
        output_format=request.output_format,
        output_quality=request.output_quality,
        start_deadline_s=record.start_deadline_s,
        run_timeout_s=record.run_timeout_s,
        max_attempts=record.max_attempts,
        dummy=request.dummy,
    )


def _input(given: Input | None) -> InputView | None:
    return None if given is None else _shown(given)


def _shown(given: Input) -> InputView:
    return InputView(media_type=given.media_type, size=given.size, sha256=given.sha256, url=given.url or None)


def cache_body(cache: AttentionCache | None) -> CacheBody | None:
    """Which steps the attention cache spares."""
    if cache is None:
        return None
    return CacheBody(start_step=cache.start_step, interval=cache.interval, end_step=cache.end_step)


def step_cache_body(cache: StepCache | None) -> StepCacheBody | None:
    """When the step cache spares steps."""
    if cache is None:
        return None
    return StepCacheBody(threshold=cache.threshold, start_step=cache.start_step, end_step=cache.end_step)


def output_views(record: JobRecord) -> tuple[OutputView, ...]:
    """The files it made."""
    return tuple(
        OutputView(
            index=index,
            url=f"/v1/jobs/{record.id}/outputs/{index}",
            media_type=output.media_type,
            size=output.size,
            sha256=output.sha256,
            width=output.width,
            height=output.height,
            num_frames=output.num_frames,
            fps=output.fps,
            thumbnail_url=f"/v1/jobs/{record.id}/outputs/{index}/thumbnail" if output.thumbnail else None,
            spritesheet=_sheet(record, index, output) if output.spritesheet else None,
        )
        for index, output in enumerate(record.outputs)
    )


def _sheet(record: JobRecord, index: int, output: Output) -> SheetView:
    sheet = sheet_of(output.width, output.height, output.num_frames)
    return SheetView(
        url=f"/v1/jobs/{record.id}/outputs/{index}/spritesheet",
        columns=sheet.columns,
        rows=sheet.rows,
        tile_width=sheet.width,
        tile_height=sheet.height,
        frames=sheet.frames,
    )


def error_view(record: JobRecord) -> ErrorView | None:
    """Why it failed."""
    failure = record.failure
    return None if failure is None else ErrorView(reason=failure.reason, message=failure.message)


def transition_view(entry: Transition) -> TransitionView:
    """One entry of its log; which process wrote it is not the user's business."""
    return TransitionView(
        index=entry.index,
        state=entry.state,
        epoch=entry.epoch,
        at=entry.at,
        age_s=round(entry.age_s, 3),
        reason=entry.reason,
    )


def transition_event(record: JobRecord, entry: Transition) -> bytes:
    """The entry as a server-sent event; the terminal one carries the job's end."""
    data: dict[str, object] = msgspec.structs.asdict(transition_view(entry))
    if entry.state in TERMINAL:
        data["outputs"] = output_views(record)
        data["error"] = error_view(record)
    return b"event: transition\nid: %d\ndata: %s\n\n" % (entry.index, msgspec.json.encode(data))


def progress_event(progress: Progress, outputs: int) -> bytes:
    """The progress as a server-sent event, without an id: it is not resumed."""
    return b"event: progress\ndata: %s\n\n" % msgspec.json.encode(progress_view(progress, outputs))


def preview_event(progress: Progress) -> bytes:
    """What is to be seen of the job by now as a server-sent event, without an id."""
    shown = PreviewView(
        epoch=progress.epoch,
        step=progress.step,
        total_steps=progress.total_steps,
        image=base64.b64encode(progress.preview).decode(),
    )
    return b"event: preview\ndata: %s\n\n" % msgspec.json.encode(shown)


def queue_event(queue: QueueView) -> bytes:
    """The position as a server-sent event, without an id."""
    return b"event: queue\ndata: %s\n\n" % msgspec.json.encode(queue)
