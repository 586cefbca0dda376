"""What a group says of its kernel and its accelerators can be seen in the lease and in the metrics."""

from __future__ import annotations

from pathlib import Path

from shared.messages import Layout, WorkerState
from tests.support.clock import FakeClock
from tests.support.scripted_rank import ScriptedLauncher, agent_house, card, until
from workers.link import Hello, Ready
from workers.pool import Pool

TOLD = "attention flash3 (sdpa 21.4 ms, flash3 15.2 ms); compile True"


async def test_the_lease_and_the_metrics_name_the_kernel(tmp_path: Path) -> None:
    clock, launcher = FakeClock(), ScriptedLauncher()
    async with agent_house(clock, launcher, tmp_path, pool=Pool(model="dummy")) as house:
        for kernel, told in (("flash3", TOLD), ("sdpa", "attention sdpa")):
            rank = await launcher.launched()
            await rank.connect()
            rank.say(Hello(pid=1, width=1, device="cuda", device_name="H200"))
            rank.say(Ready(cards=(card("dummy"),), layouts=(Layout(),), acceleration=told))
            assert (await house.state(WorkerState.IDLE)).detail == told
            await until(lambda kernel=kernel: house.metric("genfleet_group_attention", kernel=kernel) == 1.0)
            rank.die(1)
        await launcher.launched()
