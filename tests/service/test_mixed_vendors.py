"""One queue over boxes of several vendors: workers differ in their lease's device words, and jobs do not care."""

from __future__ import annotations

from msgspec.structs import replace

from shared.messages import Layout, Parallel, State, WorkerLease, decode
from shared.topology import WORKERS
from tests.support.scheduling import REQUEST, Room

NVIDIA, ASCEND, HOST = ("cuda", "NVIDIA H200"), ("npu", "Ascend910B2"), ("cpu", "")


async def leases(room: Room) -> dict[str, WorkerLease]:
    """What the workers say of themselves."""
    bucket = room.broker.connect("looker").bucket(WORKERS.name)
    found = {}
    for name in ("nvidia", "ascend", "host"):
        entry = await bucket.get(name)
        if entry is not None and entry.value is not None:
            found[name] = decode(entry.value, WorkerLease)
    return found


async def test_vendors_share_one_queue(room: Room) -> None:
    await room.scheduler()
    workers = [
        await room.worker(name=name, run_s=2.0, device=device, device_name=called)
        for name, (device, called) in (("nvidia", NVIDIA), ("ascend", ASCEND), ("host", HOST))
    ]
    said = await leases(room)
    assert [(lease.device, lease.device_name) for lease in said.values()] == [NVIDIA, ASCEND, HOST]
    jobs = [await room.submit() for _ in range(9)]
    for job in jobs:
        await room.until(job, State.SUCCEEDED)
    done = [{assign.job for assign in worker.assigned} for worker in workers]
    assert [len(mine) for mine in done] == [3, 3, 3]
    assert set().union(*done) == set(jobs)


async def test_a_job_of_a_lost_box_goes_on_with_another_vendor(room: Room) -> None:
    await room.scheduler()
    nvidia = await room.worker(name="nvidia", device="cuda")
    job = await room.submit()
    assert (await room.record(job)).worker == "nvidia"
    ascend = await room.worker(name="ascend", run_s=1.0, device="npu")
    await nvidia.die()
    record = await room.until(job, State.SUCCEEDED)
    assert (record.worker, record.epoch) == ("ascend", 2)
    assert [assign.job for assign in ascend.assigned] == [job]


async def test_a_layout_is_sought_whatever_the_vendor(room: Room) -> None:
    await room.scheduler()
    nvidia = await room.worker(name="nvidia", run_s=1.0, device="cuda")
    ascend = await room.worker(name="ascend", run_s=1.0, device="npu", layouts=(Layout(cfg=2, ulysses=4),))
    wide = replace(REQUEST, parallel=Parallel(cfg_size=2, ulysses_size=4))
    jobs = [await room.submit(request=wide) for _ in range(2)]
    for job in jobs:
        await room.until(job, State.SUCCEEDED)
    assert [assign.job for assign in ascend.assigned] == jobs
    assert nvidia.assigned == []
