"""A gateway over the bus in memory behind a real socket, in a thread of its own, for clients that are not asynchronous;
and a fleet beside it that ends every job as soon as it is there."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from gateway.one_write import OneWriteProtocol
from shared.errors import WrongRevision
from shared.lifecycle import IllegalTransition
from shared.messages import State
from shared.settings import Settings
from tests.support.clock import FakeClock
from tests.support.gateway import BOUND_S, Fleet, GatewayUnderTest, gateway, png
from tests.support.memory_bus import MemoryBroker

#: How often the fleet looks for new jobs.
_LOOK_S = 0.01


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


class Served:
    """Where it is.

    Attributes:
        url: without a slash at its end.
        done: ids of a video and of a picture that have been made.
        failures: what ended the fleet, which a test should not leave unseen.
    """

    def __init__(self) -> None:
        self.url = ""
        self.done: dict[str, str] = {}
        self.failures: list[BaseException] = []
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, folder: Path, settings: Settings) -> None:
        """Serve until ``stop``."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        broker = MemoryBroker(FakeClock())
        async with gateway(broker, folder, settings) as running:
            fleet = Fleet(broker, running.artifacts, broker.clock)
            await fleet.announce()
            await fleet.lease()
            app: Any = running.app
            config = uvicorn.Config(app, port=0, http=OneWriteProtocol, lifespan="off", log_config=None)
            server = _Server(config)
            serving = asyncio.create_task(server.serve())
            working = asyncio.create_task(self._work(running, fleet))
            await server.listens.wait()
            self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            for name, more in (("video", {}), ("picture", {"task": "text-to-image"})):
                headers = {"Prefer": f"wait={BOUND_S:g}"}
                body = {"prompt": "a lighthouse", **more}
                made = await running.client.post("/v1/jobs", json=body, headers=headers)
                self.done[name] = made.json()["id"]
            self._ready.set()
            await self._stop.wait()
            running.parts.live.streams.close()
            server.should_exit = True
            working.cancel()
            await asyncio.gather(serving, working, return_exceptions=True)

    async def _work(self, running: GatewayUnderTest, fleet: Fleet) -> None:
        """End every queued job, well."""
        try:
            while True:
                for job, known in list(running.parts.live._jobs.items()):
                    if known.record.state is State.QUEUED:
                        picture = known.record.request.num_frames == 1
                        with suppress(
                            WrongRevision, IllegalTransition
                        ):  # its client has changed it just now: the next look finds it
                            await fleet.run(job)
                            content, kind = (png(), "image/png") if picture else (b"0123456789", "video/mp4")
                            await fleet.finish(job, content, kind)
                await asyncio.sleep(_LOOK_S)
        except Exception as error:
            self.failures.append(error)
            raise

    def run(self, folder: Path, settings: Settings) -> None:
        """The thread."""
        try:
            asyncio.run(self.serve(folder, settings))
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._ready.set()

    def wait_ready(self) -> None:
        """Return once it can be called."""
        assert self._ready.wait(BOUND_S)
        assert not self.failures, self.failures

    def stop(self) -> None:
        """End it; from another thread."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)


@contextmanager
def served_gateway(folder: Path, settings: Settings | None = None) -> Iterator[Served]:
    """A gateway that is there as long as the context."""
    served = Served()
    thread = threading.Thread(target=served.run, args=(folder, settings or Settings()), daemon=True)
    thread.start()
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()
        thread.join(BOUND_S)
    assert not served.failures, served.failures
