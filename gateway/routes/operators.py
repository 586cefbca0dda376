"""What operators do: hold and release the queue, drain and resume a worker; and admins: limit a tenant."""

from __future__ import annotations

import msgspec
from litestar import get, post, put
from litestar.params import FromPath
from litestar.response import Response

from gateway.audit import note
from gateway.auth import Role, require, tenant_of
from gateway.names import TENANT, WORKER
from gateway.parts import AnyRequest, Gateway, answer, gateway_of
from gateway.problems import invalid, not_found
from gateway.routes.fleet import queue_totals, worker_views
from gateway.schema.requests import LimitsBody, ReasonBody
from gateway.uploads import decode_json, read, read_json
from gateway.usage import limits_view
from shared.messages import TenantLimits

_reason = msgspec.json.Decoder(ReasonBody)
_limits = msgspec.json.Decoder(LimitsBody)

_MAX_REASON_BODY = 4096


@post("/v1/queue/hold", status_code=200)
async def hold(request: AnyRequest) -> Response[bytes]:
    """Give out no more jobs; submits are still taken."""
    caller = require(request, Role.OPERATOR)
    gateway = gateway_of(request)
    reason = await _said(request)
    await note(gateway, caller, "queue.hold", "", reason)
    await gateway.live.operators.hold(reason, caller.by)
    return answer(queue_totals(request))


@post("/v1/queue/release", status_code=200)
async def release(request: AnyRequest) -> Response[bytes]:
    """Give out jobs again."""
    caller = require(request, Role.OPERATOR)
    gateway = gateway_of(request)
    await note(gateway, caller, "queue.release", "")
    await gateway.live.operators.release(caller.by)
    return answer(queue_totals(request))


@post("/v1/workers/{worker:str}/drain", status_code=200)
async def drain(request: AnyRequest, worker: FromPath[str]) -> Response[bytes]:
    """Give a worker no more jobs, over its restarts, until it is resumed."""
    caller = require(request, Role.OPERATOR)
    gateway = gateway_of(request)
    reason = await _said(request)
    _check(gateway, worker)
    await note(gateway, caller, "worker.drain", worker, reason)
    await gateway.live.operators.drain(worker, reason, caller.by)
    return answer(worker_views(gateway, worker))


@post("/v1/workers/{worker:str}/resume", status_code=200)
async def resume(request: AnyRequest, worker: FromPath[str]) -> Response[bytes]:
    """Give a worker jobs again: ends a drain and a quarantine."""
    caller = require(request, Role.OPERATOR)
    gateway = gateway_of(request)
    _check(gateway, worker)
    await note(gateway, caller, "worker.resume", worker)
    await gateway.live.operators.resume(worker, caller.by)
    return answer(worker_views(gateway, worker))


@get("/v1/tenants/{tenant:str}/limits")
async def limits(request: AnyRequest, tenant: FromPath[str]) -> Response[bytes]:
    """What a tenant may have, and has: its own business, and admins'."""
    if tenant_of(request) != tenant:
        require(request, Role.ADMIN)
    return answer(limits_view(gateway_of(request), _tenant(tenant)))


@put("/v1/tenants/{tenant:str}/limits")
async def limit(request: AnyRequest, tenant: FromPath[str]) -> Response[bytes]:
    """Replace a tenant's limits; what is left out is as usual."""
    caller = require(request, Role.ADMIN)
    gateway = gateway_of(request)
    body = await read_json(request, _limits, gateway.settings.max_json_bytes)
    given = msgspec.structs.asdict(body)
    limits = TenantLimits(tenant=_tenant(tenant), by=caller.by, **given)
    await note(gateway, caller, "tenant.limit", tenant, ", ".join(f"{name} {given[name]}" for name in sorted(given)))
    await gateway.live.operators.limit(limits)
    return answer(limits_view(gateway, tenant))


async def _said(request: AnyRequest) -> str:
    """The reason, if a body gives one."""
    body = await read(request, _MAX_REASON_BODY)
    return decode_json(body, _reason).reason if body else ""


def _tenant(name: str) -> str:
    if not TENANT.fullmatch(name):
        raise invalid("tenant", "must be 1 to 64 letters, digits, dashes or underscores")
    return name


def _check(gateway: Gateway, worker: str) -> None:
    """Refuse names of workers that were never heard of."""
    live = gateway.live
    heard_of = live.operators.heard_of(worker) or any(lease.worker == worker for lease, _, _ in live.fleet.workers())
    if not (WORKER.fullmatch(worker) and heard_of):
        raise not_found("no such worker")


HANDLERS = [hold, release, drain, resume, limits, limit]
