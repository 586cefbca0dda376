"""``/v1/usage``: what tenants have used and have."""

from __future__ import annotations

from bisect import bisect_right

from litestar import get
from litestar.response import Response

from gateway.auth import Role, require, tenant_of
from gateway.names import TENANT
from gateway.openapi_writer import TEXT, Operation, query
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.problems import bus_down, invalid
from gateway.schema.fleet import UsageList
from gateway.usage import tenants, usage_view

_PARAMETERS = frozenset({"tenant", "after", "limit"})
_DEFAULT_PAGE, _MAX_PAGE = 100, 1000
#: In place of a tenant's name: all of them.
ALL = "*"


@get("/v1/usage")
async def usage(request: AnyRequest) -> Response[bytes]:
    """The caller's own tenant; an admin may name another, or ``*`` for all, page by page."""
    gateway, query = gateway_of(request), request.query_params
    for name in query:
        if name not in _PARAMETERS:
            raise invalid(name, f"not a parameter; there are {', '.join(sorted(_PARAMETERS))}")
    asked = query.get("tenant", tenant_of(request))
    if asked != tenant_of(request):
        require(request, Role.ADMIN)
    if asked != ALL and not TENANT.fullmatch(asked):
        raise invalid("tenant", "must be 1 to 64 letters, digits, dashes or underscores, or * for all")
    limit = _limit(query.get("limit"))
    if not gateway.live.caught_up:
        raise bus_down()
    if asked != ALL:
        return answer(UsageList(data=(usage_view(gateway, asked),), next=None))
    names = tenants(gateway)
    first = bisect_right(names, query.get("after", ""))
    shown = names[first : first + limit]
    more = len(names) > first + limit
    return answer(UsageList(data=tuple(usage_view(gateway, name) for name in shown), next=shown[-1] if more else None))


def _limit(given: str | None) -> int:
    if given is None:
        return _DEFAULT_PAGE
    if not (given.isascii() and given.isdigit() and len(given) <= 4 and 1 <= int(given) <= _MAX_PAGE):
        raise invalid("limit", f"must be from 1 to {_MAX_PAGE}")
    return int(given)


HANDLERS = [usage]
OPERATIONS = (
    Operation(
        method="get",
        path="/v1/usage",
        name="list_usage",
        tag="tenants",
        summary="What the caller's tenant has used and has; an admin may name another, or all.",
        parameters=(
            query(
                "tenant", {"type": "string", "pattern": r"^([A-Za-z0-9_-]{1,64}|\*)$"}, "for admins: whose; * is all"
            ),
            query("limit", {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE, "default": 100}, "tenants per page"),
            query("after", TEXT, "`next` of the page before"),
        ),
        answers={200: UsageList},
        problems=(422, 503),
    ),
)
