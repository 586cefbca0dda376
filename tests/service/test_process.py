"""How one process is kept running: real ones, on a clock moved by hand."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from deploy.process import STEADY_S, Child, Ended, ProcessSpec, last_lines
from tests.support.clock import FakeClock


class Kept:
    """A child of a tiny Python program, with the ends it told."""

    def __init__(self, folder: Path, program: str) -> None:
        self.clock = FakeClock()
        self.ends: asyncio.Queue[Ended] = asyncio.Queue()
        self.started = folder / "started"
        os.mkfifo(self.started)
        self._fd = os.open(self.started, os.O_RDWR | os.O_NONBLOCK)
        command = (sys.executable, "-S", "-c", f"import os\nos.write(3, b'.')\n{program}")
        shell = ("/bin/sh", "-c", 'exec 3>"$STARTED"; exec "$@"', "sh", *command)
        spec = ProcessSpec(
            name="tiny",
            command=shell,
            env={"STARTED": str(self.started), "PATH": os.environ["PATH"]},
            log=folder / "logs" / "tiny.log",
            stop_grace_s=30.0,
        )
        self.child = Child(spec, self.clock, self.ends.put_nowait)

    async def start_seen(self) -> int:
        """Wait until the program runs (again); its pid."""
        loop = asyncio.get_running_loop()
        seen = asyncio.Event()
        loop.add_reader(self._fd, seen.set)
        async with asyncio.timeout(20):
            await seen.wait()
        loop.remove_reader(self._fd)
        assert os.read(self._fd, 1) == b"."
        pid = self.child.pid
        assert pid is not None
        return pid

    async def end_seen(self) -> Ended:
        async with asyncio.timeout(20):
            return await self.ends.get()

    async def close(self) -> None:
        await self.child.stop(0.0)
        os.close(self._fd)


@pytest.fixture
async def waiting(tmp_path: Path) -> AsyncIterator[Kept]:
    kept = Kept(tmp_path, "import signal\nsignal.pause()")
    yield kept
    await kept.close()


@pytest.fixture
async def failing(tmp_path: Path) -> AsyncIterator[Kept]:
    kept = Kept(tmp_path, "import sys\nsys.exit('broken for good')")
    yield kept
    await kept.close()


@pytest.fixture
async def stubborn(tmp_path: Path) -> AsyncIterator[Kept]:
    program = "import signal, subprocess, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    program += "p = subprocess.Popen(['sleep', '300'])\nos.write(3, b'.')\np.wait()"
    kept = Kept(tmp_path, program)
    yield kept
    await kept.close()


async def test_a_killed_process_is_started_again_at_once(waiting: Kept) -> None:
    waiting.child.start()
    first = await waiting.start_seen()
    os.kill(first, signal.SIGKILL)
    end = await waiting.end_seen()
    assert (end.name, end.code, end.in_a_row, end.delay_s) == ("tiny", -signal.SIGKILL, 1, 0.0)
    assert end.how == "was killed by SIGKILL"
    second = await waiting.start_seen()
    assert second != first
    assert waiting.ends.empty()


async def test_a_process_that_keeps_failing_is_started_later_and_later(failing: Kept) -> None:
    failing.child.start()
    seen = []
    for _ in range(4):
        end = await failing.end_seen()
        seen.append((end.code, end.in_a_row, end.delay_s))
        await failing.clock.advance(end.delay_s)
    assert seen == [(1, 1, 0.0), (1, 2, 0.25), (1, 3, 0.5), (1, 4, 1.0)]
    assert "broken for good" in last_lines(failing.child.spec.log, 1)


async def test_after_a_steady_run_the_count_begins_anew(waiting: Kept) -> None:
    waiting.child.start()
    for expected in (1, 2):
        os.kill(await waiting.start_seen(), signal.SIGKILL)
        end = await waiting.end_seen()
        assert end.in_a_row == expected
        await waiting.clock.advance(end.delay_s)
    pid = await waiting.start_seen()
    await waiting.clock.advance(STEADY_S)
    os.kill(pid, signal.SIGKILL)
    assert (await waiting.end_seen()).in_a_row == 1


async def test_a_stop_ends_it_and_it_stays_ended(waiting: Kept) -> None:
    waiting.child.start()
    pid = await waiting.start_seen()
    async with asyncio.timeout(20):
        await waiting.child.stop()
    assert not psutil.pid_exists(pid)
    assert waiting.child.pid is None
    assert waiting.ends.empty()


async def test_a_stop_between_two_lives_does_not_wait_for_the_delay(failing: Kept) -> None:
    failing.child.start()
    await failing.end_seen()
    end = await failing.end_seen()
    assert end.delay_s > 0
    async with asyncio.timeout(20):
        await failing.child.stop()
    assert failing.ends.empty()


async def test_a_stop_while_it_is_being_launched_leaves_nothing(waiting: Kept) -> None:
    waiting.child.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await waiting.child.stop()
    assert waiting.child.pid is None


async def test_what_does_not_end_is_killed_with_all_that_it_started(stubborn: Kept) -> None:
    stubborn.child.start()
    await stubborn.start_seen()
    pid = await stubborn.start_seen()
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    assert len(family) == 2
    async with asyncio.timeout(20):
        await stubborn.child.stop(0.0)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


async def test_a_program_that_is_not_there_is_an_end_with_its_reason(tmp_path: Path) -> None:
    ends: asyncio.Queue[Ended] = asyncio.Queue()
    spec = ProcessSpec(name="none", command=("/nowhere/program",), log=tmp_path / "none.log")
    child = Child(spec, FakeClock(), ends.put_nowait)
    child.start()
    async with asyncio.timeout(20):
        end = await ends.get()
        await child.stop()
    assert (end.code, end.how) == (127, "ended with exit code 127")
    assert "/nowhere/program: No such file or directory" in last_lines(spec.log).replace("[Errno 2] ", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_child_dies_with_its_supervisor_even_when_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, pathlib
from deploy.process import Child, ProcessSpec
from shared.clock import SystemClock

async def main():
    spec = ProcessSpec(name="x", command=("sleep", "300"), env={{"PATH": {os.environ["PATH"]!r}}},
                       log=pathlib.Path({str(tmp_path / "x.log")!r}))
    child = Child(spec, SystemClock(), print)
    child.start()
    while child.pid is None:
        await asyncio.sleep(0.01)
    print(child.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    with psutil.Popen([sys.executable, "-c", program], stdout=-1, text=True) as supervisor:
        try:
            child = psutil.Process(int(supervisor.stdout.readline()))
        finally:
            supervisor.kill()
    _, alive = psutil.wait_procs([child], timeout=20)
    assert alive == []


def test_the_end_of_a_log_is_shown_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == ""
    log.write_text("\n".join(str(number) for number in range(10_000)))
    assert last_lines(log, 2) == "9998\n9999"
    log.write_text("first\nagain\nagain\nagain\n")
    assert last_lines(log, 2) == "first\nagain"
