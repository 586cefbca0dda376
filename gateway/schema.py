"""The native API's bodies: strict on the way in (an unknown field is refused), and what is shown on the way out."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shared.messages import State

Prompt = Annotated[str, Meta(min_length=1, max_length=4000)]
Word = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Solver = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._+-]+$", examples=["dpm++"])]
Degree = Annotated[int, Meta(ge=1, le=64)]
StepIndex = Annotated[int, Meta(ge=0, le=10_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]
Priority = Annotated[int, Meta(ge=0, le=9, description="0 to 9; 9 goes first")]
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


class LimitsView(Struct, frozen=True, kw_only=True):
    """What a tenant may have (null: as much as there is), and what it has. `own` is what was said of it alone."""

    tenant: str
    weight: float
    max_queued: int | None
    max_running: int | None
    submits_per_s: float | None
    burst: int | None
    max_stored_bytes: int | None
    queued: int
    running: int
    stored_bytes: int
    own: LimitsBody


class UsageView(Struct, frozen=True, kw_only=True):
    """What a tenant has used and has: device-seconds in all and those that still count for its share (as of some
    seconds ago), its jobs by state, and its limits with what counts against them. `complete` is false while this
    gateway is still reading the archive: jobs and bytes are then less than there are."""

    tenant: str
    device_s: float
    recent_device_s: float
    jobs: dict[str, int]
    limits: LimitsView
    complete: bool


class UsageList(Struct, frozen=True, kw_only=True):
    """A page of tenants by name; `next` goes into `after`."""

    data: tuple[UsageView, ...]
    next: str | None


class InputView(Struct, frozen=True, kw_only=True):
    """An input file of a job; of one by `url` the rest is not known."""

    media_type: str
    size: int
    sha256: str
    url: str | None = None


class RequestView(Struct, frozen=True, kw_only=True):
    """What the job does, complete: defaults filled in, the seed drawn."""

    model: str
    task: str
    prompt: str
    negative_prompt: str
    image: InputView | None
    last_image: InputView | None
    video: InputView | None
    mask: InputView | None
    references: tuple[InputView, ...]
    pose: InputView | None
    face: InputView | None
    background: InputView | None
    clip_len: int | None
    overlap: int | None
    size: str
    num_frames: int
    fps: int
    steps: int
    guidance_scale: float
    guidance_scale_2: float | None
    shift: float
    strength: float | None
    control_scale: float | None
    solver: str
    seed: int
    n: int
    parallel: ParallelBody
    cache: CacheBody | None
    step_cache: StepCacheBody | None
    loras: tuple[LoraBody, ...]
    output_format: str
    start_deadline_s: float | None
    run_timeout_s: float
    max_attempts: int
    dummy: dict[str, float | str] | None


class ProgressView(Struct, frozen=True, kw_only=True):
    """How far a running job is; `fraction` 0 to 1 over all stages, `eta_s` seconds to its end."""

    epoch: int
    stage: str
    step: int
    total_steps: int
    eta_s: float | None
    fraction: float


class PreviewView(Struct, frozen=True, kw_only=True):
    """A look at a running job after so many steps: a small picture of one frame, in base64."""

    epoch: int
    step: int
    total_steps: int
    media_type: str = "image/jpeg"
    image: str


class QueueView(Struct, frozen=True, kw_only=True):
    """Where a queued job stands among those of its model if every tenant has its share (1 is next), in how many seconds
    it may start and how far such estimates were off of late, and what it waits for: `next`, `jobs_ahead`, `held`,
    `tenant_limit`, `backing_off`, `no_worker`, `worker_starting`, `layout_unavailable`, `memory`, `workers_drained` or
    `workers_quarantined`; `message` says it to people. `end_s` is in how many seconds it may end. Four of five start
    and end within the two errors."""

    position: int
    eta_s: float | None
    why: str
    eta_error_s: float | None = None
    message: str = ""
    end_s: float | None = None
    end_error_s: float | None = None


class SheetView(Struct, frozen=True, kw_only=True):
    """Frames of a video side by side, row by row: tile `i`, `tile_width` by `tile_height` pixels, shows frame
    `frames[i]`. `url` is relative to this server."""

    url: str
    columns: int
    rows: int
    tile_width: int
    tile_height: int
    frames: tuple[int, ...]


class OutputView(Struct, frozen=True, kw_only=True):
    """A file that the job made; its URLs are relative to this server and need a key (`POST …/link` gives one that does
    not). `thumbnail_url`: one frame of it, small."""

    index: int
    url: str
    media_type: str
    size: int
    sha256: str
    width: int
    height: int
    num_frames: int
    fps: int
    thumbnail_url: str | None = None
    spritesheet: SheetView | None = None


class ErrorView(Struct, frozen=True, kw_only=True):
    """Why a job failed."""

    reason: str
    message: str


class TransitionView(Struct, frozen=True, kw_only=True):
    """One entry of the job's log. `index` is the event id in the stream; `at` is a wall clock, `age_s` is not."""

    index: int
    state: State
    epoch: int
    at: float
    age_s: float
    reason: str | None


class WebhookView(Struct, frozen=True, kw_only=True):
    """What became of the job's webhook: `waiting` (for the job's end), `pending`, `delivered`, `given_up` (it can be
    asked for again), or `unknown` (too long ago). `url` is shown without its query."""

    url: str
    state: str
    tries: int = 0
    last_status: int | None = None
    last_error: str | None = None
    next_try_in_s: float | None = None


class JobView(Struct, frozen=True, kw_only=True):
    """A job as its owner sees it. `waited_s` and `ran_s` are seconds; `used` is what the engine really used."""

    id: str
    state: State
    epoch: int
    model: str
    task: str
    priority: int
    created_at: float
    request: RequestView
    progress: ProgressView | None
    queue: QueueView | None
    outputs: tuple[OutputView, ...]
    error: ErrorView | None
    transitions: tuple[TransitionView, ...]
    attempts: int
    metadata: dict[str, str]
    waited_s: float | None
    ran_s: float | None
    used: dict[str, str | int | float | bool]
    #: The job whose request this one repeats.
    retry_of: str | None = None
    webhook: WebhookView | None = None


class JobList(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A page of jobs, newest first; `next` goes into `after`. A page may be short while `next` is not null. `complete`
    is there, and false, for a while after a gateway's start: older jobs may then be missing from lists."""

    data: tuple[JobView, ...]
    next: str | None
    complete: bool = True


class FileView(Struct, frozen=True, kw_only=True):
    """An uploaded input: refer to it as `file:<id>`."""

    id: str
    media_type: str
    size: int
    width: int
    height: int


class LayoutView(Struct, frozen=True, kw_only=True):
    """A way in which a group shares one job, in ranks."""

    cfg: int
    ulysses: int
    ring: int
    dit_fsdp: bool
    t5_fsdp: bool
    vae_parallel: bool


class IntRangeView(Struct, frozen=True, kw_only=True):
    """`min <= x <= max` and `(x - offset) % multiple_of == 0`."""

    min: int
    max: int
    default: int
    multiple_of: int
    offset: int


class FloatRangeView(Struct, frozen=True, kw_only=True):
    """`min <= x <= max`."""

    min: float
    max: float
    default: float


class ModelView(Struct, frozen=True, kw_only=True):
    """A model that some pool has announced; `workers` serve it now, with these `layouts`. `object`, `created` and
    `owned_by` are there for clients of OpenAI's API."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "genfleet"
    title: str
    description: str
    licence: str
    family: str
    tasks: tuple[str, ...]
    width: IntRangeView
    height: IntRangeView
    max_pixels: int
    num_frames: IntRangeView
    fps: IntRangeView
    steps: IntRangeView
    guidance_scale: FloatRangeView
    guidance_scale_2: FloatRangeView | None
    shift: FloatRangeView
    strength: FloatRangeView | None
    control_scale: FloatRangeView | None
    clip_len: IntRangeView | None
    overlap: IntRangeView | None
    also_takes: tuple[str, ...]
    solvers: tuple[str, ...]
    negative_prompt: str
    max_n: int
    cache: CacheBody | None
    step_cache: StepCacheBody | None
    loras: tuple[str, ...]
    workers: int
    layouts: tuple[LayoutView, ...]
    step_s: float | None


class ModelList(Struct, frozen=True, kw_only=True):
    """All models."""

    object: str = "list"
    data: tuple[ModelView, ...]


class QuarantineView(Struct, frozen=True, kw_only=True):
    """So many jobs failed there one after the other, the last for `reason`: it gets none for `rest_s` seconds, then one
    on probation."""

    failures: int
    rest_s: float
    reason: str
    message: str


class WorkerView(Struct, frozen=True, kw_only=True):
    """A worker; `state` is its own word, or `lost` when it has not renewed its lease for two lease times."""

    id: str
    incarnation: str
    state: str
    pool: str
    host: str
    device: str
    device_name: str
    width: int
    full_width: int
    models: tuple[str, ...]
    layouts: tuple[LayoutView, ...]
    jobs: int
    capacity: int
    loaded: float
    detail: str
    renewed_s: float
    #: Bytes of its smallest device (0: not known); which of its models is loaded, and the seconds that each load took.
    device_memory: int = 0
    loaded_models: tuple[str, ...] = ()
    load_s: dict[str, float] = {}
    #: An operator has drained it, and why; the scheduler trusts it no more, and why.
    drained: bool = False
    drain_reason: str = ""
    quarantine: QuarantineView | None = None


class WorkerList(Struct, frozen=True, kw_only=True):
    """All workers heard of within the last minute."""

    data: tuple[WorkerView, ...]


class QueueTotals(Struct, frozen=True, kw_only=True):
    """The queue in numbers: jobs by state (retained ones included) and queued jobs by priority."""

    states: dict[str, int]
    queued_by_priority: dict[str, int]
    queued: int
    open: int
    retained: int
    max_queued: int
    #: An operator holds the queue: jobs are taken and none is given out.
    held: bool = False
    hold_reason: str = ""


class VersionView(Struct, frozen=True, kw_only=True):
    """Which genfleet this is."""

    name: str
    version: str


class ServiceView(Struct, frozen=True, kw_only=True):
    """Where to look further."""

    name: str
    version: str
    docs: str
    jobs: str


class HealthView(Struct, frozen=True, kw_only=True):
    """`ok`."""

    status: str
