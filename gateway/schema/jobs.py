"""What the native API shows of jobs and files."""

from __future__ import annotations

from msgspec import Struct

from gateway.schema.requests import CacheBody, LoraBody, ParallelBody, StepCacheBody
from shared.messages import State


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
    output_quality: int | None
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
