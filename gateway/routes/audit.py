"""``/v1/audit``: what operators and admins did."""

from __future__ import annotations

from litestar import get
from litestar.response import Response

from gateway.access_schema import AuditPage, AuditView
from gateway.auth import Role, require
from gateway.openapi_writer import Operation, query
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.problems import bus_down
from gateway.routes.queries import check_names, number

_DEFAULT_PAGE = 50
_MAX_PAGE = 500
_PARAMETERS = frozenset({"limit", "after"})


@get("/v1/audit")
async def show(request: AnyRequest) -> Response[bytes]:
    """Entries, newest first."""
    require(request, Role.ADMIN)
    gateway = gateway_of(request)
    check_names(request, _PARAMETERS)
    limit = number(request, "limit", 1, _MAX_PAGE) or _DEFAULT_PAGE
    before = number(request, "after", 1, 1 << 53)
    if not gateway.live.caught_up:
        raise bus_down()
    entries, last = gateway.audit.page(before, limit)
    views = tuple(
        AuditView(**{name: getattr(entry, name) for name in AuditView.__struct_fields__}) for entry in entries
    )
    return answer(AuditPage(data=views, next=None if last is None else str(last)))


HANDLERS = [show]
OPERATIONS = (
    Operation(
        method="get",
        path="/v1/audit",
        name="list_audit",
        tag="admins",
        summary="What operators and admins did, newest first: the newest 10,000 acts of the last 90 days.",
        parameters=(
            query("limit", {"type": "integer", "minimum": 1, "maximum": _MAX_PAGE, "default": 50}, "entries per page"),
            query("after", {"type": "string", "pattern": "^[0-9]{1,16}$"}, "`next` of the page before"),
        ),
        answers={200: AuditPage},
        problems=(422, 503),
    ),
)
