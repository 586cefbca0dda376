"""``/v1/jobs/{id}/events``: a job's life as server-sent events (HTML standard, section 9.2)."""

from __future__ import annotations

from litestar import get
from litestar.params import FromPath
from litestar.response import Response

from gateway import ids
from gateway.auth import caller_of
from gateway.event_stream import EventStream
from gateway.parts import AnyRequest, gateway_of
from gateway.problems import Problem
from gateway.streams import Now
from shared.messages import TERMINAL


@get("/v1/jobs/{job_id:str}/events")
async def events(request: AnyRequest, job_id: FromPath[str]) -> Response[bytes]:
    """Transitions from the beginning, or after ``Last-Event-ID``; progress as it comes; ends with the terminal one.

    A client that comes back with the terminal one's id gets 204, which tells a browser's EventSource to stay away; it
    would otherwise connect again and again.
    """
    live = gateway_of(request).live
    job = ids.parse(job_id)
    next_index = _next_index(request.headers.get("last-event-id"))
    caller = caller_of(request)
    record = (await live.find(job, caller.tenant)).record
    if record.state in TERMINAL and next_index > record.transitions[-1].index:
        return Response(b"", status_code=204)
    ended = Now(record, None, None) if record.state in TERMINAL else None  # archived ones are not in the view
    return EventStream(live.streams.events(job, lambda: live.now(job) or ended, next_index, caller))


def _next_index(last: str | None) -> int:
    if last is None or last == "":
        return 0
    if not (last.isascii() and last.isdigit() and len(last) <= 9):
        raise Problem(400, "Last-Event-ID must be the id of an event of this stream")
    return int(last) + 1


HANDLERS = [events]
