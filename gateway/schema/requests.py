"""What clients send to the native API: strict, an unknown field is refused."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Prompt = Annotated[str, Meta(min_length=1, max_length=4000)]
Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Solver = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._+-]+$", examples=["dpm++"])]
Degree = Annotated[int, Meta(ge=1, le=64)]
StepIndex = Annotated[int, Meta(ge=0, le=10_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]
Priority = Annotated[int, Meta(ge=0, le=9, description="0 to 9; 9 goes first")]
Quality = Annotated[int, Meta(ge=0, le=100, description="of a picture in jpeg or webp")]
#: 32 MiB of base64 at most; ``max_json_bytes`` bounds it further.
Source = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=32 * 1024 * 1024,
        description="`data:<type>;base64,…`, `file:<id of POST /v1/files>`, `job:<id>/outputs/<n>`, or an http or "
        "https URL, which is fetched when the job runs",
    ),
]
WebhookUrl = Annotated[
    str, Meta(min_length=1, max_length=2048, description="http or https URL that the job's end is posted to, signed")
]
#: Pictures of what is to appear.
MAX_REFERENCES = 8
Metadata = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class ParallelBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The layout a job asks for, in ranks; what is left out is the pool's choice."""

    cfg_size: Degree | None = None
    ulysses_size: Degree | None = None
    ring_size: Degree | None = None
    vae_parallel: bool | None = None
    dit_fsdp: bool | None = None
    t5_fsdp: bool | None = None


class CacheBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reuse of attention outputs between steps: from `start_step` to `end_step`, computed anew every `interval`."""

    start_step: StepIndex
    interval: Annotated[int, Meta(ge=1, le=10_000)]
    end_step: StepIndex


class StepCacheBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reuse of what all blocks after the first add, in steps from `start_step` up to but without `end_step` (left out:
    to the last) whose first block changes by less than `threshold` (relative; 0 is off, 0.05 to 0.15 are usual)."""

    threshold: Annotated[float, Meta(ge=0, le=1)]
    start_step: StepIndex = 0
    end_step: StepIndex | None = None


class LoraBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA by its name among the model's `loras`, and how strongly it acts; 0 leaves a default one out."""

    name: Word
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class SubmitBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job is to do. What is left out takes the model's default. `mask` is a clip, or one picture for all frames:
    white is made anew, black is kept. `references` are pictures of what is to appear. `strength`: how much of the clip
    is made anew. `guidance_scale_2`: of the second expert, where a model has two. `pose`, `face` and `background` are
    the clips of the character tasks, `clip_len` their frames at once, `overlap` how many of them the next ones begin
    with. In multipart, what is a file is a part (`references`: several parts of that name) and the objects are JSON."""

    prompt: Prompt
    model: Word | None = None
    task: Word | None = None
    negative_prompt: Annotated[str, Meta(max_length=4000)] | None = None
    image: Source | None = None
    last_image: Source | None = None
    video: Source | None = None
    mask: Source | None = None
    references: Annotated[tuple[Source, ...], Meta(max_length=MAX_REFERENCES)] = ()
    pose: Source | None = None
    face: Source | None = None
    background: Source | None = None
    clip_len: Positive | None = None
    overlap: Positive | None = None
    size: Annotated[str, Meta(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$", examples=["832x480"])] | None = None
    num_frames: Positive | None = None
    fps: Positive | None = None
    steps: Positive | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=1000)] | None = None
    guidance_scale_2: Annotated[float, Meta(ge=0, le=1000)] | None = None
    shift: Annotated[float, Meta(ge=0, le=1000)] | None = None
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None
    control_scale: Annotated[float, Meta(ge=0, le=2)] | None = None
    solver: Solver | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=64)] = 1
    parallel: ParallelBody = ParallelBody()
    cache: CacheBody | None = None
    step_cache: StepCacheBody | None = None
    loras: Annotated[tuple[LoraBody, ...], Meta(max_length=16)] = ()
    output_format: Word | None = None
    output_quality: Quality | None = None
    priority: Priority | None = None
    start_deadline_s: Seconds | None = None
    run_timeout_s: Seconds | None = None
    max_attempts: Annotated[int, Meta(ge=1, le=20)] | None = None
    metadata: Metadata = {}
    webhook_url: WebhookUrl | None = None
    dummy: Annotated[dict[str, float | str], Meta(max_length=16, description="for the dummy model only")] | None = None


class PatchBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be changed of a queued job."""

    priority: Priority


class ReasonBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an operator does something; shown to others."""

    reason: Annotated[str, Meta(max_length=200)] = ""


Many = Annotated[int, Meta(ge=0, le=10_000_000)]


Bytes = Annotated[int, Meta(ge=0, le=2**62)]


class LimitsBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may have: its share's weight (1 is usual); how many jobs may wait, and be at workers, at once; how
    many it may submit per second, and at once (`burst`); and how many bytes of its outputs and inputs are kept. null is
    no limit of its own, so what the settings say of all; 0 is none at all."""

    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    max_queued: Many | None = None
    max_running: Many | None = None
    submits_per_s: Annotated[float, Meta(ge=0, le=1_000_000)] | None = None
    burst: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    max_stored_bytes: Bytes | None = None
