"""A gateway over the bus in memory, called without sockets; and the other end: a fleet that a test plays by hand."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from litestar import Litestar
from litestar.types import Message
from msgspec.structs import replace

from gateway.app import create_app
from gateway.parts import Gateway
from gateway.webhooks.sending import Sender
from shared import lifecycle
from shared.artifacts import Artifacts, open_store
from shared.clock import Clock
from shared.lifecycle import Stamp
from shared.messages import (
    FloatRange,
    Held,
    IntRange,
    JobRecord,
    Layout,
    ModelCard,
    Output,
    Progress,
    Succeeded,
    WorkerLease,
    WorkerState,
    decode,
    encode,
)
from shared.settings import Settings
from shared.topology import JOBS, MODELS, PROGRESS, WORKERS, model_key, output_key, progress_key
from tests.support.clock import FakeClock, settle
from tests.support.memory_bus import MemoryBroker, MemoryBus

HOST = "127.0.0.1:8088"
BASE_URL = f"http://{HOST}"
#: How long a test waits for something that must come.
BOUND_S = 60.0

CARD = ModelCard(
    name="wan-demo",
    family="wan",
    tasks=("text-to-video", "image-to-video", "text-to-image"),
    width=IntRange(min=64, max=512, default=256, multiple_of=16),
    height=IntRange(min=64, max=512, default=144, multiple_of=16),
    max_pixels=512 * 288,
    num_frames=IntRange(min=1, max=81, default=17, multiple_of=4, offset=1),
    fps=IntRange(min=1, max=30, default=8),
    steps=IntRange(min=1, max=50, default=8),
    guidance_scale=FloatRange(min=1.0, max=20.0, default=5.0),
    shift=FloatRange(min=0.1, max=20.0, default=3.0),
    solvers=("unipc", "euler"),
    negative_prompt="blurry",
    max_n=4,
    heads=8,
    also_takes=("last_image",),
)


def png(width: int = 32, height: int = 16) -> bytes:
    """A real PNG of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x40\x80\xc0" * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


class Stream:
    """An event stream as its client sees it, over ASGI, with what the server sent kept until it is asked for.

    Args:
        body: JSON that is posted; none: it is got.
    """

    def __init__(self, app: Litestar, path: str, headers: dict[str, str], body: bytes = b"") -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._asked = False
        self._text = b""
        self._body = body
        self._task = asyncio.create_task(self._run(app, path, headers))

    async def _run(self, app: Litestar, path: str, headers: dict[str, str]) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST" if self._body else "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(key.lower().encode(), value.encode()) for key, value in {"Host": HOST, **headers}.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8088),
        }
        asgi: Any = app
        await asgi(scope, self._receive, self._send)
        self.ended = True
        self._chunks.put_nowait(b"")

    async def _receive(self) -> dict[str, object]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode().lower(): value.decode() for key, value in message["headers"]}
        elif message["type"] == "http.response.body":
            await self._reading.wait()
            self._chunks.put_nowait(message["body"])
            if not message["more_body"]:
                self._gone.set()  # as a server does once the answer is complete

    def stall(self) -> None:
        """Read nothing more: the server's sends block, as they do when the socket is full."""
        self._reading.clear()

    def read_on(self) -> None:
        """End ``stall``."""
        self._reading.set()

    async def vanish(self) -> None:
        """The client goes away."""
        self._gone.set()
        self._reading.set()
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(self._task, return_exceptions=True)

    async def event(self) -> tuple[str, int | None, dict[str, object]] | None:
        """The next event as (name, id, data), comments left out; None at the end of the stream."""
        while True:
            while b"\n\n" not in self._text:
                async with asyncio.timeout(BOUND_S):
                    chunk = await self._chunks.get()
                if not chunk and self.ended and self._chunks.empty():
                    return None
                self._text += chunk
            block, self._text = self._text.split(b"\n\n", 1)
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "event" in fields:
                number = int(fields["id"]) if "id" in fields else None
                return fields["event"], number, msgspec.json.decode(fields["data"], type=dict[str, object])

    async def events(self, *names: str) -> list[tuple[str, int | None, dict[str, object]]]:
        """All events to the end of the stream, of these names."""
        found = []
        while (event := await self.event()) is not None:
            if event[0] in names:
                found.append(event)
        return found

    async def raw(self) -> bytes:
        """The next chunk, whatever it is."""
        async with asyncio.timeout(BOUND_S):
            return await self._chunks.get()


@dataclass
class GatewayUnderTest:
    """A gateway, a client for it, and what lies behind it."""

    app: Litestar
    client: httpx.AsyncClient
    bus: MemoryBus
    broker: MemoryBroker
    clock: FakeClock
    artifacts: Artifacts

    @property
    def parts(self) -> Gateway:
        gateway: Gateway = self.app.state.gateway
        return gateway

    async def submit(self, **body: object) -> dict[str, object]:
        """Submit a job that must be taken; its view."""
        answer = await self.client.post("/v1/jobs", json={"prompt": "a lighthouse", **body})
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    async def view(self, job: str) -> dict[str, object]:
        """The job's view."""
        answer = await self.client.get(f"/v1/jobs/{job}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stream(self, job: str, last_event_id: int | None = None) -> Stream:
        """Watch a job."""
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        return Stream(self.app, f"/v1/jobs/{job}/events", headers)


@asynccontextmanager
async def gateway(
    broker: MemoryBroker,
    folder: Path,
    settings: Settings | None = None,
    name: str = "gateway",
    sender: Sender | None = None,
    checked: bool = False,
) -> AsyncIterator[GatewayUnderTest]:
    """A running gateway, caught up. ``checked``: what is uploaded is decoded."""
    bus = broker.connect(name)
    artifacts = open_store(str(folder))
    clock = broker.clock
    assert isinstance(clock, FakeClock)
    app = create_app(bus, artifacts, replace(settings or Settings(), check_inputs=checked), clock, sender=sender)
    asgi: Any = app
    transport = httpx.ASGITransport(app=asgi, raise_app_exceptions=False)
    started, stop = asyncio.Event(), asyncio.Event()

    async def live() -> None:
        # In a task of its own: a lifespan must end in the task in which it began, and a fixture's end does not.
        async with app.lifespan():
            started.set()
            await stop.wait()

    living = asyncio.create_task(live())
    try:
        await asyncio.wait((living, asyncio.create_task(started.wait())), return_when=asyncio.FIRST_COMPLETED)
        await settle()
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
            yield GatewayUnderTest(app, client, bus, broker, clock, artifacts)
    finally:
        stop.set()
        await living
        await bus.close()


class Fleet:
    """The rest of genfleet, played by the test: it announces, assigns, runs and ends jobs on the bus."""

    def __init__(self, broker: MemoryBroker, artifacts: Artifacts, clock: Clock) -> None:
        self.bus = broker.connect("fleet")
        self.artifacts = artifacts
        self.clock = clock
        self._beat = 0

    async def announce(self, card: ModelCard = CARD) -> None:
        """A pool has this model."""
        await self.bus.bucket(MODELS.name).put(model_key("w1", card.name), encode(card))
        await settle()

    async def lease(
        self,
        worker: str = "w1",
        *,
        state: WorkerState = WorkerState.IDLE,
        layouts: tuple[Layout, ...] = (Layout(),),
        width: int = 1,
        full_width: int = 1,
        held: tuple[Held, ...] = (),
        step_s: float | None = None,
        models: tuple[str, ...] = (CARD.name,),
        device_memory: int = 0,
        loaded_models: tuple[str, ...] = (),
        load_s: float = 0.0,
    ) -> None:
        """A worker renews its lease. ``step_s``, ``load_s``: of each of its models."""
        self._beat += 1
        lease = WorkerLease(
            worker=worker,
            incarnation=f"{worker}-1",
            beat=self._beat,
            lease_s=6.0,
            state=state,
            models=models,
            layouts=layouts,
            width=width,
            full_width=full_width,
            held=held,
            step_s={} if step_s is None else dict.fromkeys(models, step_s),
            device_memory=device_memory,
            loaded_models=loaded_models,
            load_s=dict.fromkeys(models, load_s),
        )
        await self.bus.bucket(WORKERS.name).put(worker, encode(lease))
        await settle()

    async def record(self, job: object) -> JobRecord:
        """The record as it is in the bucket."""
        entry = await self.bus.bucket(JOBS.name).get(str(job))
        assert entry is not None
        assert entry.value is not None
        return decode(entry.value, JobRecord)

    async def move(self, job: object, step: Callable[[JobRecord, Stamp], JobRecord], since_s: float = 0.0) -> JobRecord:
        """Make one transition by compare-and-set, and let the gateways hear of it."""
        bucket = self.bus.bucket(JOBS.name)
        entry = await bucket.get(str(job))
        assert entry is not None
        assert entry.value is not None
        stamp = Stamp(by="scheduler-test", at=self.clock.wall(), since_s=since_s)
        record = step(decode(entry.value, JobRecord), stamp)
        await bucket.update(str(job), encode(record), entry.revision)
        await settle()
        return record

    async def assign(self, job: object, worker: str = "w1") -> JobRecord:
        return await self.move(job, lambda r, s: lifecycle.assign(r, worker, f"{worker}-1", s))

    async def run(self, job: object, worker: str = "w1") -> JobRecord:
        """Assign the job and let it run."""
        await self.assign(job, worker)
        return await self.move(job, lifecycle.run)

    async def progress(
        self, job: object, epoch: int, step: int, total: int = 8, stage: str = "denoise", preview: bytes = b""
    ) -> None:
        message = Progress(
            job=str(job),
            epoch=epoch,
            worker="w1",
            stage=stage,
            step=step,
            total_steps=total,
            eta_s=float(total - step),
            preview=preview,
        )
        await self.bus.bucket(PROGRESS.name).put(progress_key("w1", str(job)), encode(message))
        await settle()

    async def finish(
        self, job: object, content: bytes = b"0123456789", media_type: str = "video/mp4", ran_s: float = 1.5
    ) -> JobRecord:
        """End a running job with one output of that content."""
        record = await self.record(job)
        stored = await self.artifacts.put(output_key(record.id, record.epoch, "0.mp4"), content)
        made = Output(
            key=stored.key, media_type=media_type, size=stored.size, sha256=stored.sha256, width=256, height=144
        )

        def end(running: JobRecord, stamp: Stamp) -> JobRecord:
            folded = lifecycle.fold(running, running.epoch, Succeeded(outputs=(made,)), ran_s, stamp)
            assert folded is not None
            return folded

        return await self.move(job, end)

    async def complete(self, job: object, content: bytes = b"0123456789") -> JobRecord:
        """Assign, run and end the job."""
        await self.run(job)
        return await self.finish(job, content)
