"""Everything that travels between genfleet's processes over the bus, in one file: long, because who changes one side of
a protocol must see the other, and nothing but declarations.

Wire rules: JSON by msgspec; every message carries its ``kind``; unknown fields are ignored, and a field added later
has a default, so that two versions understand each other during a rolling deploy. For the same reason words that may
grow (tasks, stages, failure reasons, solvers) are plain strings on the wire, with today's vocabulary named below.
Each message has a golden JSON under ``tests/golden/``.

No message can hold itself, so the collector of cycles need not look at any (``gc=False``): a gateway that holds a
hundred thousand records would otherwise stand still for it now and then.

Times: ``*_s`` are durations in seconds. ``at`` and ``created_at`` are the writer's wall clock in seconds since 1970,
for people to read only: nothing is ever decided by them. What is decided by time uses ``age_s`` (see ``lifecycle``).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

DEFAULT_TENANT = "default"


class State(StrEnum):
    """Where a job is. ``lifecycle.EDGES`` says which moves exist."""

    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Task(StrEnum):
    """What a model is asked to do."""

    TEXT_TO_VIDEO = "text-to-video"
    IMAGE_TO_VIDEO = "image-to-video"
    TEXT_TO_IMAGE = "text-to-image"
    FIRST_LAST_FRAME_TO_VIDEO = "first-last-frame-to-video"
    VIDEO_TO_VIDEO = "video-to-video"
    VIDEO_EDITING = "video-editing"
    #: A picture of somebody moves as a clip does, or takes the place of who is in the clip.
    CHARACTER_ANIMATION = "character-animation"
    CHARACTER_REPLACEMENT = "character-replacement"


class Reason(StrEnum):
    """Why a job failed, was handed back or refused."""

    START_DEADLINE_EXCEEDED = "start_deadline_exceeded"
    RUN_TIMEOUT = "run_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    SETBACKS_EXHAUSTED = "setbacks_exhausted"
    INPUT_REJECTED = "input_rejected"
    #: The operator's judge does not allow what was made.
    OUTPUT_REJECTED = "output_rejected"
    ENGINE_ERROR = "engine_error"
    DEVICE_ERROR = "device_error"
    GROUP_LOST = "group_lost"
    GROUP_HUNG = "group_hung"
    WORKER_LOST = "worker_lost"
    WORKER_DRAINING = "worker_draining"
    WORKER_BUSY = "worker_busy"
    CANNOT_SERVE = "cannot_serve"
    NO_RESPONSE = "no_response"
    CANCEL_REQUESTED = "cancel_requested"


class Stage(StrEnum):
    """The engine's stages, in the order of a job's way through them."""

    PREPARING = "preparing"
    ENCODE_TEXT = "encode_text"
    ENCODE_IMAGE = "encode_image"
    DENOISE = "denoise"
    DECODE = "decode"
    MUX = "mux"
    UPLOADING = "uploading"


class Message(Struct, frozen=True, kw_only=True, gc=False, tag_field="kind"):
    """Base of all that has a ``kind``."""


# --- what a model is asked to do -------------------------------------------------------------------------------


class Input(Struct, frozen=True, kw_only=True, gc=False):
    """A file that a job reads: where it lies in the artifact store, or the ``url`` from which its worker fetches it
    (then the rest is not known)."""

    key: str = ""
    media_type: str = ""
    size: int = 0
    sha256: str = ""
    url: str = ""


class Parallel(Struct, frozen=True, kw_only=True, gc=False):
    """The layout a job asks for; None leaves it to the pool. Degrees are in ranks."""

    cfg_size: int | None = None
    ulysses_size: int | None = None
    ring_size: int | None = None
    vae_parallel: bool | None = None
    dit_fsdp: bool | None = None
    t5_fsdp: bool | None = None


class AttentionCache(Struct, frozen=True, kw_only=True, gc=False):
    """Reuse of self-attention outputs, by 0-based step: reused iff ``start < step <= end`` and
    ``(step - start) % interval != 0``; stored iff ``start <= step < end``."""

    start_step: int
    interval: int
    end_step: int


class StepCache(Struct, frozen=True, kw_only=True, gc=False):
    """Reuse of what all blocks after the first add, while the first block's own residual changes by less than
    ``threshold`` (relative, L1) since the step that computed all; by 0-based step, only for ``start_step <= step <
    end_step`` (None: to the last)."""

    threshold: float
    start_step: int = 0
    end_step: int | None = None


class LoraUse(Struct, frozen=True, kw_only=True, gc=False):
    """A LoRA by its name in the pool, and the weight with which its delta is added."""

    name: str
    weight: float = 1.0


class JobRequest(Struct, frozen=True, kw_only=True, gc=False):
    """What the engine is to do, complete: defaults filled in from the model card, the seed drawn."""

    model: str
    task: str
    prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guidance_scale: float
    shift: float
    solver: str
    seed: int
    negative_prompt: str = ""
    n: int = 1
    image: Input | None = None
    last_image: Input | None = None
    video: Input | None = None
    #: Video editing: where to make anew (white) and what to keep (black), as a clip or one picture for all frames.
    mask: Input | None = None
    #: Video editing: pictures of what is to appear.
    references: tuple[Input, ...] = ()
    #: Character tasks: how the body and the face move, and, to replace, what is behind (``mask``: where somebody is).
    pose: Input | None = None
    face: Input | None = None
    background: Input | None = None
    #: Character tasks: frames that are made at once, and how many of them the next ones begin with.
    clip_len: int | None = None
    overlap: int | None = None
    #: Video-to-video: 0..1, how much of the clip is made anew; None leaves it to the card.
    strength: float | None = None
    #: Guidance of the second expert, where a model has two; None: as the first.
    guidance_scale_2: float | None = None
    #: Video editing: how strongly the control clip acts, 0..2.
    control_scale: float | None = None
    loras: tuple[LoraUse, ...] = ()
    parallel: Parallel = Parallel()
    cache: AttentionCache | None = None
    step_cache: StepCache | None = None
    output_format: str = "mp4"
    #: Of a JPEG or WebP, 0 to 100; None leaves it to the engine.
    output_quality: int | None = None
    #: For the dummy engine only: what to pretend (see ``workers.engine.dummy``).
    dummy: dict[str, float | str] | None = None

    def inputs(self) -> dict[str, Input]:
        """Every file that the job reads, by field; the references as ``references.0``, ``references.1``, …."""
        named = {"image": self.image, "last_image": self.last_image, "video": self.video, "mask": self.mask}
        named |= {"pose": self.pose, "face": self.face, "background": self.background}
        named |= {f"references.{index}": given for index, given in enumerate(self.references)}
        return {name: given for name, given in named.items() if given is not None}


class Output(Struct, frozen=True, kw_only=True, gc=False):
    """One file that a job made. ``key`` lies under ``<job>/<epoch>/`` in the artifact store, and so do the small
    pictures of it, where there are any: one of its frames, and many side by side (``shared.pictures`` says which)."""

    key: str
    media_type: str
    size: int
    sha256: str
    width: int = 0
    height: int = 0
    num_frames: int = 0
    fps: int = 0
    thumbnail: str = ""
    spritesheet: str = ""


class Failure(Struct, frozen=True, kw_only=True, gc=False):
    """Why a job failed: a word of ``Reason`` and a sentence for people."""

    reason: str
    message: str


class Transition(Struct, frozen=True, kw_only=True, gc=False):
    """One entry of a job's own log. ``index`` counts from 0 over the job's whole life and is the SSE event id."""

    index: int
    state: State
    epoch: int
    by: str
    at: float
    age_s: float
    reason: str | None = None


# --- the record ------------------------------------------------------------------------------------------------


class JobRecord(Message, frozen=True, kw_only=True, tag="job"):
    """The only truth about a job: one value in the bucket ``jobs``, written by gateways and the scheduler alone.

    ``age_s`` is the job's age when this revision was written; its age now is that plus the time since the revision's
    timestamp, both by the broker's clock. ``attempts`` counts executions ended by an engine or group failure;
    ``setbacks`` counts returns to the queue that were nobody's fault (refusals, drains, lost workers).
    """

    id: str
    request: JobRequest
    payload_hash: str
    created_at: float
    tenant: str = DEFAULT_TENANT
    priority: int = 5
    start_deadline_s: float | None = None
    run_timeout_s: float = 3600.0
    max_attempts: int = 3
    metadata: dict[str, str] = {}
    webhook_url: str | None = None
    #: The job whose request this one repeats.
    retry_of: str | None = None
    state: State = State.QUEUED
    epoch: int = 0
    worker: str | None = None
    incarnation: str | None = None
    attempts: int = 0
    setbacks: int = 0
    failure: Failure | None = None
    outputs: tuple[Output, ...] = ()
    transitions: tuple[Transition, ...] = ()
    age_s: float = 0.0
    #: Seconds from creation to the first step of running, and seconds spent running in the last attempt.
    waited_s: float | None = None
    ran_s: float | None = None
    #: What the engine really used, where it differs from or adds to the request (layout, rounded sizes, stage seconds).
    used: dict[str, str | int | float | bool] = {}


# --- models and workers ----------------------------------------------------------------------------------------


class IntRange(Struct, frozen=True, kw_only=True, gc=False):
    """Allowed integers: ``min <= x <= max`` and ``(x - offset) % multiple_of == 0``."""

    min: int
    max: int
    default: int
    multiple_of: int = 1
    offset: int = 0


class FloatRange(Struct, frozen=True, kw_only=True, gc=False):
    """Allowed numbers: ``min <= x <= max``."""

    min: float
    max: float
    default: float


class Layout(Struct, frozen=True, kw_only=True, gc=False):
    """How a group's ranks share one job: ``cfg * ulysses * ring`` ranks (1 means off); FSDP and VAE split span the
    group."""

    cfg: int = 1
    ulysses: int = 1
    ring: int = 1
    dit_fsdp: bool = False
    t5_fsdp: bool = False
    vae_parallel: bool = False


class Footprint(Struct, frozen=True, kw_only=True, gc=False):
    """Device memory that a model takes per rank of a group of that width, in bytes: what stays (weights), and what a
    job of the card's largest size adds. Estimated from shapes, or measured where ``measured_on`` names a device."""

    width: int
    dit_fsdp: bool = False
    t5_fsdp: bool = False
    weights: int
    largest_job: int
    measured_on: str = ""


class ModelCard(Message, frozen=True, kw_only=True, tag="model_card"):
    """What a model can do, its defaults and its ranges. Lives in the bucket ``models`` under the model's name;
    written by agents when their group is ready. ``max_pixels`` bounds width * height."""

    name: str
    family: str
    tasks: tuple[str, ...]
    width: IntRange
    height: IntRange
    max_pixels: int
    num_frames: IntRange
    fps: IntRange
    steps: IntRange
    guidance_scale: FloatRange
    shift: FloatRange
    solvers: tuple[str, ...]
    title: str = ""
    description: str = ""
    licence: str = ""
    negative_prompt: str = ""
    max_n: int = 1
    #: Attention heads of the denoiser: a Ulysses degree must divide it.
    heads: int = 1
    cache: AttentionCache | None = None
    step_cache: StepCache | None = None
    #: Inputs beyond those that the tasks need: ``last_image``, ``mask``, ``references``.
    also_takes: tuple[str, ...] = ()
    #: Character tasks: frames at once, and how many the next ones begin with.
    clip_len: IntRange | None = None
    overlap: IntRange | None = None
    guidance_scale_2: FloatRange | None = None
    strength: FloatRange | None = None
    control_scale: FloatRange | None = None
    #: LoRAs that jobs may name.
    loras: tuple[str, ...] = ()
    footprints: tuple[Footprint, ...] = ()


class WorkerState(StrEnum):
    """What a worker says of itself in its lease."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    BROKEN = "broken"


class Held(Struct, frozen=True, kw_only=True, gc=False):
    """A job that a worker holds, at the epoch at which it was assigned."""

    job: str
    epoch: int


class WorkerLease(Message, frozen=True, kw_only=True, tag="worker"):
    """A worker's sign of life in the bucket ``workers`` under its name, renewed every ``lease_s / 3``.

    ``incarnation`` names one start of one agent: a new one under the same name forfeits the old one's jobs at once.
    ``beat`` grows with every renewal, so that an observer can tell a renewal from a redelivery.
    """

    worker: str
    incarnation: str
    beat: int
    lease_s: float
    state: WorkerState
    pool: str = ""
    host: str = ""
    device: str = "cpu"
    device_name: str = ""
    #: Bytes of memory of the smallest device of the group; 0: not known.
    device_memory: int = 0
    width: int = 1
    full_width: int = 1
    models: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    held: tuple[Held, ...] = ()
    capacity: int = 1
    #: 0..1 while the group loads its model.
    loaded: float = 1.0
    #: Why it is broken or narrower than it should be.
    detail: str = ""
    #: Measured seconds per denoising step, by model; feeds the ETA.
    step_s: dict[str, float] = {}
    #: Models that are in memory, of those it can serve (none named: all are), and measured seconds to load each.
    loaded_models: tuple[str, ...] = ()
    load_s: dict[str, float] = {}
    #: It has no way to the artifact store but the URLs that an assignment grants it.
    grants: bool = False


class LeaderLease(Message, frozen=True, kw_only=True, tag="leader"):
    """The leading scheduler's sign of life in the bucket ``leader``. ``beat`` grows with every renewal."""

    scheduler: str
    beat: int
    lease_s: float


# --- what operators want, and what tenants use -------------------------------------------------------------------

Weight = Annotated[float, Meta(ge=0.001, le=1000)]


class QueueControl(Message, frozen=True, kw_only=True, tag="queue_control"):
    """Whether the queue is held: jobs are taken and none is given out. Bucket ``control``, key ``queue``."""

    held: bool = False
    reason: str = ""
    by: str = ""
    at: float = 0.0


class WorkerControl(Message, frozen=True, kw_only=True, tag="worker_control"):
    """Whether the worker of that name gets jobs, over its restarts. Bucket ``control``, key ``worker.<worker>``."""

    worker: str
    drained: bool = False
    reason: str = ""
    by: str = ""
    at: float = 0.0


class TenantLimits(Message, frozen=True, kw_only=True, tag="tenant_limits"):
    """What a tenant may have: its share's weight, how many jobs may wait and be at workers at once, how many it may
    submit per second and at once (``burst``), and how many bytes may be kept of it. None: no limit of its own, so the
    settings'; 0: none. Bucket ``control``, key ``tenant.<tenant>``."""

    tenant: str
    weight: Weight = 1.0
    max_queued: int | None = None
    max_running: int | None = None
    submits_per_s: float | None = None
    burst: int | None = None
    max_stored_bytes: int | None = None
    by: str = ""
    at: float = 0.0


class WorkerQuarantine(Message, frozen=True, kw_only=True, tag="worker_quarantine"):
    """Attempts of that many jobs failed one after the other at the worker of that name, the last for ``reason``: it
    gets no job for ``rest_s``, then one on probation. 0 failures: it is trusted. Bucket ``control``, key
    ``quarantine.<worker>``; written by the scheduler, and by an operator's resume."""

    worker: str
    failures: int = 0
    rest_s: float = 0.0
    reason: str = ""
    message: str = ""
    at: float = 0.0


Control = QueueControl | WorkerControl | TenantLimits | WorkerQuarantine


class CleanupAsked(Message, frozen=True, kw_only=True, tag="cleanup_asked"):
    """An admin wants what has expired to go now. Bucket ``cleanup``, key ``asked``: the latest wish, by its random
    ``id``."""

    id: str


class CleanupDone(Message, frozen=True, kw_only=True, tag="cleanup_done"):
    """That wish was fulfilled: so many expired jobs are gone with their files, and so many files that nothing referred
    to. Bucket ``cleanup``, key ``done``."""

    id: str
    jobs: int = 0
    files: int = 0


class TenantUsage(Message, frozen=True, kw_only=True, tag="tenant_usage"):
    """What a tenant has used: device-seconds in all, and those that still count for its share. For fairness, not for
    bills: the last seconds before a leader was killed are missing. Bucket ``usage``, key ``<tenant>``."""

    tenant: str
    device_s: float
    recent_s: float
    at: float = 0.0


# --- who may ask, and what admins did ------------------------------------------------------------------------------


class ApiKey(Message, frozen=True, kw_only=True, tag="api_key"):
    """A key for the API, without its secret. Bucket ``keys``, key ``key.<id>``.

    ``hash`` is the hex HMAC-SHA256 of the secret part under a key derived from the deployment's secret. ``role`` is
    ``user``, ``operator`` or ``admin``. Times are of gateways' wall clocks, in seconds since 1970: an end that people
    agree on by date is judged by the clock that people go by. After a rotation ``former_hash`` is as good as ``hash``
    until ``former_until``.
    """

    id: str
    tenant: str
    role: str
    hash: str
    name: str = ""
    by: str = ""
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    rotated_at: float | None = None
    former_hash: str = ""
    former_until: float = 0.0


class KeyUse(Message, frozen=True, kw_only=True, tag="key_use"):
    """When a key was last seen. Bucket ``keys``, key ``used.<id>``: apart from the key, so that it never gets in the
    way of a revocation."""

    key: str
    at: float


class SessionEnd(Message, frozen=True, kw_only=True, tag="session_end"):
    """A browser's session was ended before ``until``, when it would have ended by itself. Bucket ``keys``, key
    ``ended.<session>``."""

    session: str
    until: float


KeyEntry = ApiKey | KeyUse | SessionEnd


class AuditEntry(Message, frozen=True, kw_only=True, tag="audit"):
    """Somebody with more than a user's rights asked for ``action`` on ``target``. Bucket ``audit``, key ``<id>``. Holds
    neither secrets nor what users wrote."""

    id: str
    at: float
    by: str
    tenant: str
    role: str
    action: str
    target: str
    detail: str = ""


# --- webhooks ----------------------------------------------------------------------------------------------------


class DeliveryState(StrEnum):
    """Where a webhook is: owed, made, or not tried any more until somebody asks for it."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class Delivery(Message, frozen=True, kw_only=True, tag="delivery"):
    """That a job's end is to be told to ``url``. It holds nothing of the job: what is sent is made at each try from the
    record. Buckets ``deliveries`` and, once it was made, ``delivered``, under ``<tenant>.<job>``.

    ``age_s``, ``due_s`` and ``claim_s`` count by the broker's clock from this revision's timestamp: how old the
    delivery was then, after how long its next try is due, and how long whoever holds it (``by``) may take for the try
    that is under way (0: none is).

    Attributes:
        id: of the event, the same at every try.
        event: the end: ``job.succeeded``, ``job.failed`` or ``job.cancelled``.
        at: the end's wall clock, for people.
        round: how often somebody asked for it again.
        tries, last_status, last_error: of this round; a status of 0: none came.
    """

    id: str
    tenant: str
    job: str
    url: str
    event: str
    at: float
    state: DeliveryState = DeliveryState.PENDING
    round: int = 0
    tries: int = 0
    last_status: int = 0
    last_error: str = ""
    age_s: float = 0.0
    due_s: float = 0.0
    by: str = ""
    claim_s: float = 0.0


class WebhookSecret(Message, frozen=True, kw_only=True, tag="webhook_secret"):
    """Which version of a tenant's secret signs its webhooks; for a time after the change the one before signs too.
    Bucket ``webhooks``, key ``<tenant>``; the secret itself is derived and lies nowhere."""

    tenant: str
    version: int
    by: str = ""
    at: float = 0.0


# --- gateways among themselves -----------------------------------------------------------------------------------


class GatewayLease(Message, frozen=True, kw_only=True, tag="gateway"):
    """A gateway's sign of life in the bucket ``gateways`` under its name: each enforces its part of tenants' rates.
    ``beat`` grows with every renewal."""

    gateway: str
    beat: int
    lease_s: float


class KeptInput(Message, frozen=True, kw_only=True, tag="kept_input"):
    """A tenant's input file was stored, or is in use again, so many bytes: bucket ``uploads``, key
    ``<tenant>.<sha256>``. Until its job's record says so too, or the sweep has removed it, this is what counts it."""

    size: int


# --- assignment, orders, results, progress ---------------------------------------------------------------------


class FileGrants(Struct, frozen=True, kw_only=True, gc=False):
    """URLs by which a worker that cannot reach the artifact store itself reads the job's inputs and writes this epoch's
    files, and nothing else. Each is good for one method on one key, for ``seconds`` from when it was signed.

    Attributes:
        reads: to GET, by the input's key.
        writes: to PUT, by the file's name under ``<job>/<epoch>/``.
        max_bytes: of one written file.
    """

    reads: dict[str, str] = {}
    writes: dict[str, str] = {}
    max_bytes: int = 0
    seconds: float = 0.0


class Assign(Message, frozen=True, kw_only=True, tag="assign"):
    """Scheduler → worker, by core-NATS request: run this job at this epoch. Sent again until it runs; idempotent."""

    job: str
    epoch: int
    worker: str
    incarnation: str
    request: JobRequest
    run_timeout_s: float
    tenant: str = DEFAULT_TENANT
    #: For a worker whose lease says that it needs them.
    files: FileGrants | None = None


class Accepted(Message, frozen=True, kw_only=True, tag="accepted"):
    """The worker has the job at this epoch: it runs, ran, or is about to."""


class Busy(Message, frozen=True, kw_only=True, tag="busy"):
    """The worker holds as many jobs as it can."""


class Draining(Message, frozen=True, kw_only=True, tag="draining"):
    """The worker takes no more jobs."""


class WrongIncarnation(Message, frozen=True, kw_only=True, tag="wrong_incarnation"):
    """That start of the worker is over; ``incarnation`` is the present one."""

    incarnation: str


class CannotServe(Message, frozen=True, kw_only=True, tag="cannot_serve"):
    """The worker's group cannot do this job as it now is (model, layout, size), for ``message``."""

    message: str


AssignReply = Accepted | Busy | Draining | WrongIncarnation | CannotServe


class Succeeded(Message, frozen=True, kw_only=True, tag="succeeded"):
    """The attempt made its outputs; they are in the artifact store."""

    outputs: tuple[Output, ...]
    used: dict[str, str | int | float | bool] = {}


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The attempt failed. ``final``: trying again cannot help (a rejected input, the run timeout)."""

    reason: str
    message: str
    final: bool = False


class Cancelled(Message, frozen=True, kw_only=True, tag="cancelled"):
    """The attempt was ended by a cancel order."""


class Returned(Message, frozen=True, kw_only=True, tag="returned"):
    """The worker hands the job back through no fault of the job (drain)."""

    reason: str


Outcome = Succeeded | Failed | Cancelled | Returned


class Result(Message, frozen=True, kw_only=True, tag="result"):
    """The end of one attempt, in the bucket ``results`` under ``<worker>.<job>.<epoch>``, written by the worker."""

    job: str
    epoch: int
    worker: str
    incarnation: str
    outcome: Outcome
    ran_s: float = 0.0
    #: As it was assigned: where to look for the record of a job that has left the queue's bucket.
    tenant: str = DEFAULT_TENANT


class CancelOrder(Message, frozen=True, kw_only=True, tag="cancel"):
    """Stop this job at this epoch at the next step. Bucket ``orders``, key ``<worker>.<incarnation>.<job>.<epoch>``.
    ``superseded``: the job has gone on without this attempt, and nobody waits for its end."""

    job: str
    epoch: int
    superseded: bool = False


class DrainOrder(Message, frozen=True, kw_only=True, tag="drain"):
    """Take no more jobs; finish what is held. Bucket ``orders``, key ``<worker>.<incarnation>.drain``."""


Order = CancelOrder | DrainOrder


class Progress(Message, frozen=True, kw_only=True, tag="progress"):
    """How far a running job is: bucket ``progress`` under the job's id, at most 4 a second, may be lost."""

    job: str
    epoch: int
    worker: str
    stage: str
    step: int = 0
    total_steps: int = 0
    eta_s: float | None = None
    at: float = 0.0
    #: A look at what is being made, as a JPEG; at most once a second, and empty in between.
    preview: bytes = b""


BusMessage = (
    JobRecord
    | ModelCard
    | WorkerLease
    | LeaderLease
    | Assign
    | Accepted
    | Busy
    | Draining
    | WrongIncarnation
    | CannotServe
    | Result
    | CancelOrder
    | DrainOrder
    | Progress
    | QueueControl
    | WorkerControl
    | TenantLimits
    | WorkerQuarantine
    | TenantUsage
    | CleanupAsked
    | CleanupDone
    | GatewayLease
    | KeptInput
    | Delivery
    | WebhookSecret
    | ApiKey
    | KeyUse
    | SessionEnd
    | AuditEntry
)

T = TypeVar("T")
_encoder = msgspec.json.Encoder()
_decoders: dict[object, msgspec.json.Decoder[object]] = {}


def encode(message: Message) -> bytes:
    """The message as JSON."""
    return _encoder.encode(message)


def decode(data: bytes, kind: type[T]) -> T:
    """JSON to a message of this type (a union is allowed).

    Raises:
        msgspec.ValidationError: it is not that message.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder.decode(data)  # type: ignore[return-value]
