"""``/v1/usage``: what tenants have used and have."""

from __future__ import annotations

from bisect import bisect_right

from litestar import get
from litestar.response import Response

from gateway.auth import Role
from gateway.openapi_writer import TEXT, Operation, query
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.problems import bus_down
from gateway.routes.queries import ALL, check_names, number, tenant_asked
from gateway.schema.fleet import UsageList
from gateway.usage import tenants, usage_view

_PARAMETERS = frozenset({"tenant", "after", "limit"})
_DEFAULT_PAGE, _MAX_PAGE = 100, 1000


@get("/v1/usage")
async def usage(request: AnyRequest) -> Response[bytes]:
    """The caller's own tenant; an admin may name another, or ``*`` for all, page by page."""
    gateway = gateway_of(request)
    check_names(request, _PARAMETERS)
    asked = tenant_asked(request, Role.ADMIN)
    limit = number(request, "limit", 1, _MAX_PAGE) or _DEFAULT_PAGE
    if not gateway.live.caught_up:
        raise bus_down()
    if asked != ALL:
        return answer(UsageList(data=(usage_view(gateway, asked),), next=None))
    names = tenants(gateway)
    first = bisect_right(names, request.query_params.get("after", ""))
    shown = names[first : first + limit]
    more = len(names) > first + limit
    return answer(UsageList(data=tuple(usage_view(gateway, name) for name in shown), next=shown[-1] if more else None))


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
