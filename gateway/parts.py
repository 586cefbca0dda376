"""The gateway's parts, as the routes find them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from litestar.connection import Request
from litestar.response import Response

from gateway.access import Access
from gateway.admission import Admission
from gateway.audit import Audit
from gateway.changes import Changes
from gateway.folders import Root
from gateway.links import Links
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.submit import Submissions
from gateway.webhooks.parts import Webhooks
from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.grants import GrantSigner
from shared.settings import Settings

AnyRequest = Request[Any, Any, Any]

_encoder = msgspec.json.Encoder()

try:
    VERSION = version("genfleet")
except PackageNotFoundError:
    VERSION = "0"


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything a route may need."""

    bus: Bus
    artifacts: Artifacts
    settings: Settings
    #: What keys, links and signatures are derived from (``shared.secrets.derive``).
    secret: str
    access: Access
    live: Live
    admission: Admission
    submissions: Submissions
    changes: Changes
    webhooks: Webhooks
    metrics: Metrics
    #: URLs of files that work without a key, for a time.
    links: Links
    #: Of files that workers may read and write.
    grants: GrantSigner
    #: Beneath which clients may name files by path.
    folders: tuple[Root, ...]
    #: This API as an OpenAPI document.
    openapi: bytes

    @property
    def audit(self) -> Audit:
        """What admins did."""
        return self.access.audit


def gateway_of(request: AnyRequest) -> Gateway:
    """The gateway that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def answer_many(bodies: list[Any], status: int = 200) -> Response[bytes]:
    """A list of structs as JSON."""
    return Response(_encoder.encode(bodies), status_code=status, media_type="application/json")


def encoded(body: msgspec.Struct) -> bytes:
    """The body as JSON."""
    return _encoder.encode(body)


def answer(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response[bytes]:
    """The body as JSON, encoded once here and not by the framework."""
    return Response(encoded(body), status_code=status, media_type="application/json", headers=headers)
