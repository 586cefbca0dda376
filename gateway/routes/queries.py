"""What the queries of lists have in common."""

from __future__ import annotations

from gateway.auth import Role, require, tenant_of
from gateway.names import TENANT
from gateway.parts import AnyRequest
from gateway.problems import invalid

#: In place of a tenant's name: all of them.
ALL = "*"
_DIGITS = 16


def check_names(request: AnyRequest, names: frozenset[str]) -> None:
    """Raises ``Problem`` 422 if the query has a parameter that is none of these."""
    for name in request.query_params:
        if name not in names:
            raise invalid(name, f"not a parameter; there are {', '.join(sorted(names))}")


def number(request: AnyRequest, name: str, low: int, high: int) -> int | None:
    """The parameter's value; None if it is not there.

    Raises:
        Problem: 422, it is no number from ``low`` to ``high``.
    """
    given = request.query_params.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= _DIGITS and low <= int(given) <= high):
        raise invalid(name, f"must be from {low} to {high}")
    return int(given)


def tenant_asked(request: AnyRequest, role: Role) -> str:
    """Whose things are asked for: the caller's own tenant's, or with that role another's, or of ``ALL``.

    Raises:
        Problem: 403, or 422: that is no tenant's name.
    """
    own = tenant_of(request)
    asked = str(request.query_params.get("tenant", own))
    if asked != own:
        require(request, role)
    if asked != ALL and not TENANT.fullmatch(asked):
        raise invalid("tenant", "must be 1 to 64 letters, digits, dashes or underscores, or * for all")
    return asked
