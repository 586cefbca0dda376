"""The agent with the real dummy engine: real processes, a real socket, the real clock, the bus in memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.clock import SystemClock
from shared.messages import Accepted, Succeeded, WorkerState
from shared.settings import Settings
from tests.support.scripted_rank import AgentHouse, agent_house
from workers.agent.process import LocalLauncher, marked
from workers.pool import parse

MARK_NAME = "test-agent-dummy"
POOL = 'model = "dummy"\n[limits]\nsilence_timeout_s = 1.0\nstop_grace_s = 1.0\n'


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    path = tmp_path / "pool.toml"
    path.write_text(POOL)
    pool = parse(POOL)
    name = f"{MARK_NAME}-{os.getpid()}"
    launcher = LocalLauncher(pool, path, tmp_path / "logs", name)
    async with agent_house(SystemClock(), launcher, tmp_path, pool=pool, settings=Settings(lease_s=1.0)) as house:
        await house.state(WorkerState.IDLE)
        yield house
    assert not marked(f"{name}.1")


async def test_a_job_runs_and_its_output_is_in_the_store(house: AgentHouse) -> None:
    assert await house.assign("job1") == Accepted()
    result = await house.result("job1")
    assert isinstance(result.outcome, Succeeded)
    (output,) = result.outcome.outputs
    assert output.key == "job1/1/0.png"
    content = b"".join([part async for part in house.artifacts.read(output.key)])
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) == output.size
    await house.state(WorkerState.IDLE)
