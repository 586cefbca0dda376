"""What operators do: hold and release the queue, drain and resume a worker, limit a tenant.

There is no authentication yet: whoever reaches the gateway may do this. Keep it on the loopback or behind a proxy that
knows who asks.
"""

from __future__ import annotations

import re

import msgspec
from litestar import get, post, put
from litestar.params import FromPath
from litestar.response import Response

from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import invalid, not_found
from gateway.routes.fleet import queue_totals, worker_views
from gateway.schema import LimitsBody, LimitsView, ReasonBody
from gateway.uploads import decode_json, read, read_json
from shared.messages import TenantLimits

_reason = msgspec.json.Decoder(ReasonBody)
_limits = msgspec.json.Decoder(LimitsBody)

_WORKER = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_REASON_BODY = 4096


@post("/v1/queue/hold", status_code=200)
async def hold(request: AnyRequest) -> Response[bytes]:
    """Give out no more jobs; submits are still taken."""
    gateway = gateway_of(request)
    await gateway.live.operators.hold(await _said(request))
    return answer(queue_totals(request))


@post("/v1/queue/release", status_code=200)
async def release(request: AnyRequest) -> Response[bytes]:
    """Give out jobs again."""
    await gateway_of(request).live.operators.release()
    return answer(queue_totals(request))


@post("/v1/workers/{worker:str}/drain", status_code=200)
async def drain(request: AnyRequest, worker: FromPath[str]) -> Response[bytes]:
    """Give a worker no more jobs, over its restarts, until it is resumed."""
    gateway = gateway_of(request)
    reason = await _said(request)
    await gateway.live.operators.drain(_worker(worker), reason, known=_known(gateway, worker))
    return answer(worker_views(gateway, worker))


@post("/v1/workers/{worker:str}/resume", status_code=200)
async def resume(request: AnyRequest, worker: FromPath[str]) -> Response[bytes]:
    """Give a worker jobs again: ends a drain and a quarantine."""
    gateway = gateway_of(request)
    await gateway.live.operators.resume(_worker(worker), known=_known(gateway, worker))
    return answer(worker_views(gateway, worker))


@get("/v1/tenants/{tenant:str}/limits")
async def limits(request: AnyRequest, tenant: FromPath[str]) -> Response[bytes]:
    """What a tenant may have, and has."""
    return answer(_limits_view(gateway_of(request), _tenant(tenant)))


@put("/v1/tenants/{tenant:str}/limits")
async def limit(request: AnyRequest, tenant: FromPath[str]) -> Response[bytes]:
    """Replace a tenant's limits; what is left out is as usual."""
    gateway = gateway_of(request)
    body = await read_json(request, _limits, gateway.settings.max_json_bytes)
    await gateway.live.operators.limit(
        TenantLimits(
            tenant=_tenant(tenant), weight=body.weight, max_queued=body.max_queued, max_running=body.max_running
        )
    )
    return answer(_limits_view(gateway, tenant))


def _limits_view(gateway: Gateway, tenant: str) -> LimitsView:
    found = gateway.live.operators.limits(tenant)
    return LimitsView(
        tenant=tenant,
        weight=found.weight,
        max_queued=found.max_queued,
        max_running=found.max_running,
        queued=gateway.live.queue.waiting[tenant],
        running=gateway.live.queue.running[tenant],
    )


async def _said(request: AnyRequest) -> str:
    """The reason, if a body gives one."""
    body = await read(request, _MAX_REASON_BODY)
    return decode_json(body, _reason).reason if body else ""


def _worker(name: str) -> str:
    if not _WORKER.fullmatch(name):
        raise not_found("no such worker")
    return name


def _tenant(name: str) -> str:
    if not _TENANT.fullmatch(name):
        raise invalid("tenant", "must be 1 to 64 letters, digits, dashes or underscores")
    return name


def _known(gateway: Gateway, worker: str) -> bool:
    return any(lease.worker == worker for lease, _, _ in gateway.live.fleet.workers())


HANDLERS = [hold, release, drain, resume, limits, limit]
