"""``python -m scheduler``: connect to the broker, schedule until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import uvloop

from scheduler.shell import Scheduler
from shared import garbage
from shared.clock import SystemClock
from shared.errors import GenfleetError
from shared.nats_bus import connect
from shared.settings import Settings, load
from shared.stores import open_artifacts
from shared.telemetry import configure, log


async def serve(settings: Settings) -> None:
    """Run one scheduler until a signal asks it to end."""
    logger = log(__name__)
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    ending = asyncio.ensure_future(end.wait())
    connecting = asyncio.ensure_future(connect(settings, name="scheduler", service="scheduler"))
    await asyncio.wait((connecting, ending), return_when=asyncio.FIRST_COMPLETED)
    if not connecting.done():
        connecting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connecting
        return
    bus = connecting.result()
    scheduler = Scheduler(bus, settings, SystemClock(), artifacts=open_artifacts(settings))
    if settings.scheduler_metrics_port:
        scheduler.metrics.serve(settings.metrics_host, settings.scheduler_metrics_port)
    running = asyncio.ensure_future(scheduler.run())
    ready = asyncio.ensure_future(scheduler.ready.wait())
    await asyncio.wait((ready, running, ending), return_when=asyncio.FIRST_COMPLETED)
    if ready.done():
        garbage.rarely()
        logger.info("ready", scheduler=scheduler.name, metrics_port=settings.scheduler_metrics_port)
    await asyncio.wait((running, ending), return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    ending.cancel()
    if not running.done():
        logger.info("stopping", scheduler=scheduler.name)
        await scheduler.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await bus.close()


def main() -> None:
    """The process."""
    try:
        settings = load()
    except GenfleetError as error:
        sys.exit(f"scheduler: {error}")
    configure("scheduler", settings)
    garbage.loading()
    uvloop.run(serve(settings))


if __name__ == "__main__":
    main()
