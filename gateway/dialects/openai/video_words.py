"""Videos in OpenAI's words, and how they become ours and ours theirs. Pure."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from gateway.dialects.words import ended_at, fraction
from gateway.resolve import nearest
from gateway.schema.jobs import JobView
from gateway.schema.requests import CacheBody, LoraBody, ParallelBody, Prompt, StepCacheBody, SubmitBody
from shared.errors import InvalidRequest
from shared.messages import Input, JobRecord, JobRequest, ModelCard, State, Task

STATUS = {
    State.QUEUED: "queued",
    State.ASSIGNED: "in_progress",
    State.RUNNING: "in_progress",
    State.CANCELLING: "in_progress",
    State.SUCCEEDED: "completed",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
}
#: From our field to theirs, for errors.
FIELDS = {"image": "input_reference", "num_frames": "seconds"}
_REMIXED = "remixed_from_video_id"


class ImageReference(Struct, kw_only=True):
    """A picture that is not sent along: a file of ``POST /v1/files``, or a URL (also a data URI)."""

    file_id: str | None = None
    image_url: str | None = None


class VideoCreate(SubmitBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/videos``: OpenAI's fields, and all of ours (``extra_body``)."""

    seconds: Annotated[float, Meta(gt=0, le=3600)] | None = None
    input_reference: ImageReference | None = None


class VideoRemix(Struct, kw_only=True):
    """``POST /v1/videos/{id}/remix``."""

    prompt: Prompt


class VideoError(Struct, kw_only=True):
    """Why there is no video."""

    code: str
    message: str


class Video(Struct, kw_only=True):
    """A video job; times are whole seconds since 1970, ``progress`` is in percent, ``seconds`` a string."""

    id: str
    object: str = "video"
    created_at: int
    completed_at: int | None
    expires_at: int | None
    status: str
    progress: int
    model: str
    prompt: str
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None


class VideoList(Struct, kw_only=True):
    """A page of videos."""

    object: str = "list"
    data: tuple[Video, ...]
    has_more: bool
    first_id: str | None
    last_id: str | None


class VideoDeleted(Struct, kw_only=True):
    """It is gone."""

    id: str
    object: str = "video.deleted"
    deleted: bool = True


_OURS = SubmitBody.__struct_fields__


def to_body(asked: VideoCreate, card: ModelCard, default_model: str | None) -> SubmitBody:
    """Their request as ours: ``seconds`` become the nearest number of frames that the model makes.

    Raises:
        InvalidRequest: ``seconds`` are more or fewer than it makes.
    """
    given = {name: value for name, value in asdict(asked).items() if name in _OURS}
    body = SubmitBody(**given)
    if asked.input_reference is not None:
        body = replace(body, image=_reference(asked.input_reference))
    if asked.seconds is not None and asked.num_frames is None:
        allowed, fps = card.num_frames, asked.fps or card.fps.default
        frames = round(asked.seconds * fps)
        # A clip is as long as its frames last; the one frame more that Wan makes is within a frame of that.
        if not allowed.min <= frames <= allowed.max + allowed.multiple_of:
            low, high = allowed.min / fps, allowed.max / fps
            raise InvalidRequest(f"must be from {low:.3g} to {high:.3g} for {card.name} at {fps} fps", "seconds")
        body = replace(body, num_frames=nearest(frames, allowed))
    return replace(body, model=asked.model or default_model)


def _reference(given: ImageReference) -> str:
    if (given.file_id is None) == (given.image_url is None):
        raise InvalidRequest("give one of file_id and image_url", "input_reference")
    if given.image_url is not None:
        return given.image_url
    return f"file:{str(given.file_id).removeprefix('file:')}"


def video_of(view: JobView, retain_s: float) -> Video:
    """Our job as theirs.

    Args:
        retain_s: how long ended jobs are kept.
    """
    done = ended_at(view)
    error = None
    if view.state is State.CANCELLED:
        error = VideoError(code="cancelled", message="the job was cancelled")
    elif view.error is not None:
        error = VideoError(code=view.error.reason, message=view.error.message)
    completed = view.state is State.SUCCEEDED
    return Video(
        id=view.id,
        created_at=int(view.created_at),
        completed_at=int(done) if done is not None and completed else None,
        expires_at=int(done + retain_s) if done is not None and completed else None,
        status=STATUS[view.state],
        progress=100 if completed else min(99, int(100 * fraction(view))),
        model=view.model,
        prompt=view.request.prompt,
        seconds=f"{view.request.num_frames / view.request.fps:.3g}",
        size=view.request.size,
        error=error,
        remixed_from_video_id=view.metadata.get(_REMIXED),
    )


def remixed(source: JobRecord, prompt: str, card: ModelCard) -> SubmitBody:
    """The request of a remix: of the video itself where the model can, else of what the video was made of."""
    old = source.request
    body = replace(_anew(old), prompt=prompt, metadata={**source.metadata, _REMIXED: source.id})
    if Task.VIDEO_TO_VIDEO not in card.tasks:
        return body
    # The clip takes the place of all that it was made of, and with that of what steered it.
    strength = old.strength if old.task == Task.VIDEO_TO_VIDEO else None
    inputs = dict.fromkeys(name.partition(".")[0] for name in old.inputs())
    bare = {name: () if name == "references" else None for name in inputs}
    body = replace(body, **bare, control_scale=None, clip_len=None, overlap=None, strength=strength)
    return replace(body, task=str(Task.VIDEO_TO_VIDEO), video=f"job:{source.id}/outputs/0")


def _anew(old: JobRequest) -> SubmitBody:
    """The request that would make the same job once more."""
    parallel, cache, step_cache = old.parallel, old.cache, old.step_cache
    return SubmitBody(
        prompt=old.prompt,
        model=old.model,
        task=old.task,
        negative_prompt=old.negative_prompt,
        image=_named(old.image),
        last_image=_named(old.last_image),
        video=_named(old.video),
        mask=_named(old.mask),
        references=tuple(_source(given) for given in old.references),
        pose=_named(old.pose),
        face=_named(old.face),
        background=_named(old.background),
        size=f"{old.width}x{old.height}",
        num_frames=old.num_frames,
        fps=old.fps,
        steps=old.steps,
        guidance_scale=old.guidance_scale,
        guidance_scale_2=old.guidance_scale_2,
        shift=old.shift,
        strength=old.strength,
        control_scale=old.control_scale,
        clip_len=old.clip_len,
        overlap=old.overlap,
        solver=old.solver,
        seed=old.seed,
        n=old.n,
        parallel=ParallelBody(**asdict(parallel)),
        cache=None if cache is None else CacheBody(**asdict(cache)),
        step_cache=None if step_cache is None else StepCacheBody(**asdict(step_cache)),
        loras=tuple(LoraBody(name=lora.name, weight=lora.weight) for lora in old.loras),
        output_format=old.output_format,
        dummy=old.dummy,
    )


def _named(given: Input | None) -> str | None:
    return None if given is None else _source(given)


def _source(given: Input) -> str:
    return given.url or f"file:{given.sha256}"
