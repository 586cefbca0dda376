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
_OPEN = "genfleet_open"
#: Of a route (``opt=OPEN``): it is answered without a key too. Who asks is known there if the request says so, and not
#: otherwise: what it shows only to some it asks ``tenant_of`` or ``require`` about, as every route does.
OPEN: dict[str, object] = {_OPEN: True}


class Role(StrEnum):
    """What a caller may do; each may all that those before it may."""

    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


_RANK = {Role.USER: 0, Role.OPERATOR: 1, Role.ADMIN: 2}


class Caller(Struct, frozen=True, kw_only=True):
    """Who asks: for which tenant, with which rights, and by which key (its id, never its secret; the audit log's
    ``by``).

    Attributes:
        session: by which browser's session; empty: by none.
        until: when the session or the token ends, in seconds since 1970; None: with its key, which is told.
    """

    tenant: str
    role: Role
    by: str
    session: str = ""
    until: float | None = None


#: Whoever reaches a gateway without keys: it listens on the loopback only, or was told to trust what is before it.
ANYBODY = Caller(tenant=DEFAULT_TENANT, role=Role.ADMIN, by="anybody")


def identify(scope: Scope, caller: Caller) -> None:
    """Say who asks. Called once per request, before any route."""
    scope.setdefault("state", {})[_STATE] = caller


def is_open(scope: Scope) -> bool:
    """Whether the request's route is answered without a key too."""
    return _OPEN in scope["route_handler"].opt


def unauthorized(*, given: bool) -> Problem:
    """401, the same whatever is wrong (RFC 6750, section 3).

    Args:
        given: the request had something that was meant to say who asks.
    """
    challenge = 'Bearer error="invalid_token"' if given else "Bearer"
    detail = "the key is not valid" if given else "this needs a key: send Authorization: Bearer <key>"
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def caller_of(connection: AnyConnection) -> Caller:
    """Who asks.

    Raises:
        Problem: 401; nobody has said so.
    """
    return caller_in(connection.scope)


def caller_in(scope: Scope) -> Caller:
    """As ``caller_of``, where there is no connection yet."""
    caller: Caller | None = scope["state"].get(_STATE)
    if caller is None:
        raise unauthorized(given=False)
    return caller


def tenant_of(connection: AnyConnection) -> str:
    """The tenant that a request belongs to. Everything that reads, lists or changes a job asks this first and filters
    by what it says. Raises as ``caller_of``."""
    return caller_of(connection).tenant


def may(caller: Caller, role: Role) -> bool:
    """Whether the caller may do what that role may."""
    return _RANK[caller.role] >= _RANK[role]


def require(connection: AnyConnection, role: Role) -> Caller:
    """The caller, if it may do what that role may.

    Raises:
        Problem: 401 or 403.
    """
    caller = caller_of(connection)
    if not may(caller, role):
        raise Problem(403, f"this needs the role {role}; the key has the role {caller.role}")
    return caller


def keyless(settings: Settings) -> bool:
    """Whether requests need no key: everybody is ``ANYBODY``. Whether the gateway may listen where it was told to
    without keys is another question (see ``shared.exposure``)."""
    return settings.keyless


def secret_of(settings: Settings) -> str:
    """What keys, links and signatures are derived from. A gateway that asks for no keys and was given none makes up
    one for its own life.

    Raises:
        SettingsError: it is needed and not there, or it or the admin key is too short to be one.
    """
    if settings.admin_key and len(settings.admin_key) < MIN_SECRET:
        raise SettingsError(f"GENFLEET_ADMIN_KEY must have at least {MIN_SECRET} random characters{_HOW}")
    if not settings.secret and keyless(settings):
        return secrets.token_hex(MIN_SECRET)
    if len(settings.secret) < MIN_SECRET:
        raise SettingsError(
            f"GENFLEET_SECRET must have at least {MIN_SECRET} random characters, the same on every gateway{_HOW}"
        )
    return settings.secret


_HOW = ": make one with `openssl rand -hex 32`, keep it in a file and name that in the variable with _FILE at its end"
