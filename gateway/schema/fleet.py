"""What the native API shows of models, workers, the queue, tenants and itself."""

from __future__ import annotations

from msgspec import Struct

from gateway.schema.requests import CacheBody, LimitsBody, StepCacheBody


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
