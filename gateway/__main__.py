"""``python -m gateway``: connect to the bus, serve HTTP, say when ready, end within the grace."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
import uvloop
from litestar import Litestar
from msgspec.structs import replace

from gateway.access import check_somebody_may
from gateway.app import create_app
from gateway.one_write import OneWriteProtocol
from gateway.parts import Gateway
from shared import environment, garbage
from shared.clock import SystemClock
from shared.errors import GenfleetError
from shared.exposure import check_listening
from shared.nats_bus import connect
from shared.settings import Settings, load
from shared.stores import open_artifacts
from shared.telemetry import configure, log

_BACKLOG = 4096
#: How long the first reading of the buckets may delay the word that the gateway is ready.
_CATCH_UP_S = 30.0


class _Server(uvicorn.Server):
    """uvicorn's, which waits for open answers at shutdown: event streams are ended first, else each would be waited
    for until the grace is over."""

    def __init__(self, config: uvicorn.Config, app: Litestar, url: str) -> None:
        super().__init__(config)
        self._gateway: Gateway = app.state.gateway
        self._url = url

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends in good order on a signal: uvicorn's own would raise the signal again afterwards, and the process would
        die of it before the bus is closed."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            with suppress(TimeoutError):  # a bus that went away meanwhile: listening is of use all the same
                async with asyncio.timeout(_CATCH_UP_S):
                    await self._gateway.live.wait_caught_up()
            garbage.rarely()
            log(__name__).info("ready", url=self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.live.streams.close()
        await super().shutdown(sockets)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SettingsError: everybody could do everything, and nobody has said that they may (``shared.exposure``).
    """
    if check_listening(settings):
        log(__name__).warning("open_to_everybody", host=settings.host, advice="GENFLEET_AUTH=keys asks for keys")
    listening = socket.create_server(
        (settings.host, settings.port),
        family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
        backlog=_BACKLOG,
    )
    listening.setblocking(False)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{listening.getsockname()[1]}"
    settings = replace(settings, public_url=settings.public_url or url)
    bus = await connect(settings, name="gateway", service="gateway")
    try:
        await check_somebody_may(bus, settings, SystemClock())
        app = create_app(bus, open_artifacts(settings), settings, SystemClock())
        config = uvicorn.Config(
            app,
            http=OneWriteProtocol,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            # Nothing is made of what a proxy forwards (see docs/security.md), so it is not looked for.
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_s)),
        )
        await _Server(config, app, url).serve(sockets=[listening])
    finally:
        await bus.close()


def main() -> None:
    """The process."""
    try:
        settings = load()
        configure("gateway", settings)
        for line in environment.advice(os.environ, of_pool=False):
            log(__name__).warning("environment_name_does_nothing", advice=line)
        garbage.loading()
        uvloop.run(serve(settings))
    except GenfleetError as error:
        sys.exit(f"gateway: {error}")
    except OSError as error:
        sys.exit(f"gateway: cannot listen: {error}")
    except KeyboardInterrupt:  # before the server takes signals
        sys.exit(130)


if __name__ == "__main__":
    main()
