"""Rank 0 of a group as a simulated process: the dummy engine's pretences on made-up time, over the real link.

What a job asks for in ``request.dummy`` means what it means to ``workers.engine.dummy``; ``slow`` makes every step of
this rank that much longer.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec

from shared.messages import Reason, Stage
from tests.simulation.loop import SimLoop
from tests.simulation.process import Process
from workers.agent.process import GroupProcess
from workers.engine.dummy import Pretence, card, layouts
from workers.engine.dummy_files import write_output
from workers.link import (
    Broke,
    Cancel,
    Done,
    FromAgent,
    FromRank,
    Hello,
    LinkClosed,
    Loading,
    Pulse,
    Quit,
    Ready,
    Refused,
    Run,
    Stopped,
    pack,
    unpack_from_agent,
)

#: Seconds between pulses of an idle rank.
IDLE_PULSE_S = 5.0


class SimRank:
    """One launch of a group: a process, and what rank 0 does in it."""

    def __init__(
        self,
        loop: SimLoop,
        process: Process,
        link: Path,
        width: int,
        model: str,
        others: tuple[str, ...],
        ran: Callable[[Run], None],
    ) -> None:
        self.process = process
        self.slow = 1.0
        self._loop = loop
        self._link = link
        self._width = width
        self._model = model
        self._others = others
        self._ran = ran
        self._frames: asyncio.Queue[FromAgent | None] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None
        process.at_end.append(self._hang_up)
        process.start(self._live())

    # as the agent's handle on it

    async def wait(self) -> int:
        await asyncio.shield(self.process.ended)
        return 1 if self.process.error is not None else 0

    async def kill(self) -> None:
        self.process.kill()

    # as rank 0

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    async def _live(self) -> None:
        clock = self.process.clock
        await clock.sleep(self.process.random.uniform(0.05, 1.0))
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._link)
        except OSError:
            return
        listening = asyncio.ensure_future(self._listen(reader))
        self._say(Hello(pid=1, width=self._width, device="cpu", device_name="simulated"))
        self._say(Loading(fraction=0.5, what="nothing"))
        await clock.sleep(self.process.random.uniform(0.05, 1.0))
        others = tuple(card(name) for name in self._others if name != self._model)
        self._say(Ready(cards=(card(self._model),), layouts=layouts(self._width), others=others))
        while True:
            frame = await self._hear(IDLE_PULSE_S)
            match frame:
                case Run() as run:
                    self._ran(run)
                    self._say(await self._do(run))
                case Quit() | LinkClosed():
                    break
                case Cancel():
                    pass
                case None:
                    self._say(Pulse())
        listening.cancel()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                (length,) = struct.unpack(">I", await reader.readexactly(4))
                self._frames.put_nowait(unpack_from_agent(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            # The agent is gone: what it launched does not outlive it.
            self.process.kill()

    async def _hear(self, seconds: float) -> FromAgent | None:
        try:
            async with asyncio.timeout(seconds):
                return await self._frames.get()
        except TimeoutError:
            return None

    def _say(self, frame: FromRank) -> None:
        assert self._writer is not None
        self._writer.write(pack(frame))

    async def _do(self, run: Run) -> Done | Refused | Broke | Stopped:
        job, epoch = run.job, run.epoch
        pretence = msgspec.convert(run.request.dummy or {}, Pretence)
        if pretence.refuse:
            return Refused(job=job, epoch=epoch, reason=pretence.refuse, message="refused, as the job asked")
        steps = int(pretence.steps) or run.request.steps
        for step in range(1, steps + 1):
            if pretence.fail and step == int(pretence.fail_at):
                poisoned = bool(pretence.poison)
                return Broke(job=job, epoch=epoch, reason=pretence.fail, message="as asked", poisoned=poisoned)
            await self._misbehave(pretence, step)
            step_s = pretence.step_ms / 1000 * self.slow
            if await self._cancelled(run, step_s) and not pretence.deaf:
                return Stopped(job=job, epoch=epoch, step=step)
            left = (steps - step) * step_s
            self._say(
                Pulse(
                    job=job,
                    epoch=epoch,
                    stage=Stage.DENOISE,
                    step=step,
                    total_steps=steps,
                    eta_s=left,
                    step_s=step_s,
                )
            )
        files = tuple(write_output(run, index, int(pretence.output_bytes)) for index in range(run.request.n))
        return Done(job=job, epoch=epoch, files=files)

    async def _misbehave(self, pretence: Pretence, step: int) -> None:
        if step == int(pretence.hang_at):
            await self.process.clock.sleep(1e9)
        if step == int(pretence.kill_at):
            self.process.kill()
            await asyncio.sleep(1e9)
        if step == int(pretence.exit_at):
            failure = {"rank": 0, "reason": Reason.DEVICE_ERROR, "message": f"exit at step {step}, as the job asked"}
            (self._link.parent / "failure.json").write_text(json.dumps(failure))
            self.process.kill()
            await asyncio.sleep(1e9)

    async def _cancelled(self, run: Run, step_s: float) -> bool:
        await self.process.clock.sleep(step_s)
        cancelled = False
        while not self._frames.empty():
            frame = self._frames.get_nowait()
            cancelled = cancelled or (isinstance(frame, Cancel) and (frame.job, frame.epoch) == (run.job, run.epoch))
        return cancelled


class SimLauncher:
    """Launches simulated groups for one agent's process.

    Attributes:
        last: the newest launch.
        fail_next: launches that cannot be started.
    """

    def __init__(
        self, loop: SimLoop, agent: Process, seed: str, models: tuple[str, ...], ran: Callable[[Run], None]
    ) -> None:
        self.last: SimRank | None = None
        self.fail_next = 0
        self._loop = loop
        self._agent = agent
        self._seed = seed
        self._model, self._others = models[0], models
        self._ran = ran
        self._launched = 0

    async def launch(self, link: Path, width: int, first_device: int, model: str = "") -> GroupProcess:
        if self.fail_next:
            self.fail_next -= 1
            raise OSError("cannot be started")
        self._launched += 1
        process = Process(self._loop, f"{self._agent.name}/rank-{self._launched}", self._seed)
        if self._agent.alive:
            self._agent.children.append(process)
        self.last = SimRank(self._loop, process, link, width, model or self._model, self._others, self._ran)
        if not self._agent.alive:
            process.kill()
        return self.last
