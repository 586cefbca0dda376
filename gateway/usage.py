"""What a tenant may have, has, and has used: from what this gateway knows anyway."""

from __future__ import annotations

from collections import Counter

from gateway.parts import Gateway
from gateway.schema.fleet import LimitsView, UsageView
from gateway.schema.requests import LimitsBody


def limits_view(gateway: Gateway, tenant: str) -> LimitsView:
    """Its limits, and what counts against them."""
    live = gateway.live
    found, own = live.operators.limits(tenant), live.operators.own_limits(tenant)
    return LimitsView(
        tenant=tenant,
        weight=found.weight,
        max_queued=found.max_queued,
        max_running=found.max_running,
        submits_per_s=found.submits_per_s,
        burst=found.burst,
        max_stored_bytes=found.max_stored_bytes,
        queued=live.queue.waiting[tenant],
        running=live.queue.running[tenant],
        stored_bytes=live.accounts.stored.bytes_of(tenant),
        own=LimitsBody(
            weight=own.weight,
            max_queued=own.max_queued,
            max_running=own.max_running,
            submits_per_s=own.submits_per_s,
            burst=own.burst,
            max_stored_bytes=own.max_stored_bytes,
        ),
    )


def usage_view(gateway: Gateway, tenant: str) -> UsageView:
    """What it has used, and has."""
    live = gateway.live
    used = live.accounts.usage.get(tenant)
    jobs = Counter(live.index.of(tenant)) + Counter(live.retained.index.states(tenant))
    return UsageView(
        tenant=tenant,
        device_s=0.0 if used is None else round(used.device_s, 3),
        recent_device_s=0.0 if used is None else round(used.recent_s, 3),
        jobs=dict(sorted(jobs.items())),
        limits=limits_view(gateway, tenant),
        complete=live.retained.complete,
    )


def tenants(gateway: Gateway) -> list[str]:
    """All that are known here, by name: they have used something, have jobs, or limits of their own."""
    live = gateway.live
    return sorted(
        {*live.accounts.usage, *live.index.tenants(), *live.retained.index.tenants(), *live.operators.tenants}
    )
