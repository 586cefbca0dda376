"""The plain submit, ``POST /v1/jobs`` with a JSON body of known length and nothing else to it, answered before the
framework's routing sees it: inside the same counting, identification and errors, but without the framework's request,
arguments and response, which cost as much as all that is done for the job. What is not as plain goes on to the route,
which answers both alike (``tests/service/test_gateway_quick.py``).
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import msgspec
from litestar import Litestar
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway import ids
from gateway.auth import caller_in
from gateway.identity import Identity
from gateway.metrics import Metrics
from gateway.parts import Gateway, encoded
from gateway.problems import HANDLERS, Problem, answered
from gateway.routes.jobs import submit
from gateway.schema.requests import SubmitBody
from gateway.uploads import ARRIVED, decode_json, too_slow

_PATH = "/v1/jobs"
_JSON = b"application/json"
_decoder = msgspec.json.Decoder(SubmitBody)


def quick_submits(framework: ASGIApp, app: Litestar, gateway: Gateway, identity: Identity, metrics: Metrics) -> ASGIApp:
    """The application, with the plain submit answered here."""
    limit = gateway.settings.max_json_bytes

    async def take(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        body = await _body(scope, receive, gateway.settings.body_timeout_s)
        given = headers.get(b"idempotency-key")
        key = None if given is None else ids.idempotency_key(given.decode("latin-1"))
        with ExitStack() as stack:
            tenant = caller_in(scope).tenant
            record = await gateway.submissions.submit(tenant, decode_json(body, _decoder), {}, key, stack)
        content = encoded(gateway.live.view(record))
        await send(
            {
                "type": "http.response.start",
                "status": 202,
                "headers": [
                    (b"content-type", _JSON),
                    (b"content-length", b"%d" % len(content)),
                    (b"location", f"{_PATH}/{record.id}".encode()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": content, "more_body": False})

    inside = metrics.middleware(answered(identity.middleware(take), HANDLERS))

    async def choose(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == _PATH and scope.get("method") == "POST" and _plain(scope, limit):
            # What the framework would have found, for those inside that ask for it.
            scope["app"] = scope["litestar_app"] = app
            scope["route_handler"] = submit
            scope["path_template"] = _PATH
            scope.setdefault("state", {})
            await inside(scope, receive, send)
        else:
            await framework(scope, receive, send)

    return choose


def _plain(scope: Scope, limit: int) -> bool:
    kind = length = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind = value
        elif name == b"content-length":
            length = value
        elif name == b"prefer":
            return False
    return kind == _JSON and length.isdigit() and len(length) < 16 and int(length) <= limit


async def _body(scope: Scope, receive: Receive, seconds: float) -> bytes:
    """The body, whose length has been judged; the server sees to it that no more comes."""
    if ARRIVED in scope["state"]:
        # Nothing is waited for: a timer for it would cost more than all of the reading.
        return await _read(receive)
    try:
        async with asyncio.timeout(seconds):
            return await _read(receive)
    except TimeoutError:
        raise too_slow(seconds) from None


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Problem(400, "the body ended early")
        parts.append(message["body"])
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
