"""What a webhook says: made at each try from the job's record, so that links are fresh, and so that nothing of the job
lies in the delivery. A job that was deleted meanwhile is told as such, with nothing of it but its id and end."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from gateway.live import Live
from gateway.problems import Problem
from gateway.schema import ErrorView
from gateway.views import error_view, output_views
from shared.messages import Delivery, JobRecord

_GONE = (404, 410)


class WebhookOutput(Struct, frozen=True, kw_only=True):
    """A file that the job made; `url` is absolute."""

    index: int
    url: str
    media_type: str
    size: int
    sha256: str
    width: int
    height: int
    num_frames: int
    fps: int


class WebhookJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The job that has ended. `url` is where to look at it; of a `deleted` job there is only `id` and `state`."""

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


class Payloads:
    """Makes bodies.

    Args:
        base_url: of this API, for absolute addresses.
    """

    def __init__(self, live: Live, base_url: str) -> None:
        self._live = live
        self._base_url = base_url

    async def body(self, delivery: Delivery) -> bytes:
        """The bytes to sign and to send.

        Raises:
            BusUnavailable: the record cannot be read.
        """
        try:
            record = (await self._live.find(delivery.job, delivery.tenant)).record
        except Problem as problem:
            if problem.status not in _GONE:
                raise
            data = WebhookJob(id=delivery.job, state=delivery.event.removeprefix("job."), deleted=True)
        else:
            data = await self._job(record)
        when = datetime.fromtimestamp(delivery.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return msgspec.json.encode(WebhookEvent(type=delivery.event, timestamp=when, data=data))

    async def _job(self, record: JobRecord) -> WebhookJob:
        return WebhookJob(
            id=record.id,
            state=record.state,
            url=f"{self._base_url}/v1/jobs/{record.id}",
            model=record.request.model,
            task=record.request.task,
            created_at=record.created_at,
            outputs=tuple(
                WebhookOutput(
                    index=view.index,
                    url=self._base_url + view.url,
                    media_type=view.media_type,
                    size=view.size,
                    sha256=view.sha256,
                    width=view.width,
                    height=view.height,
                    num_frames=view.num_frames,
                    fps=view.fps,
                )
                for view in output_views(record)
            ),
            error=error_view(record),
            metadata=record.metadata,
            attempts=record.attempts,
            waited_s=record.waited_s,
            ran_s=record.ran_s,
            retry_of=record.retry_of,
        )
