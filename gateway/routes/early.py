"""A refusal before a long body is read: it would be written to a disk and hashed for nothing."""

from __future__ import annotations

from collections.abc import Callable

from gateway.auth import tenant_of
from gateway.parts import AnyRequest, gateway_of
from gateway.problems import Problem
from gateway.uploads import unread


async def refuse_early(request: AnyRequest, peek: Callable[[str], None]) -> None:
    """See whether the tenant's limits allow what the body will ask for.

    Args:
        peek: raises if they do not.

    Raises:
        Problem: 429, as ``peek`` has it; 408 or 413, of the body.
    """
    try:
        peek(tenant_of(request))
    except Problem:
        await unread(request, gateway_of(request).settings.max_body_bytes)
        raise
