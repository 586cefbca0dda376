"""For those who run a gateway: is it alive, is it of use, what does it count, what is it, and how is it called."""

from __future__ import annotations

import asyncio
from pathlib import Path

from litestar import MediaType, get
from litestar.params import FromPath
from litestar.response import Response

from gateway.auth import OPEN, Role, require
from gateway.dialects import registry
from gateway.dialects.wan_api import monitored
from gateway.parts import VERSION, AnyRequest, answer, gateway_of
from gateway.problems import Problem, not_found
from gateway.schema.fleet import HealthView, ServiceView, VersionView
from shared.errors import BusError

_ROUND_TRIP_S = 2.0
_VENDOR = Path(__file__).parent.parent / "static" / "vendor"
#: Only these: a name from a URL never becomes a path.
_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
    "LICENSE": "text/plain",
}
_DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>genfleet API</title>
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""
#: Nothing from elsewhere: the page works on a machine without a network, and tells nobody that it was opened.
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
}


@get("/", opt=OPEN)
async def service() -> Response[bytes]:
    """Where to look further."""
    return answer(ServiceView(name="genfleet", version=VERSION, docs="/docs", jobs="/v1/jobs"))


@get("/version", opt=OPEN)
async def version() -> Response[bytes]:
    """Which genfleet this is."""
    return answer(VersionView(name="genfleet", version=VERSION))


@get("/healthz", opt=OPEN)
async def healthz() -> Response[bytes]:
    """The process answers."""
    return answer(HealthView(status="ok"))


@get("/readyz", opt=OPEN)
async def readyz(request: AnyRequest) -> Response[bytes]:
    """The process can take jobs: it has read the buckets, and the bus answers now."""
    gateway = gateway_of(request)
    try:
        async with asyncio.timeout(_ROUND_TRIP_S):
            await gateway.bus.round_trip()
    except (BusError, TimeoutError):
        raise Problem(503, "the message bus does not answer", retry_after_s=2) from None
    if not gateway.live.caught_up:
        raise Problem(503, "still reading the buckets", retry_after_s=1)
    return answer(HealthView(status="ok"))


@get("/metrics", opt=OPEN)
async def metrics(request: AnyRequest) -> Response[bytes]:
    """For Prometheus; for a client that wants JSON the few numbers that ``wan-api-server`` gives there."""
    gateway = gateway_of(request)
    as_json = _wants_json(request.headers.get("accept", "")) and "wan-api" in registry.enabled(
        gateway.settings.dialects
    )
    if not gateway.settings.metrics_open:
        require(request, Role.USER if as_json else Role.OPERATOR)
    if as_json:
        return answer(monitored(gateway))
    page = gateway.metrics.page()
    return Response(page, media_type="text/plain; version=0.0.4")


def _wants_json(accept: str) -> bool:
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return "application/json" in kinds and not any(kind.startswith("text/") or "openmetrics" in kind for kind in kinds)


@get("/openapi.json", opt=OPEN)
async def openapi(request: AnyRequest) -> Response[bytes]:
    """This API as an OpenAPI 3.1 document."""
    return Response(gateway_of(request).openapi, media_type="application/json")


@get("/docs", media_type=MediaType.HTML, opt=OPEN)
async def docs() -> Response[bytes]:
    """This API for people."""
    return Response(_DOCS.encode(), media_type="text/html", headers=_POLICY)


@get("/docs/{name:str}", opt=OPEN)
async def docs_file(name: FromPath[str]) -> Response[bytes]:
    """A part of that page."""
    if name == "start.js":
        return Response(_START.encode(), media_type="text/javascript", headers=_POLICY)
    if name not in _FILES:
        raise not_found("no such page")
    body = await asyncio.to_thread((_VENDOR / name).read_bytes)
    return Response(body, media_type=_FILES[name], headers={"Cache-Control": "max-age=86400"})


HANDLERS = [service, version, healthz, readyz, metrics, openapi, docs, docs_file]
