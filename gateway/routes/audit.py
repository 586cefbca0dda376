"""``/v1/audit``: what operators and admins did."""

from __future__ import annotations

from litestar import get
from litestar.response import Response

from gateway.access_schema import AuditPage, AuditView
from gateway.auth import Role, require
from gateway.openapi_writer import Operation, query
from gateway.parts import AnyRequest, answer, gateway_of
from gateway.problems import bus_down, invalid

_DEFAULT_PAGE = 50
_MAX_PAGE = 500
_PARAMETERS = frozenset({"limit", "after"})


@get("/v1/audit")
async def show(request: AnyRequest) -> Response[bytes]:
    """Entries, newest first."""
    require(request, Role.ADMIN)
    gateway = gateway_of(request)
    for name in request.query_params:
        if name not in _PARAMETERS:
            raise invalid(name, f"not a parameter; there are {', '.join(sorted(_PARAMETERS))}")
    limit = _number(request, "limit", 1, _MAX_PAGE) or _DEFAULT_PAGE
    before = _number(request, "after", 1, 1 << 53)
    if not gateway.live.caught_up:
        raise bus_down()
    entries, last = gateway.audit.page(before, limit)
    views = tuple(
        AuditView(**{name: getattr(entry, name) for name in AuditView.__struct_fields__}) for entry in entries
    )
    return answer(AuditPage(data=views, next=None if last is None else str(last)))


def _number(request: AnyRequest, name: str, low: int, high: int) -> int | None:
    given = request.query_params.get(name)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 16 and low <= int(given) <= high):
        raise invalid(name, f"must be from {low} to {high}")
    return int(given)


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
