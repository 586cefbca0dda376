"""What a group says of its kernel and its accelerators can be seen in the lease and in the metrics."""

from __future__ import annotations

from pathlib import Path

from shared.messages import Layout, WorkerState
from tests.support.clock import FakeClock
from tests.support.scripted_rank import ScriptedLauncher, ScriptedRank, agent_house, until
from workers.engine.dummy import card
from workers.link import Hello, Ready
from workers.pool import Pool

TOLD = "attention flash3 (sdpa 21.4 ms, flash3 15.2 ms); compile True"


async def test_the_lease_and_the_metrics_name_the_kernel(tmp_path: Path) -> None:
    launcher = ScriptedLauncher()
    async with agent_house(FakeClock(), launcher, tmp_path, pool=Pool(model="dummy")) as house:

        def shows(kernel: str, told: str) -> bool:
            lease = house.lease()
            return (
                lease is not None
                and (lease.state, lease.detail) == (WorkerState.IDLE, told)
                and house.metric("genfleet_group_attention", kernel=kernel) == 1.0
            )

        rank = await launcher.launched()
        await come_up(rank, TOLD)
        await until(lambda: shows("flash3", TOLD))
        rank.die(1)
        await come_up(await launcher.launched(), "attention sdpa")
        await until(lambda: shows("sdpa", "attention sdpa"))
        assert house.metric("genfleet_group_attention", kernel="flash3") == 0.0


async def come_up(rank: ScriptedRank, told: str) -> None:
    await rank.connect()
    rank.say(Hello(pid=1, width=1, device="cuda", device_name="H200"))
    rank.say(Ready(cards=(card("dummy"),), layouts=(Layout(),), acceleration=told))
