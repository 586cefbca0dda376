"""Who asks. Set once per request (``identify``), read by every route; nothing else decides what a caller may do."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from litestar.connection import ASGIConnection
from litestar.types import Scope
from msgspec import Struct

from gateway.problems import Problem
from shared.messages import DEFAULT_TENANT

AnyConnection = ASGIConnection[Any, Any, Any, Any]

_STATE = "genfleet_caller"


class Role(StrEnum):
    """What a caller may do; each may all that those before it may."""

    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


_RANK = {Role.USER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks: for which tenant, with which rights, and by which key (its id, never its secret; the audit log's
    ``by``)."""

    tenant: str
    role: Role
    by: str


#: Whoever reaches a gateway without keys: it listens on the loopback only, or was told to trust what is before it.
ANYBODY = Caller(tenant=DEFAULT_TENANT, role=Role.ADMIN, by="anybody")


def identify(scope: Scope, caller: Caller) -> None:
    """Say who asks. Called once per request, before any route."""
    scope.setdefault("state", {})[_STATE] = caller


def caller_of(connection: AnyConnection) -> Caller:
    """Who asks."""
    caller: Caller = connection.scope["state"].get(_STATE, ANYBODY)
    return caller


def tenant_of(connection: AnyConnection) -> str:
    """The tenant that a request belongs to. Everything that reads, lists or changes a job asks this first and filters
    by what it says."""
    return caller_of(connection).tenant


def require(connection: AnyConnection, role: Role) -> Caller:
    """The caller, if it may do what that role may.

    Raises:
        Problem: 403.
    """
    caller = caller_of(connection)
    if _RANK[caller.role] < _RANK[role]:
        raise Problem(403, f"this needs the role {role}; the key has the role {caller.role}")
    return caller
