"""Real processes that the harness itself owns: started, struck and started again as a plan says, never by a supervisor.

Every process is on a leash (it dies with the harness) and bears a mark in its environment, so that afterwards anything
left of the run can be found, whoever its parent is by then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.fleet import ROOT

#: Names a run in the environment of all its processes, ranks included.
MARK = "CHAOS_RUN"
#: Before a process that ended by itself is started again.
RESTART_S = 0.3
_LEASH = str(ROOT / "workers" / "agent" / "leash.py")


class Owned:
    """A process that is kept running, except for as long as it is struck.

    Attributes:
        up: set while it runs.
        own_ends: exit codes of the times that it ended although nobody had killed it.
        refusals: why the machine would not start it again, each time.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.up = asyncio.Event()
        self.own_ends: list[int] = []
        self.refusals: list[str] = []
        self.log = log
        self._command = [sys.executable, "-I", "-S", _LEASH, str(os.getpid()), *command]
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._down_s: float | None = None
        self._closing = False

    @property
    def pid(self) -> int:
        """Of the present process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Run it from now on."""
        await self._launch()
        self._keeping = asyncio.create_task(self._keep(), name=self.name)

    def kill(self, down_s: float) -> None:
        """SIGKILL; it is started again after that long."""
        self._down_s = down_s
        self.up.clear()
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP: it stays where it is, its sockets open."""
        self._signal(signal.SIGSTOP)

    def carry_on(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def close(self, grace_s: float) -> int | None:
        """SIGTERM, for good; its exit code, or None if it had to be killed after the grace, or did not
        run."""
        self._closing = True
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return None
        assert self._process is not None
        if self.up.is_set():
            self._signal(signal.SIGCONT)
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    code = await self._process.wait()
                    await keeping
                    return code
        self._signal(signal.SIGKILL)
        keeping.cancel()
        await asyncio.gather(keeping, self._process.wait(), return_exceptions=True)
        self.up.clear()
        return None

    def last_words(self, count: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    async def _keep(self) -> None:
        assert self._process is not None
        while True:
            code = await self._process.wait()
            self.up.clear()
            if self._closing:
                return
            if self._down_s is None:
                self.own_ends.append(code)
            down_s, self._down_s = self._down_s, None
            await asyncio.sleep(RESTART_S if down_s is None else down_s)
            await self._launch_again()

    async def _launch_again(self) -> None:
        while True:
            try:
                await self._launch()
            except OSError as error:
                self.refusals.append(str(error))
            else:
                return
            await asyncio.sleep(RESTART_S)

    async def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.up.set()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)


def ranks_of(agent: Owned) -> list[psutil.Process]:
    """The dummy ranks that this agent started."""
    try:
        children = psutil.Process(agent.pid).children(recursive=True)
    except psutil.Error:
        return []
    found = []
    for child in children:
        with suppress(psutil.Error):
            if "workers.engine.dummy" in child.cmdline() and _LEASH not in child.cmdline():
                found.append(child)
    return found


def marked(run: str) -> list[psutil.Process]:
    """All living processes of that run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
