"""``/health``, which three of the services have: one answer with the fields of all of them."""

from __future__ import annotations

from litestar import get
from litestar.response import Response
from msgspec import Struct

from gateway.fleet import LOST
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, answer, gateway_of
from shared.messages import State, WorkerState

_SERVING = (WorkerState.IDLE, WorkerState.BUSY)


class TaskHealth(Struct, kw_only=True):
    """How the fleet is: ``healthy`` if a worker serves, ``starting`` if none does yet but one is loading, else
    ``degraded``.

    ``rank`` and ``pipeline_rank`` are of a time when one process was all: always 0. ``total_tasks`` counts what is
    queued, at work and retained.
    """

    status: str
    rank: int = 0
    total_tasks: int
    pipeline_world_size: int
    pipeline_rank: int = 0
    pipeline_ready: bool
    queue_length: int
    active_tasks: int
    device_type: str
    device_count: int


@get("/health")
async def health(request: AnyRequest) -> Response[bytes]:
    """Whether jobs are being done."""
    live = gateway_of(request).live
    workers = [(lease, state) for lease, state, _ in live.fleet.workers() if state != LOST]
    serving = [lease for lease, state in workers if state in _SERVING]
    loading = any(state == WorkerState.STARTING for _, state in workers)
    states = live.index.states
    return answer(
        TaskHealth(
            status="healthy" if serving else "starting" if loading else "degraded",
            total_tasks=sum(states.values()),
            pipeline_world_size=max((lease.width for lease in serving), default=0),
            pipeline_ready=bool(serving),
            queue_length=len(live.queue),
            active_tasks=sum(states[state] for state in (State.ASSIGNED, State.RUNNING, State.CANCELLING)),
            device_type=",".join(sorted({lease.device for lease in serving})) or "none",
            device_count=sum(lease.width for lease in serving),
        )
    )


HANDLERS = [health]
OPERATIONS = (
    Operation(
        method="get",
        path="/health",
        name="task_health",
        tag="tasks",
        summary="Whether jobs are being done, in the words of three services at once.",
        answers={200: TaskHealth},
    ),
)
