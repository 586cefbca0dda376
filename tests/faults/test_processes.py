"""Owned processes are struck and come back as asked, and nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.processes import MARK, Owned, marked

pytestmark = pytest.mark.system

BOUND_S = 30.0
#: Says that it is there, then waits for its end; ends well on SIGTERM. The signal is blocked and waited for: a handler
#: beside ``signal.pause()`` misses one that comes just before the pause.
PATIENT = "import signal; signal.pthread_sigmask(0, [15]); print('up', flush=True); signal.sigwait([15])"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); [signal.pause() for _ in 'abc']"


@asynccontextmanager
async def owned(folder: Path, code: str) -> AsyncIterator[tuple[Owned, str]]:
    run = secrets.token_hex(8)
    process = Owned("it", [sys.executable, "-c", code], {**os.environ, MARK: run}, folder / "log")
    await process.start()
    try:
        yield process, run
    finally:
        await process.close(5.0)


async def said_up(process: Owned, times: int) -> None:
    async with asyncio.timeout(BOUND_S):
        while True:
            if process.log.read_text().count("up\n") >= times:
                return
            await asyncio.sleep(0.01)


async def test_what_was_killed_comes_back(tmp_path: Path) -> None:
    async with owned(tmp_path, PATIENT) as (process, run):
        await said_up(process, 1)
        first = process.pid
        process.kill(0.05)
        assert not process.up.is_set()
        await asyncio.wait_for(process.up.wait(), BOUND_S)
        await said_up(process, 2)
        assert process.pid != first
        assert [left.pid for left in marked(run)] == [process.pid]
        assert process.own_ends == []
        assert await process.close(BOUND_S) == 0
    assert marked(run) == []


async def test_what_ends_by_itself_is_noted_and_comes_back(tmp_path: Path) -> None:
    async with owned(tmp_path, "import sys; print('up', flush=True); sys.exit(3)") as (process, _):
        await said_up(process, 2)
        assert set(process.own_ends) == {3}
        assert "up" in process.last_words()


async def test_what_the_machine_will_not_start_is_tried_again(tmp_path: Path) -> None:
    async with owned(tmp_path, PATIENT) as (process, _):
        await said_up(process, 1)
        process.log.rename(tmp_path / "kept")
        process.log.mkdir()
        process.kill(0.05)
        async with asyncio.timeout(BOUND_S):
            while True:
                if process.refusals:
                    break
                await asyncio.sleep(0.01)
        process.log.rmdir()
        await asyncio.wait_for(process.up.wait(), BOUND_S)
        assert await process.close(BOUND_S) is not None


async def test_a_stopped_one_stands_still_and_goes_on(tmp_path: Path) -> None:
    async with owned(tmp_path, PATIENT) as (process, _):
        await said_up(process, 1)
        process.stop()
        async with asyncio.timeout(BOUND_S):
            while True:
                if psutil.Process(process.pid).status() == psutil.STATUS_STOPPED:
                    break
                await asyncio.sleep(0.01)
        process.carry_on()
        assert await process.close(BOUND_S) == 0


async def test_a_stopped_one_is_closed_too(tmp_path: Path) -> None:
    async with owned(tmp_path, PATIENT) as (process, _):
        await said_up(process, 1)
        process.stop()
        assert await process.close(BOUND_S) == 0


async def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    async with owned(tmp_path, STUBBORN) as (process, run):
        await said_up(process, 1)
        assert await process.close(0.2) is None
        assert marked(run) == []


async def test_closing_between_two_lives_starts_nothing(tmp_path: Path) -> None:
    async with owned(tmp_path, PATIENT) as (process, run):
        await said_up(process, 1)
        process.kill(60.0)
        async with asyncio.timeout(BOUND_S):
            while True:
                if not marked(run):
                    break
                await asyncio.sleep(0.01)
        assert await process.close(0.2) is None
    assert marked(run) == []
