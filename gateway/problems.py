"""Errors as RFC 9457 problem details: the only shape in which the native API says no.

``Problem`` is raised anywhere below a route. Unexpected exceptions become a 500 that tells nothing of their insides;
they are logged with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.response import Response
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import UNSET, Struct, UnsetType

from shared.errors import ArtifactError, BusError, GenfleetError, InvalidRequest
from shared.telemetry import log, places

_LOG = log(__name__)

MEDIA_TYPE = "application/problem+json"
#: Seconds after which a client should come back when the bus or the queue said no.
RETRY_AFTER_S = 2


class FieldError(Struct, frozen=True, kw_only=True):
    """What is wrong with one field: its dotted path, and a sentence."""

    field: str
    message: str


class ProblemDetails(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error (RFC 9457). ``id`` is the job it is about: in a 503, the id that the job would have."""

    title: str
    status: int
    type: str = "about:blank"
    detail: str | UnsetType = UNSET
    errors: tuple[FieldError, ...] | UnsetType = UNSET
    id: str | UnsetType = UNSET


class Problem(GenfleetError):
    """A request ends here, with this answer.

    Args:
        status: of HTTP.
        detail: a sentence for people.
        errors: the fields at fault.
        job: the id of the job it is about.
        retry_after_s: sent as ``Retry-After``.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: tuple[FieldError, ...] = (),
        job: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.job = job
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)


def invalid(field: str, message: str) -> Problem:
    """422: this field has a value that cannot be served."""
    return Problem(422, f"{field}: {message}" if field else message, errors=(FieldError(field=field, message=message),))


def not_found(what: str = "no such job") -> Problem:
    """404; the same whether the thing never was or is somebody else's."""
    return Problem(404, what)


def gone() -> Problem:
    """410: the job was deleted."""
    return Problem(410, "the job was deleted")


def bus_down(job: str | None = None) -> Problem:
    """503: the bus did not answer. Whether a write happened is unknown: retry with the same Idempotency-Key."""
    return Problem(
        503,
        "the message bus does not answer; whether the request took effect is unknown: try again, "
        "with the same Idempotency-Key if you sent one",
        job=job,
        retry_after_s=RETRY_AFTER_S,
    )


def response(problem: Problem) -> Response[bytes]:
    """The problem as an answer."""
    body = ProblemDetails(
        title=_title(problem.status),
        status=problem.status,
        detail=problem.detail or UNSET,
        errors=problem.errors or UNSET,
        id=problem.job or UNSET,
    )
    return Response(
        msgspec.json.encode(body), status_code=problem.status, media_type=MEDIA_TYPE, headers=problem.headers
    )


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problem_of(request: Request[Any, Any, Any], error: Exception) -> Problem:
    """What to answer to an exception; logs what a client cannot be at fault for."""
    match error:
        case Problem():
            return error
        case HTTPException():
            detail = error.detail if error.status_code < 500 else "internal error"
            headers = {str(key): str(value) for key, value in (error.headers or {}).items()}
            return Problem(error.status_code, detail, headers=headers)
        case InvalidRequest():
            return invalid(error.field, str(error))
        case BusError():
            _LOG.warning("the bus failed", route=_route(request), error=type(error).__name__)
            return bus_down()
        case ArtifactError():
            _LOG.error("the artifact store failed", route=_route(request), error=str(error))
            return Problem(503, "the artifact store failed; try again", retry_after_s=RETRY_AFTER_S)
        case _:
            _LOG.error("a request failed unexpectedly", route=_route(request), places=places(error))
            return Problem(500, "internal error")


def _route(request: Request[Any, Any, Any]) -> str:
    """The route's own words: what stands in a path may be anything."""
    return str(request.scope.get("path_template") or "unknown")


def status_of(error: Exception) -> int:
    """The status that ``problem_of`` gives it."""
    match error:
        case Problem():
            return error.status
        case HTTPException():
            return error.status_code
        case InvalidRequest():
            return 422
        case BusError() | ArtifactError():
            return 503
        case _:
            return 500


def _handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return response(problem_of(request, error))


def answered(app: ASGIApp, handlers: Mapping[int | type[Exception], Any]) -> ASGIApp:
    """The application, and outside of the framework what it raises answered by that framework's handlers."""
    handle = handlers[Exception]

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:
            request: Request[Any, Any, Any] = Request(scope, receive, send)
            said = handle(request, error).to_asgi_response(app=None, request=request)
            await said(scope, receive, send)

    return answering


#: What ``problem_of`` tells apart.
EXPECTED: tuple[type[Exception], ...] = (Problem, HTTPException, InvalidRequest, BusError, ArtifactError, Exception)
#: For Litestar: from the exception's class to its answer.
HANDLERS: dict[int | type[Exception], Any] = dict.fromkeys(EXPECTED, _handle)
