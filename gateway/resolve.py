"""From what a client sent and a model's card to the complete request that the engine gets. Pure: the seed and the
stored inputs are handed in.

Everything that cannot be served is refused here, naming the field, before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from gateway import tasks
from gateway.schema.requests import ParallelBody, SubmitBody
from shared.errors import InvalidRequest
from shared.messages import (
    AttentionCache,
    FloatRange,
    Input,
    IntRange,
    JobRequest,
    Layout,
    LoraUse,
    ModelCard,
    Parallel,
    StepCache,
    Task,
)
from shared.pictures import STILLS

#: Formats by kind of task; the first is the default.
_VIDEO_FORMATS = ("mp4",)

#: For a model that no pool has announced yet (setting ``unknown_model=queue``): the commonest Wan values, and ranges so
#: wide that they refuse nothing which the engine could do.
UNANNOUNCED = ModelCard(
    name="",
    family="",
    tasks=tuple(Task),
    width=IntRange(min=16, max=4096, default=832, multiple_of=16),
    height=IntRange(min=16, max=4096, default=480, multiple_of=16),
    max_pixels=4096 * 4096,
    num_frames=IntRange(min=1, max=1001, default=81, multiple_of=4, offset=1),
    fps=IntRange(min=1, max=60, default=16),
    steps=IntRange(min=1, max=1000, default=40),
    guidance_scale=FloatRange(min=0.0, max=100.0, default=5.0),
    shift=FloatRange(min=0.0, max=100.0, default=5.0),
    solvers=("unipc", "dpm++", "euler"),
    max_n=8,
    also_takes=("last_image", "mask", "references"),
    guidance_scale_2=FloatRange(min=0.0, max=100.0, default=5.0),
    strength=FloatRange(min=0.0, max=1.0, default=0.8),
    control_scale=FloatRange(min=0.0, max=2.0, default=1.0),
    clip_len=IntRange(min=5, max=1001, default=77, multiple_of=4, offset=1),
    overlap=IntRange(min=1, max=5, default=1, multiple_of=4, offset=1),
)


class Offer(Struct, frozen=True, kw_only=True):
    """A layout that some worker offers for the model; ``full_width`` is what its group has when it is whole."""

    layout: Layout
    full_width: int


def resolve(
    body: SubmitBody, card: ModelCard, inputs: Mapping[str, Input], offers: Iterable[Offer], seed: int, model: str
) -> JobRequest:
    """The complete request.

    Args:
        inputs: by the names of ``JobRequest.inputs``, already checked.
        offers: of the workers that serve the model now; none means that nothing is known and any layout may wait.
        seed: used when the client gave none.
        model: the name under which it is served.

    Raises:
        InvalidRequest: it cannot be served; names the field.
    """
    given = list(dict.fromkeys(name.partition(".")[0] for name in inputs))
    task = tasks.task_of(body, card, given)
    tasks.check_files(task, card, given)
    still = task == Task.TEXT_TO_IMAGE
    width, height = _size(body.size, card)
    if still and body.num_frames not in (None, 1):
        raise InvalidRequest(f"{task} makes one frame, not {body.num_frames}", "num_frames")
    if body.n > card.max_n:
        raise InvalidRequest(f"at most {card.max_n} for {model}", "n")
    if body.dummy is not None and card.family != "dummy":
        raise InvalidRequest("only the dummy model takes it", "dummy")
    return JobRequest(
        model=model,
        task=task,
        prompt=body.prompt,
        negative_prompt=card.negative_prompt if body.negative_prompt is None else body.negative_prompt,
        width=width,
        height=height,
        num_frames=1 if still else integer(body.num_frames, card.num_frames, "num_frames"),
        fps=integer(body.fps, card.fps, "fps"),
        steps=integer(body.steps, card.steps, "steps"),
        guidance_scale=number(body.guidance_scale, card.guidance_scale, "guidance_scale"),
        guidance_scale_2=_second_guidance(body, card),
        shift=number(body.shift, card.shift, "shift"),
        strength=_strength(body, card, task),
        control_scale=_of_some_tasks(
            body.control_scale, card.control_scale, "control_scale", task, tasks.has_control(task)
        ),
        solver=_choice(body.solver, card.solvers, "solver"),
        seed=seed if body.seed is None else body.seed,
        n=body.n,
        image=inputs.get("image"),
        last_image=inputs.get("last_image"),
        video=inputs.get("video"),
        mask=inputs.get("mask"),
        references=tuple(file for name, file in inputs.items() if name.startswith("references.")),
        pose=inputs.get("pose"),
        face=inputs.get("face"),
        background=inputs.get("background"),
        clip_len=_of_characters(body.clip_len, card.clip_len, "clip_len", task),
        overlap=_of_characters(body.overlap, card.overlap, "overlap", task),
        parallel=_parallel(body.parallel, card, offers),
        cache=_cache(body, card),
        step_cache=_step_cache(body, card),
        loras=_loras(body, card),
        output_format=_choice(body.output_format, STILLS if still else _VIDEO_FORMATS, "output_format"),
        output_quality=_quality(body, still),
        dummy=body.dummy,
    )


def _size(size: str | None, card: ModelCard) -> tuple[int, int]:
    if size is None:
        return card.width.default, card.height.default
    width, height = (int(side) for side in size.split("x"))
    integer(width, card.width, "size", "width ")
    integer(height, card.height, "size", "height ")
    if width * height > card.max_pixels:
        raise InvalidRequest(f"{width}x{height} is {width * height} pixels; at most {card.max_pixels}", "size")
    return width, height


def integer(given: int | None, allowed: IntRange, field: str, what: str = "") -> int:
    """The value, or the default when none is given.

    Raises:
        InvalidRequest: it is not allowed; says what is, and the nearest.
    """
    if given is None:
        return allowed.default
    lowest = allowed.min + (allowed.offset - allowed.min) % allowed.multiple_of
    highest = allowed.max - (allowed.max - allowed.offset) % allowed.multiple_of
    if lowest <= given <= highest and (given - allowed.offset) % allowed.multiple_of == 0:
        return given
    rule = f"from {lowest} to {highest}"
    if allowed.multiple_of > 1:
        plus = f" plus {allowed.offset % allowed.multiple_of}" if allowed.offset % allowed.multiple_of else ""
        rule = f"a multiple of {allowed.multiple_of}{plus}, {rule}"
    raise InvalidRequest(f"{what}must be {rule}, not {given}; nearest: {nearest(given, allowed)}", field)


def nearest(given: int, allowed: IntRange) -> int:
    """The allowed value closest to the given one; of two equally close ones the smaller."""
    lowest = allowed.min + (allowed.offset - allowed.min) % allowed.multiple_of
    highest = allowed.max - (allowed.max - allowed.offset) % allowed.multiple_of
    below = given - (given - allowed.offset) % allowed.multiple_of
    above = below + allowed.multiple_of
    return max(lowest, min(highest, below if given - below <= above - given else above))


def number(given: float | None, allowed: FloatRange, field: str) -> float:
    """The value, or the default when none is given.

    Raises:
        InvalidRequest: it is not allowed.
    """
    if given is None:
        return allowed.default
    if not allowed.min <= given <= allowed.max:
        raise InvalidRequest(f"must be from {allowed.min:g} to {allowed.max:g}, not {given:g}", field)
    return given


def _of_some_tasks(
    given: float | None, allowed: FloatRange | None, field: str, task: str, has_it: bool
) -> float | None:
    """A setting that only some models and tasks have."""
    if allowed is not None and has_it:
        return number(given, allowed, field)
    if given is not None:
        raise InvalidRequest(f"{task} has none" if allowed is not None else "the model has none", field)
    return None


def _of_characters(given: int | None, allowed: IntRange | None, field: str, task: str) -> int | None:
    if allowed is not None and task in tasks.CHARACTERS:
        return integer(given, allowed, field)
    if given is not None:
        raise InvalidRequest(f"{task} has none" if allowed is not None else "the model has none", field)
    return None


def _strength(body: SubmitBody, card: ModelCard, task: str) -> float | None:
    strength = _of_some_tasks(body.strength, card.strength, "strength", task, tasks.has_strength(task))
    steps = integer(body.steps, card.steps, "steps")
    if strength is not None and int(strength * steps) < 1:
        raise InvalidRequest(f"{strength:g} of {steps} steps is less than one step: nothing would change", "strength")
    return strength


def _second_guidance(body: SubmitBody, card: ModelCard) -> float | None:
    """The second expert's: as given, or as the first where only that is given, or the card's default."""
    allowed = card.guidance_scale_2
    if allowed is None or (body.guidance_scale_2 is None and body.guidance_scale is not None):
        if body.guidance_scale_2 is not None:
            raise InvalidRequest("the model has one expert only", "guidance_scale_2")
        return None
    return number(body.guidance_scale_2, allowed, "guidance_scale_2")


def _choice(given: str | None, allowed: tuple[str, ...], field: str) -> str:
    if given is None:
        return allowed[0] if allowed else ""
    if given not in allowed:
        raise InvalidRequest(f"must be one of {', '.join(allowed)}; not {given}", field)
    return given


def _quality(body: SubmitBody, still: bool) -> int | None:
    if body.output_quality is not None and (not still or body.output_format in (None, "png")):
        raise InvalidRequest("is of pictures in jpeg or webp", "output_quality")
    return body.output_quality


def _cache(body: SubmitBody, card: ModelCard) -> AttentionCache | None:
    if body.cache is None:
        return card.cache
    if body.cache.end_step < body.cache.start_step:
        raise InvalidRequest("must not be before start_step", "cache.end_step")
    return AttentionCache(start_step=body.cache.start_step, interval=body.cache.interval, end_step=body.cache.end_step)


def parallel_of(asked: ParallelBody) -> Parallel:
    """The layout that was asked for."""
    return Parallel(
        cfg_size=asked.cfg_size,
        ulysses_size=asked.ulysses_size,
        ring_size=asked.ring_size,
        vae_parallel=asked.vae_parallel,
        dit_fsdp=asked.dit_fsdp,
        t5_fsdp=asked.t5_fsdp,
    )


def _loras(body: SubmitBody, card: ModelCard) -> tuple[LoraUse, ...]:
    names = [lora.name for lora in body.loras]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"{name} is named twice", f"loras.{index}.name")
        if name not in card.loras and card.name:
            known = f"one of {', '.join(card.loras)}" if card.loras else "left out: the model has none"
            raise InvalidRequest(f"must be {known}; not {name}", f"loras.{index}.name")
    return tuple(LoraUse(name=lora.name, weight=lora.weight) for lora in body.loras)


def _step_cache(body: SubmitBody, card: ModelCard) -> StepCache | None:
    asked = body.step_cache
    if asked is None:
        return card.step_cache
    if asked.end_step is not None and asked.end_step < asked.start_step:
        raise InvalidRequest("must not be before start_step", "step_cache.end_step")
    return StepCache(threshold=asked.threshold, start_step=asked.start_step, end_step=asked.end_step)


def _parallel(asked: ParallelBody, card: ModelCard, offers: Iterable[Offer]) -> Parallel:
    parallel = parallel_of(asked)
    known = tuple(offers)
    if parallel == Parallel():
        return parallel
    on_offer = f"on offer: {'; '.join(sorted({describe(offer.layout) for offer in known}))}" if known else "none known"
    # A card that counts one head only is of an engine that has none.
    if asked.ulysses_size is not None and card.heads > 1 and card.heads % asked.ulysses_size:
        raise InvalidRequest(
            f"{asked.ulysses_size} does not divide the model's {card.heads} attention heads; {on_offer}",
            "parallel.ulysses_size",
        )
    if not known or any(fits(parallel, offer.layout) or _may_widen(parallel, offer) for offer in known):
        return parallel
    raise InvalidRequest(f"no worker offers this layout; {on_offer}", "parallel")


def fits(asked: Parallel, layout: Layout) -> bool:
    """Whether that layout is one of those the job asks for. A VAE that can be split need not be."""
    return (
        asked.cfg_size in (None, layout.cfg)
        and asked.ulysses_size in (None, layout.ulysses)
        and asked.ring_size in (None, layout.ring)
        and asked.vae_parallel in (None, False, layout.vae_parallel)
        and asked.dit_fsdp in (None, layout.dit_fsdp)
        and asked.t5_fsdp in (None, layout.t5_fsdp)
    )


def _may_widen(asked: Parallel, offer: Offer) -> bool:
    """A group that has become narrower may come back: a job for the whole one waits instead of being refused."""
    ranks = offer.layout.cfg * offer.layout.ulysses * offer.layout.ring
    wanted = (asked.cfg_size or 1) * (asked.ulysses_size or 1) * (asked.ring_size or 1)
    return ranks < wanted <= offer.full_width and offer.full_width % wanted == 0


def describe(layout: Layout) -> str:
    """The layout in the words of a request."""
    words = [f"cfg_size {layout.cfg}", f"ulysses_size {layout.ulysses}"]
    words += [f"ring_size {layout.ring}"] if layout.ring > 1 else []
    words += [name for name in ("dit_fsdp", "t5_fsdp", "vae_parallel") if getattr(layout, name)]
    return " ".join(words)
