"""Who asks. Set once per request (``identify``), read by every route; nothing else decides what a caller may do."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Any

from litestar.connection import ASGIConnection
from litestar.types import Scope
from msgspec import Struct

from gateway.problems import Problem
from shared.errors import SettingsError
from shared.messages import DEFAULT_TENANT
from shared.settings import Settings

AnyConnection = ASGIConnection[Any, Any, Any, Any]

_STATE = "genfleet_caller"
#: Shorter secrets can be guessed.
MIN_SECRET = 32


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


def keyless(settings: Settings) -> bool:
    """Whether requests need no key: everybody is ``ANYBODY``. Whether the gateway may listen where it was told to
    without keys is another question (see ``exposure``)."""
    match settings.auth:
        case "open":
            return True
        case "keys":
            return False
        case "auto":
            return not settings.admin_key


def secret_of(settings: Settings) -> str:
    """What keys, links and signatures are derived from. A gateway that asks for no keys and was given none makes up
    one for its own life.

    Raises:
        SettingsError: it is needed and not there, or too short to be one.
    """
    if not settings.secret and keyless(settings):
        return secrets.token_hex(MIN_SECRET)
    if len(settings.secret) < MIN_SECRET:
        raise SettingsError(
            f"GENFLEET_SECRET must have at least {MIN_SECRET} random characters, the same on every gateway: make one "
            "with `openssl rand -hex 32`, keep it in a file and name that in GENFLEET_SECRET_FILE"
        )
    return settings.secret
