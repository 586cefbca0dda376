"""A gateway and its broker alone, for benchmarks of what clients see: a model is on offer, and nobody takes jobs."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from msgspec.structs import replace

from shared.bus import Bus
from shared.messages import FloatRange, IntRange, Layout, ModelCard, WorkerLease, WorkerState, encode
from shared.nats_bus import connect
from shared.settings import Settings
from shared.topology import MODELS, WORKERS, model_key
from tests.support.nats_server import NatsServer
from tests.support.service_process import ServiceProcess

CARD = ModelCard(
    name="dummy",
    family="dummy",
    tasks=("text-to-video", "image-to-video"),
    width=IntRange(min=64, max=1280, default=256, multiple_of=16),
    height=IntRange(min=64, max=1280, default=144, multiple_of=16),
    max_pixels=1280 * 720,
    num_frames=IntRange(min=1, max=81, default=17, multiple_of=4, offset=1),
    fps=IntRange(min=1, max=30, default=8),
    steps=IntRange(min=1, max=50, default=8),
    guidance_scale=FloatRange(min=1.0, max=20.0, default=5.0),
    shift=FloatRange(min=0.1, max=20.0, default=3.0),
    solvers=("unipc", "euler"),
)
WORKER = "bench-worker"
_LEASE_S = 6.0


class Front:
    """The running gateway.

    Attributes:
        port: where it answers; ``key``: of a user, if it needs one; ``settings``: that lead to the broker.
    """

    def __init__(self, port: int, key: str, settings: Settings, gateway: int, server: int) -> None:
        self.port, self.key, self.settings = port, key, settings
        self.gateway, self._server = psutil.Process(gateway), psutil.Process(server)

    def used(self) -> dict[str, float]:
        """Processor seconds since each began."""
        return {"web": _seconds(self.gateway), "broker": _seconds(self._server)}

    def memory(self) -> int:
        """Resident bytes of the gateway."""
        return int(self.gateway.memory_info().rss)


@contextmanager
def front(folder: Path, *, keys: bool = False, **given: object) -> Iterator[Front]:
    """The gateway while the block runs.

    Args:
        keys: requests need a key.
        given: further settings.
    """
    with NatsServer(folder / "nats") as server:
        admin = secrets.token_urlsafe(32)
        more: dict[str, object] = {"artifacts": str(folder / "artifacts"), "port": 0, **given}
        if keys:
            more |= {"auth": "keys", "admin_key": admin, "secret": secrets.token_hex(32)}
        settings = replace(server.settings(), **more)
        with ServiceProcess("gateway", settings, folder / "gateway.log") as process, _fleet(settings):
            process.wait_for("ready")
            ready = process.event("ready")
            assert ready is not None
            port = int(str(ready["url"]).rsplit(":", 1)[1])
            key = _user_key(port, admin) if keys else ""
            _until_served(port, key)
            yield Front(port, key, settings, process.pid, server.pid)


@contextmanager
def _fleet(settings: Settings) -> Iterator[None]:
    """A worker that is there and takes nothing, for as long as the block runs."""
    stop = threading.Event()

    async def live() -> None:
        bus: Bus = await connect(settings, name="bench-fleet")
        await bus.bucket(MODELS.name).put(model_key(WORKER, CARD.name), encode(CARD))
        beat = 0
        try:
            while not stop.is_set():
                beat += 1
                lease = WorkerLease(
                    worker=WORKER,
                    incarnation=f"{WORKER}-1",
                    beat=beat,
                    lease_s=_LEASE_S,
                    state=WorkerState.IDLE,
                    models=(CARD.name,),
                    layouts=(Layout(),),
                    step_s={CARD.name: 0.5},
                )
                await bus.bucket(WORKERS.name).put(WORKER, encode(lease))
                await asyncio.sleep(_LEASE_S / 3)
        finally:
            await bus.close()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _user_key(port: int, admin: str) -> str:
    body = json.dumps({"name": "bench", "role": "user", "tenant": "bench"}).encode()
    headers = {"Authorization": f"Bearer {admin}", "Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{port}/v1/keys", data=body, headers=headers)
    ) as answer:
        return str(json.load(answer)["key"])


def _until_served(port: int, key: str) -> None:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {key}"})
    for _ in range(200):
        with urllib.request.urlopen(asked) as answer:
            if json.load(answer)["data"]:
                return
        threading.Event().wait(0.05)
    raise RuntimeError("the gateway never heard of the model")


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
