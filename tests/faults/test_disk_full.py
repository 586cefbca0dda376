"""JetStream's disk is full, in earnest: a file system of a few megabytes without a byte left."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from deploy import nats, nats_cluster
from deploy.history.check import Submit, check
from deploy.history.reading import read
from scheduler.shell import Scheduler
from shared.artifacts import open_store
from shared.clock import SystemClock
from shared.messages import TERMINAL, JobRecord, State, decode
from shared.nats_bus import connect
from shared.settings import Settings
from tests.support.nats_server import NatsServer
from tests.support.scripted_worker import ScriptedWorker
from tests.support.service_process import ServiceProcess
from tests.support.small_disk import NoSmallDisk, SmallDisk

pytestmark = pytest.mark.system

BOUND_S = 60.0
JOBS = 12
#: A file's last page may have room for a short record though the disk has none. No record here fits into one.
PAGE = resource.getpagesize()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    try:
        with SmallDisk(tmp_path / "disk", megabytes=16) as made:
            yield made
    except NoSmallDisk as why:
        pytest.skip(f"a small disk cannot be made here: {why}")


class Client:
    """Submits through a gateway and remembers what it was promised."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=BOUND_S)
        self.accepted: dict[str, str] = {}

    def submit(self, key: str) -> httpx.Response:
        body = {"prompt": key.ljust(PAGE // 3, "火"), "model": "dummy"}  # of three bytes each
        answer = self.http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        if answer.status_code == 202:
            self.accepted[key] = answer.json()["id"]
        return answer

    def ready(self, status: int) -> None:
        """Wait until /readyz says that."""
        bound = time.monotonic() + BOUND_S
        while (answer := self.http.get("/readyz")).status_code != status:
            assert time.monotonic() < bound, answer.text
            time.sleep(0.02)

    def contact_s(self) -> float:
        """What Prometheus is told, and an alert is made of."""
        lines = self.http.get("/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith("genfleet_gateway_bus_contact_seconds ")]
        return float(line.split()[1])


@pytest.mark.parametrize("version", ["the machine's own", nats_cluster.VERSION])
def test_a_full_disk_is_told_and_loses_nothing(disk: SmallDisk, tmp_path: Path, version: str) -> None:
    """Row 7: 503, unready, an alert; nothing lost after space returns. A 2.9 server hangs and has to be started again
    once there is room, a 2.10 one answers that it cannot store, and goes on by itself."""
    try:
        binary = None if version != nats_cluster.VERSION else nats_cluster.ensure(Path(".tools"))
    except nats.NatsServerMissing as missing:
        pytest.skip(f"nats-server {version} cannot be had here: {missing}")
    with NatsServer(tmp_path / "nats", binary, store=disk.path / "store", inside=disk.inside) as server:
        settings = replace(server.settings(), artifacts=str(tmp_path / "artifacts"), port=0, unknown_model="queue")
        with ServiceProcess("gateway", settings, tmp_path / "gateway.log") as gateway:
            gateway.wait_for("ready", BOUND_S)
            ready = gateway.event("ready")
            assert ready is not None
            client = Client(str(ready["url"]))
            with client.http:
                client.ready(200)
                for number in range(JOBS):
                    assert client.submit(f"early-{number}").status_code == 202
                disk.fill()
                refused = client.submit("refused")
                assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
                promised = refused.json()["id"]
                client.ready(503)
                assert client.contact_s() == 0.0
                assert client.submit("refused").json()["id"] == promised
                assert client.http.get(f"/v1/jobs/{client.accepted['early-0']}").json()["state"] == "queued"
                disk.clear()
                if binary is None:
                    server.kill()
                    server.start()
                client.ready(200)
                assert client.submit("refused").json()["id"] == promised
                assert client.submit("late").status_code == 202
        asyncio.run(all_end_once(settings, client.accepted))


async def all_end_once(settings: Settings, accepted: dict[str, str]) -> None:
    """The jobs are all there, and reach one end each."""
    submits = [Submit(id=job, key=key) for key, job in accepted.items()]
    assert len(submits) == JOBS + 2
    async with asyncio.timeout(BOUND_S):
        bus = await connect(settings, name="test")
        snapshot = await read(bus, open_store(settings.artifacts))
        assert [finding for finding in check(snapshot, submits) if finding.broken] == []
        assert {record.id for record in snapshot.records} == set(accepted.values())
        worker = ScriptedWorker(bus, SystemClock(), capacity=8, run_s=0.01)
        await worker.start()
        scheduler = Scheduler(bus, settings, SystemClock())
        running = asyncio.ensure_future(scheduler.run())
        records: dict[str, JobRecord] = {}
        async for batch in bus.bucket("jobs").follow():
            records |= {entry.key: decode(entry.value or b"", JobRecord) for entry in batch.entries}
            if all(record.state in TERMINAL for record in records.values()):
                break
        assert set(records) == set(accepted.values())
        assert {(record.state, record.epoch) for record in records.values()} == {(State.SUCCEEDED, 1)}
        await scheduler.stop()
        await asyncio.gather(running, return_exceptions=True)
        await worker.die()
        await bus.close()
