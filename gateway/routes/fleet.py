"""What there is to work with: models, workers, the queue in numbers."""

from __future__ import annotations

from litestar import get
from litestar.response import Response
from msgspec.structs import replace

from gateway.auth import Role, caller_of, may
from gateway.fleet import mean_step_s
from gateway.fleet_views import model_view, worker_view
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.schema.fleet import ModelList, QueueTotals, WorkerList
from shared.messages import TERMINAL


@get("/v1/models")
async def models(request: AnyRequest) -> Response[bytes]:
    """Every model that a pool has announced."""
    fleet = gateway_of(request).live.fleet
    views = tuple(
        model_view(card, len(serving), fleet.layouts(name), mean_step_s(name, serving))
        for name, card, serving in ((n, c, fleet.serving(n)) for n, c in sorted(fleet.models.items()))
    )
    return answer(ModelList(data=views))


@get("/v1/workers")
async def workers(request: AnyRequest) -> Response[bytes]:
    """Every worker heard of; for users without what concerns those alone who run them."""
    views = worker_views(gateway_of(request))
    return answer(views if may(caller_of(request), Role.OPERATOR) else public(views))


def worker_views(gateway: Gateway, only: str | None = None) -> WorkerList:
    """The workers heard of, or that one alone."""
    operators = gateway.live.operators
    return WorkerList(
        data=tuple(
            worker_view(lease, state, at, operators.workers.get(lease.worker), operators.quarantines.get(lease.worker))
            for lease, state, at in gateway.live.fleet.workers()
            if only in (None, lease.worker)
        )
    )


def public(views: WorkerList) -> WorkerList:
    """What users may know of workers: what they can do and how busy they are. Where they stand, what is wrong with them
    and whose job it went wrong with is their operators' business."""
    return WorkerList(
        data=tuple(
            replace(view, incarnation="", pool="", host="", detail="", drain_reason="", quarantine=None)
            for view in views.data
        )
    )


@get("/v1/queue")
async def queue(request: AnyRequest) -> Response[bytes]:
    """The queue in numbers."""
    return answer(queue_totals(request))


def queue_totals(request: AnyRequest) -> QueueTotals:
    """The queue in numbers, and whether it is held."""
    gateway = gateway_of(request)
    live = gateway.live
    states = {str(state): count for state, count in sorted(live.index.states.items()) if count}
    priorities = {str(level): count for level, count in sorted(live.queue.priorities.items()) if count}
    ended = sum(live.index.states[state] for state in TERMINAL)
    retained = sum(states.values())
    return QueueTotals(
        states=states,
        queued_by_priority=priorities,
        queued=len(live.queue),
        open=retained - ended,
        retained=retained,
        max_queued=gateway.settings.max_queued,
        held=live.operators.queue.held,
        hold_reason=live.operators.queue.reason,
    )


HANDLERS = [models, workers, queue]
