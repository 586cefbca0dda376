"""Errors in OpenAI's shape: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar.connection import Request
from litestar.response import Response
from msgspec import Struct
from msgspec.structs import replace

from gateway.openapi_writer import Operation
from gateway.problems import EXPECTED, Problem, problem_of, response

_PATHS = ("/v1/videos/", "/v1/images/", "/v1/models/")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class OpenAIError(Struct, kw_only=True):
    """What is wrong; ``param`` names the field, ``code`` says it to programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(Struct, kw_only=True):
    """The whole answer."""

    error: OpenAIError


def shaped(problem: Problem) -> Response[bytes]:
    """A problem as OpenAI would have said it."""
    status = 400 if problem.status == 422 else problem.status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = problem.errors[0].field if problem.errors else None
    error = OpenAIError(message=problem.detail, type=kind, param=param, code="invalid_value" if param else None)
    body = msgspec.json.encode(OpenAIErrorBody(error=error))
    headers = dict(problem.headers)
    if "Retry-After" in headers:
        headers.setdefault("retry-after-ms", str(int(headers["Retry-After"]) * 1000))
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def worded(operation: Operation) -> Operation:
    """The operation, with its errors as they are said at its path."""
    return replace(operation, refuses=OpenAIErrorBody) if _is_theirs(operation.path) else operation


def _is_theirs(path: str) -> bool:
    return f"{path}/".startswith(_PATHS)


def _handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    return shaped(problem_of(request, error))


def _handle_anywhere(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    problem = problem_of(request, error)
    return shaped(problem) if _is_theirs(str(request.scope["path"])) else response(problem)


#: For Litestar, on the handlers of this dialect.
HANDLERS: dict[int | type[Exception], Any] = dict.fromkeys(EXPECTED, _handle)
#: For the whole application: what is refused before a handler is found or asked (no key, a limit, no such path) is said
#: as this dialect's clients read it where its paths are.
EVERYWHERE: dict[int | type[Exception], Any] = dict.fromkeys(EXPECTED, _handle_anywhere)
