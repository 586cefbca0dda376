"""Which buckets and subjects exist, what lives in each, and with which settings.

``ensure`` (of a bus implementation) makes them idempotently, reads the settings back and refuses to go on when they
differ, because an old server ignores options it does not know without a word.
"""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSpec:
    """A bucket's settings.

    Attributes:
        memory: kept in memory only; gone after a broker restart.
        ttl_s: entries vanish that long after their write; None keeps them.
        max_bytes: the bucket refuses writes beyond it.
        max_value: largest value in bytes.
        owners: who may write it; ``worker``: each worker its own keys.
        readers: who may read it; a worker again its own keys only.
        cleaners: who else may remove entries.
        of_worker: the keys that are one worker's own, as a filter with its name for ``{worker}``.
    """

    name: str
    holds: str
    owners: tuple[str, ...]
    memory: bool = False
    ttl_s: float | None = None
    max_bytes: int = 256 * MiB
    max_value: int = 64 * 1024
    readers: tuple[str, ...] = ("gateway", "scheduler")
    cleaners: tuple[str, ...] = ()
    of_worker: str = ""


JOBS = BucketSpec(
    name="jobs",
    holds="<job id>: JobRecord, the only truth",
    owners=("gateway", "scheduler"),
    max_bytes=1024 * MiB,
)
RESULTS = BucketSpec(
    name="results",
    holds="<worker>.<job>.<epoch>: Result, the end of an attempt, until the scheduler has folded it",
    owners=("worker",),
    readers=("scheduler",),
    cleaners=("scheduler",),
    of_worker="{worker}.*.*",
)
WORKERS = BucketSpec(
    name="workers",
    holds="<worker>: WorkerLease",
    owners=("worker",),
    readers=("gateway", "scheduler", "worker"),
    of_worker="{worker}",
    memory=True,
    ttl_s=60.0,
    max_bytes=32 * MiB,
)
PROGRESS = BucketSpec(
    name="progress",
    holds="<worker>.<job id>: Progress",
    owners=("worker",),
    readers=("gateway",),
    of_worker="{worker}.*",
    memory=True,
    ttl_s=600.0,
    max_bytes=64 * MiB,
)
ORDERS = BucketSpec(
    name="orders",
    holds="<worker>.<incarnation>.<job>.<epoch>: CancelOrder; <worker>.<incarnation>.drain: DrainOrder",
    owners=("gateway", "scheduler"),
    readers=("gateway", "scheduler", "worker"),
    of_worker="{worker}.>",
    ttl_s=7 * 86400.0,
    max_bytes=64 * MiB,
)
MODELS = BucketSpec(
    name="models",
    holds="<worker>.<model>: ModelCard, as that worker has it (of old, <model>: ModelCard)",
    owners=("worker",),
    readers=("gateway", "scheduler", "worker"),
    cleaners=("scheduler",),
    of_worker="{worker}.*",
    max_bytes=32 * MiB,
    max_value=256 * 1024,
)
LEADER = BucketSpec(
    name="leader",
    holds="scheduler: LeaderLease, of the one scheduler that decides",
    owners=("scheduler",),
    readers=("scheduler",),
    memory=True,
    ttl_s=10.0,
    max_bytes=1 * MiB,
)
ARCHIVE = BucketSpec(
    name="archive",
    holds="<tenant>.<job id>: JobRecord of a job that ended some minutes ago, as it was in jobs; never a marker",
    owners=("gateway", "scheduler"),
    max_bytes=2048 * MiB,
)
DELETED = BucketSpec(
    name="deleted",
    holds="<tenant>.<job id>: empty, the job is gone for good; pending.<tenant>.<job id>: empty, until all of it is",
    owners=("gateway", "scheduler"),
    ttl_s=7 * 86400.0,
    max_bytes=128 * MiB,
)

CONTROL = BucketSpec(
    name="control",
    holds="queue: QueueControl; worker.<worker>: WorkerControl; tenant.<tenant>: TenantLimits; "
    "quarantine.<worker>: WorkerQuarantine",
    owners=("gateway", "scheduler"),
    max_bytes=16 * MiB,
)
KEYS = BucketSpec(
    name="keys",
    holds="key.<id>: ApiKey; used.<id>: KeyUse; ended.<session>: SessionEnd",
    owners=("gateway",),
    readers=("gateway",),
    max_bytes=32 * MiB,
)
AUDIT = BucketSpec(
    name="audit",
    holds="<id>: AuditEntry, in the order of their writing",
    owners=("gateway",),
    readers=("gateway",),
    ttl_s=90 * 86400.0,
    max_bytes=64 * MiB,
)
USAGE = BucketSpec(name="usage", holds="<tenant>: TenantUsage", owners=("scheduler",), max_bytes=16 * MiB)

DELIVERIES = BucketSpec(
    name="deliveries",
    holds="<tenant>.<job id>: Delivery that is owed, or that was given up; never a marker",
    owners=("gateway", "scheduler"),
    ttl_s=30 * 86400.0,
    max_bytes=128 * MiB,
    max_value=8 * 1024,
)
DELIVERED = BucketSpec(
    name="delivered",
    holds="<tenant>.<job id>: Delivery that was made; mark: empty, written by gateways as they begin to follow",
    owners=("gateway",),
    ttl_s=2 * 86400.0,
    max_bytes=96 * MiB,
    max_value=8 * 1024,
)
WEBHOOKS = BucketSpec(
    name="webhooks",
    holds="<tenant>: WebhookSecret, which of the tenant's secrets is in use",
    owners=("gateway",),
    readers=("gateway",),
    max_bytes=4 * MiB,
)

GATEWAYS = BucketSpec(
    name="gateways",
    holds="<gateway>: GatewayLease, of each start of each gateway",
    owners=("gateway",),
    readers=("gateway",),
    memory=True,
    ttl_s=60.0,
    max_bytes=1 * MiB,
)
UPLOADS = BucketSpec(
    name="uploads",
    holds="<tenant>.<sha256>: KeptInput, of the last day and a quarter: longer than the sweep leaves what is not used",
    owners=("gateway",),
    readers=("gateway",),
    ttl_s=30 * 3600.0,
    max_bytes=64 * MiB,
)

CLEANUP = BucketSpec(
    name="cleanup",
    holds="asked: CleanupAsked, an admin's wish; done: CleanupDone, the last that was fulfilled",
    owners=("gateway", "scheduler"),
    readers=("gateway", "scheduler"),
    max_bytes=1 * MiB,
)

BUCKETS = (
    CLEANUP,
    JOBS,
    RESULTS,
    WORKERS,
    PROGRESS,
    ORDERS,
    MODELS,
    LEADER,
    ARCHIVE,
    DELETED,
    CONTROL,
    USAGE,
    KEYS,
    AUDIT,
    DELIVERIES,
    DELIVERED,
    WEBHOOKS,
    GATEWAYS,
    UPLOADS,
)

#: Admission stops at this share of ``JOBS``: the rest is for transitions, else a full queue could never drain.
ADMISSION_SHARE = 0.8


def result_key(worker: str, job: str, epoch: int) -> str:
    """Key in ``results``."""
    return f"{worker}.{job}.{epoch}"


def cancel_key(worker: str, incarnation: str, job: str, epoch: int) -> str:
    """Key in ``orders`` of the order to cancel."""
    return f"{worker}.{incarnation}.{job}.{epoch}"


def drain_key(worker: str, incarnation: str) -> str:
    """Key in ``orders`` of the order to drain."""
    return f"{worker}.{incarnation}.drain"


def progress_key(worker: str, job: str) -> str:
    """Key in ``progress``; an older worker writes under the job's id alone."""
    return f"{worker}.{job}"


def model_key(worker: str, name: str) -> str:
    """Key in ``models``. Model names may hold dots (``wan2.1``), which separate tokens on the bus."""
    return f"{worker}.{name.replace('.', '=')}"


def model_of(key: str) -> tuple[str, str]:
    """The worker whose card is under that key in ``models`` (``""`` of an older worker), and the model's name."""
    worker, _, name = key.rpartition(".")
    return worker, name.replace("=", ".")


def assign_subject(worker: str, incarnation: str) -> str:
    """Where that start of that worker takes assignments."""
    return f"worker.{worker}.{incarnation}.assign"


def nudge_subject(worker: str, incarnation: str) -> str:
    """Where that start of that worker is told to look at its orders now."""
    return f"worker.{worker}.{incarnation}.nudge"


def reply_subject(subject: str, inbox: str) -> str | None:
    """Where the answer to a request on that subject is awaited, if it is to a worker, which may answer there alone:
    under its own name. None: anywhere.

    Args:
        inbox: what only the asking process listens to; a token.
    """
    parts = subject.split(".")
    return f"worker.{parts[1]}.reply.{inbox}" if parts[0] == "worker" and len(parts) > 2 else None


#: Key in ``control``.
QUEUE_CONTROL = "queue"


def worker_control(worker: str) -> str:
    """Key in ``control``."""
    return f"worker.{worker}"


def tenant_control(tenant: str) -> str:
    """Key in ``control``."""
    return f"tenant.{tenant}"


def quarantine_control(worker: str) -> str:
    """Key in ``control``."""
    return f"quarantine.{worker}"


def api_key(key: str) -> str:
    """Key in ``keys`` of the API key with that id."""
    return f"key.{key}"


def key_use(key: str) -> str:
    """Key in ``keys`` of when it was last seen."""
    return f"used.{key}"


def session_end(session: str) -> str:
    """Key in ``keys`` of a session that was ended."""
    return f"ended.{session}"


#: Keys in ``cleanup``.
CLEANUP_ASKED, CLEANUP_DONE = "asked", "done"
#: Key in ``leader``.
LEADER_KEY = "scheduler"


def upload_key(tenant: str, sha256: str) -> str:
    """Key in ``uploads``."""
    return f"{tenant}.{sha256}"


def archive_key(tenant: str, job: str) -> str:
    """Key in ``archive``, and of the tombstone in ``deleted``."""
    return f"{tenant}.{job}"


def pending_key(tenant: str, job: str) -> str:
    """Key in ``deleted`` of a deletion that is under way."""
    return f"pending.{tenant}.{job}"


def delivery_key(tenant: str, job: str) -> str:
    """Key in ``deliveries`` and in ``delivered``."""
    return f"{tenant}.{job}"


#: Key in ``delivered`` of what is no delivery.
DELIVERED_MARK = "mark"


def output_key(job: str, epoch: int, name: str) -> str:
    """Artifact key of an output file."""
    return f"{job}/{epoch}/{name}"


def input_key(tenant: str, sha256: str) -> str:
    """Artifact key of an uploaded input."""
    return f"inputs/{tenant}/{sha256}"
