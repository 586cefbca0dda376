"""The gateway put together: its parts, its routes, its life."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State

from gateway import folders
from gateway.access import Access
from gateway.admission import Admission
from gateway.auth import secret_of
from gateway.changes import Changes
from gateway.dialects import registry
from gateway.exposure import Exposure
from gateway.links import Links
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.openapi import operations
from gateway.openapi_writer import Operation, document
from gateway.parts import VERSION, Gateway
from gateway.problems import answered
from gateway.quick import quick_submits
from gateway.routes import (
    audit,
    events,
    files,
    fleet,
    health,
    jobs,
    keys,
    media,
    operators,
    outputs,
    session,
    usage,
    webhooks,
)
from gateway.submit import Submissions
from gateway.webhooks.parts import Webhooks
from gateway.webhooks.sending import Sender
from shared.artifacts import Artifacts
from shared.bus import Bus
from shared.clock import Clock
from shared.grants import GrantSigner
from shared.settings import Settings

_OPERATIONS = (
    *media.OPERATIONS,
    *files.OPERATIONS,
    *outputs.OPERATIONS,
    *keys.OPERATIONS,
    *session.OPERATIONS,
    *audit.OPERATIONS,
    *usage.OPERATIONS,
    *webhooks.OPERATIONS,
)


def every_operation(dialects: Iterable[str]) -> tuple[Operation, ...]:
    """What the OpenAPI document of a gateway with these dialects says."""
    return registry.operations(dialects, (*operations(), *_OPERATIONS))


def create_app(
    bus: Bus, artifacts: Artifacts, settings: Settings, clock: Clock, *, sender: Sender | None = None
) -> Litestar:
    """A gateway as an ASGI application. Its followers live as long as its lifespan; the bus is the caller's to close.

    ``app.state.gateway`` holds its parts.

    Args:
        sender: of webhooks, instead of the network.

    Raises:
        SettingsError: keys are asked for and something that they need is missing.
    """
    dialects = registry.enabled(settings.dialects)
    handlers = registry.exception_handlers(dialects)
    name = f"gateway-{secrets.token_hex(4)}"
    secret = secret_of(settings)
    access = Access(bus, settings, clock, secret)
    live = Live(bus, settings, clock, access.follows)
    access.keys.on_end, live.streams.over = live.streams.end, access.keys.over
    admission = Admission(bus, live, settings, clock)
    metrics = Metrics(live, bus)
    links = Links(artifacts, secret, settings.base_url, clock.wall)
    hooks = Webhooks(bus, live, links, settings, clock, name, secret, metrics.registry, sender)
    gateway = Gateway(
        bus=bus,
        artifacts=artifacts,
        settings=settings,
        secret=secret,
        access=access,
        live=live,
        admission=admission,
        submissions=Submissions(bus, artifacts, live, admission, settings, clock, name, hooks.addresses),
        changes=Changes(bus, artifacts, live, clock, name),
        webhooks=hooks,
        metrics=metrics,
        links=links,
        grants=GrantSigner(secret, clock.wall),
        folders=folders.roots(settings.input_folders),
        openapi=document(VERSION, every_operation(dialects), webhooks.EVENTS),
    )

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        hooks.start()
        live.start()
        access.start()
        watching = asyncio.create_task(admission.watch())
        warming = asyncio.create_task(gateway.submissions.files.start())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await access.stop()
            await hooks.stop()
            await live.stop()
            await warming
            await gateway.submissions.files.close()

    app = Litestar(
        route_handlers=[
            *jobs.HANDLERS,
            *events.HANDLERS,
            *outputs.HANDLERS,
            *media.HANDLERS,
            *files.HANDLERS,
            *fleet.HANDLERS,
            *operators.HANDLERS,
            *usage.HANDLERS,
            *webhooks.HANDLERS,
            *keys.HANDLERS,
            *session.HANDLERS,
            *audit.HANDLERS,
            *health.HANDLERS,
            *registry.handlers(dialects),
        ],
        lifespan=[lifespan],
        state=State({"gateway": gateway}),
        middleware=[metrics.middleware, access.identity.middleware],
        exception_handlers=handlers,
        # Our own document says more of the truth than the one that the framework derives: see ``gateway.openapi``.
        openapi_config=None,
        # Bodies are read and bounded by the routes that take one.
        request_max_body_size=None,
        logging_config=None,
    )
    # Outside of everything: also of what no route answers.
    inside = quick_submits(app.asgi_handler, app, gateway, access.identity, metrics)
    app.asgi_handler = Exposure(inside, settings, lambda refused: metrics.middleware(answered(refused, handlers)))
    return app
