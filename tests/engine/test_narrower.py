"""Rows 29 and 31, and promise 6, on real ranks: a group that cannot start at full width comes up narrower, says so, and
makes the same video; a rank that hangs in the middle of a job costs one attempt, and the group comes back."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
from msgspec.structs import replace

from shared.clock import SystemClock
from shared.messages import Accepted, Failed, Layout, Outcome, Reason, Succeeded, WorkerLease, WorkerState
from tests.engine.requests import request
from tests.support.scripted_rank import AgentHouse, agent_house
from tests.support.video import read_video
from workers import pool as pools
from workers.agent.process import LocalLauncher
from workers.engine.direct import generate

Folders = Callable[[str], Path]
T = TypeVar("T")
BOUND_S = 300.0

#: The fourth device is dead: whoever opens it dies. It is there only at full width.
DEAD_DEVICE = """
import os, signal
if os.environ.get("LOCAL_RANK") == "3":
    os.kill(os.getpid(), signal.SIGKILL)
"""
POOL = """
model = "{model}"
serve_as = "tiny"
device = "cpu"
width = 4
threads = 1
layout = {{ cfg = 2, ulysses = 2 }}
limits = {{ launch_attempts = 1, silence_timeout_s = 15 }}
env = {{ PYTHONPATH = "{site}" }}
"""


async def eventually(probe: Callable[[], T | None]) -> T:
    """Let the group go on until there is something, as long as a launch may take here."""
    async with asyncio.timeout(BOUND_S):
        while True:
            found = probe()
            if found is not None:
                return found
            await asyncio.sleep(0.02)


async def idle(house: AgentHouse) -> WorkerLease:
    def there() -> WorkerLease | None:
        lease = house.lease()
        return lease if lease is not None and lease.state is WorkerState.IDLE else None

    return await eventually(there)


async def denoising(house: AgentHouse, epoch: int, step: int) -> None:
    def there() -> bool | None:
        progress = house.progress("job")
        if progress is None or (progress.epoch, progress.stage) != (epoch, "denoise"):
            return None
        return progress.step >= step or None

    await eventually(there)


async def ended(house: AgentHouse, epoch: int) -> Outcome:
    return (await eventually(lambda: house.result_now("job", epoch))).outcome


def rank(index: int) -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("RANK") == str(index):
            return process
    raise AssertionError(f"there is no rank {index}")


async def test_a_dead_device_makes_the_group_narrower_and_a_hung_rank_costs_an_attempt(
    checkpoints: Folders, tmp_path: Path
) -> None:
    for folder in ("site", "alone"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEAD_DEVICE)
    pool_file = tmp_path / "pool.toml"
    model = checkpoints("wan21-t2v")
    pool_file.write_text(POOL.format(model=model, site=tmp_path / "site"))
    pool = pools.read(pool_file)
    asked = request(model="tiny", steps=6)
    alone = generate(model, asked, {}, tmp_path / "alone")
    expected = np.stack(read_video((tmp_path / "alone" / alone.files[0].name).read_bytes()))
    launcher = LocalLauncher(pool, pool_file, tmp_path / "logs", f"narrower-{secrets.token_hex(4)}")
    async with agent_house(SystemClock(), launcher, tmp_path, pool=pool) as house:
        lease = await idle(house)
        assert (lease.width, lease.full_width) == (2, 4)
        assert lease.detail.startswith("2 of 4 ranks: group_lost")
        assert lease.layouts[0] == Layout(cfg=2, ulysses=1, vae_parallel=True)
        assert all(each.cfg * each.ulysses * each.ring <= 2 for each in lease.layouts)
        assert house.metric("genfleet_group_width") == 2
        assert house.metric("genfleet_group_full_width") == 4

        assert await house.assign("job", request=asked) == Accepted()
        done = await ended(house, 1)
        assert isinstance(done, Succeeded)
        assert (done.used["ranks"], done.used["cfg_size"]) == (2, 2)
        data = b"".join([chunk async for chunk in house.artifacts.read(done.outputs[0].key)])
        np.testing.assert_array_equal(np.stack(read_video(data)), expected)

        launches = house.metric("genfleet_group_launches")
        assert await house.assign("job", epoch=2, request=replace(asked, steps=1000)) == Accepted()
        await denoising(house, 2, 2)
        rank(1).send_signal(signal.SIGSTOP)
        hung = await ended(house, 2)
        assert isinstance(hung, Failed)
        assert (hung.reason, hung.final) == (Reason.GROUP_HUNG, False)
        await eventually(lambda: house.metric("genfleet_group_launches") == launches + 1 or None)
