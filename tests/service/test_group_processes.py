"""A group's processes are killed to the last, and the agent still learns how each ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys

import uvloop

from workers.agent.process import MARK, kill_marked, marked

BOUND_S = 90.0


def test_killing_a_group_does_not_take_its_exit_status_from_the_agent() -> None:
    """On the agent's own loop: whoever else waits for the child reaps it, and the loop then waits for ever."""
    mark = secrets.token_hex(8)

    async def kill_one() -> int:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import signal; signal.pause()", env={**os.environ, MARK: mark}
        )
        assert [process.pid for process in await asyncio.to_thread(marked, mark)] == [child.pid]
        # In the loop's own thread, so that the loop cannot be the first to notice.
        assert kill_marked(mark) == []
        return await asyncio.wait_for(child.wait(), BOUND_S)

    assert [uvloop.run(kill_one()) for _ in range(3)] == [-9] * 3
