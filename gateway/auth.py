"""Who asks. One function, so that keys and quotas have their place."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection

from shared.messages import DEFAULT_TENANT


def tenant_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The tenant that a request belongs to: today always ``default``, because there are no keys yet.

    Everything that reads, lists or changes a job already asks this first and filters by what it says.
    """
    return DEFAULT_TENANT
