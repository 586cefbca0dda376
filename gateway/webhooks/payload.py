"""What a webhook says: made at each try from the job's record, so that links are fresh, and so that nothing of the job
lies in the delivery. A job that was deleted meanwhile is told as such, with nothing of it but its id and end."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gateway.links import Links
from gateway.live import Live
from gateway.problems import Problem
from gateway.views import error_view
from gateway.webhooks.schema import WebhookEvent, WebhookJob, WebhookOutput
from shared.messages import Delivery, JobRecord

_GONE = (404, 410)


#: How long the links in a body are good.
LINK_S = 86_400.0


class Payloads:
    """Makes bodies.

    Args:
        base_url: of this API, for absolute addresses.
    """

    def __init__(self, live: Live, links: Links, base_url: str) -> None:
        self._live = live
        self._links = links
        self._base_url = base_url

    async def body(self, delivery: Delivery) -> bytes:
        """The bytes to sign and to send.

        Raises:
            BusUnavailable: the record cannot be read.
            ArtifactError: the store cannot sign.
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
            outputs=tuple([await self._output(record, index) for index in range(len(record.outputs))]),
            error=error_view(record),
            metadata=record.metadata,
            attempts=record.attempts,
            waited_s=record.waited_s,
            ran_s=record.ran_s,
            retry_of=record.retry_of,
        )

    async def _output(self, record: JobRecord, index: int) -> WebhookOutput:
        made = record.outputs[index]
        return WebhookOutput(
            index=index,
            url=await self._links.url(record, index, ttl_s=LINK_S),
            media_type=made.media_type,
            size=made.size,
            sha256=made.sha256,
            width=made.width,
            height=made.height,
            num_frames=made.num_frames,
            fps=made.fps,
        )
