"""``/v1/session``: a browser shows its key once and goes on with a cookie; and whoever asks learns who it is."""

from __future__ import annotations

import msgspec
from litestar import delete, get, post
from litestar.response import Response

from gateway.access_schema import CallerView, SessionBody
from gateway.auth import OPEN, Caller, caller_of
from gateway.identity import session_of
from gateway.openapi_writer import Operation
from gateway.parts import AnyRequest, answer, encoded, gateway_of
from gateway.problems import Problem
from gateway.sessions import Session
from gateway.uploads import read_json

_body = msgspec.json.Decoder(SessionBody)
_MAX_BODY = 4096
_UNKEPT = {"Cache-Control": "no-store"}


@post("/v1/session", status_code=201, opt=OPEN)
async def begin(request: AnyRequest) -> Response[bytes]:
    """A cookie for a key."""
    access = gateway_of(request).access
    body = await read_json(request, _body, _MAX_BODY)
    if not access.identity.needed:
        raise Problem(409, "this gateway asks for no key, so there is nothing for a session to stand for")
    begun = access.sessions.begin(body.key)
    if begun is None:
        raise access.identity.refusal(tried=True)
    session, cookie = begun
    content = encoded(_view(session.caller, session))
    return Response(content, status_code=201, media_type="application/json", headers=_UNKEPT, cookies=[cookie])


@get("/v1/session")
async def show(request: AnyRequest) -> Response[bytes]:
    """Who asks."""
    needed = gateway_of(request).access.identity.needed
    return answer(_view(caller_of(request), session_of(request.scope), keyless=not needed), 200, _UNKEPT)


@delete("/v1/session", status_code=204)
async def end(request: AnyRequest) -> Response[None]:
    """The session is over, and its cookie is worth nothing."""
    access = gateway_of(request).access
    session = session_of(request.scope)
    if session is None:
        raise Problem(409, "this request comes without a session's cookie")
    await access.key_book.end_session(session.id, session.until)
    return Response(None, status_code=204, cookies=[access.sessions.no_cookie()])


def _view(caller: Caller, session: Session | None, *, keyless: bool = False) -> CallerView:
    view = CallerView(tenant=caller.tenant, role=caller.role.value, by=caller.by, keyless=keyless)
    if session is not None:
        view.expires_at, view.csrf_token = session.until, session.csrf
    return view


HANDLERS = [begin, show, end]
OPERATIONS = (
    Operation(
        method="post",
        path="/v1/session",
        name="begin_session",
        tag="session",
        summary="Get a cookie that stands for a key, for browsers.",
        takes=SessionBody,
        answers={201: CallerView},
        problems=(400, 401, 409, 413, 415, 422, 503),
        open=True,
    ),
    Operation(
        method="get",
        path="/v1/session",
        name="get_session",
        tag="session",
        summary="Who asks, by whatever the request shows.",
        answers={200: CallerView},
    ),
    Operation(
        method="delete",
        path="/v1/session",
        name="end_session",
        tag="session",
        summary="End the session of the request's cookie.",
        answers={204: None},
        problems=(409, 503),
    ),
)
