"""The bodies of ``/v1/webhooks``, and what is posted to receivers."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway.schema.jobs import ErrorView
from gateway.schema.requests import WebhookUrl


class WebhookOutput(Struct, frozen=True, kw_only=True):
    """A file that the job made; `url` is good for a day and needs no key."""

    index: int
    url: str
    media_type: str
    size: int
    sha256: str
    width: int
    height: int
    num_frames: int
    fps: int


class WebhookJob(Struct, frozen=True, kw_only=True):
    """The job that has ended. `url` is where to look at it; of a `deleted` job there is only `id` and `state`, and the
    rest is empty."""

    id: str
    state: str
    deleted: bool = False
    url: str = ""
    model: str = ""
    task: str = ""
    created_at: float = 0.0
    outputs: tuple[WebhookOutput, ...] = ()
    error: ErrorView | None = None
    metadata: dict[str, str] = {}
    attempts: int = 0
    waited_s: float | None = None
    ran_s: float | None = None
    retry_of: str | None = None


class WebhookEvent(Struct, frozen=True, kw_only=True):
    """What is posted: `type` is `job.succeeded`, `job.failed` or `job.cancelled`, `timestamp` the end's time."""

    type: str
    timestamp: str
    data: WebhookJob


class SecretView(Struct, frozen=True, kw_only=True):
    """The secret with which the tenant's webhooks are signed; for `previous_for_s` seconds the one before signs too."""

    secret: str
    version: int
    previous_for_s: float


class DeliveryView(Struct, frozen=True, kw_only=True):
    """A webhook that is owed (`pending`) or was given up. `url` is shown without its query; `next_try_in_s` is null
    while a try is under way."""

    id: str
    job: str
    tenant: str
    event: str
    url: str
    state: str
    tries: int
    last_status: int | None
    last_error: str | None
    age_s: float
    next_try_in_s: float | None


class DeliveryList(Struct, frozen=True, kw_only=True):
    """A page of them; `next` goes into `after`. A page may be short while `next` is not null."""

    data: tuple[DeliveryView, ...]
    next: str | None


class ReplayBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which webhooks are to be delivered once more: in that `state`, of that tenant, to that `receiver` (only scheme,
    host and port of the URL count), of that job, last changed at most `since_s` seconds ago. `delivered` ones are known
    for two days."""

    state: Literal["given_up", "pending", "delivered"] = "given_up"
    tenant: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    receiver: WebhookUrl | None = None
    job: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$")] | None = None
    since_s: Annotated[float, Meta(gt=0, le=30 * 86400)] | None = None


class ReplayView(Struct, frozen=True, kw_only=True):
    """How many are delivered once more; not `all`: there were more than one request takes, send it again."""

    replayed: int
    all: bool
