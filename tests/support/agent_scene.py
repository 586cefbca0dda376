"""An agent whose scripted group is ready: what most service tests of the agent begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.artifacts import Artifacts, Stored
from shared.errors import ArtifactError
from shared.messages import Accepted, Layout, WorkerState
from shared.settings import Settings
from tests.support.clock import FakeClock
from tests.support.scripted_rank import AgentHouse, ScriptedLauncher, ScriptedRank, agent_house
from workers.link import Done, OutputFile, Run
from workers.pool import Pool, PoolLimits

LIMITS = PoolLimits(silence_timeout_s=100_000.0, stop_grace_s=30.0)


@dataclass
class Scene:
    """An agent whose scripted group is ready."""

    house: AgentHouse
    clock: FakeClock
    launcher: ScriptedLauncher
    rank: ScriptedRank

    async def run(self, job: str, epoch: int = 1, **given: object) -> Run:
        """Assign a job and take its Run at rank 0."""
        assert await self.house.assign(job, epoch, **given) == Accepted()  # type: ignore[arg-type]
        frame = await self.rank.hear()
        assert isinstance(frame, Run)
        assert (frame.job, frame.epoch) == (job, epoch)
        return frame

    def files_left(self) -> list[Path]:
        """What lies in the folders of attempts."""
        return [path for path in (self.house.runtime_dir / "jobs").rglob("*") if path.is_file()]

    def fail_puts(self, monkeypatch: pytest.MonkeyPatch, failures: float) -> list[str]:
        """The store refuses so many puts; the list grows with each."""
        refused: list[str] = []
        whole = Artifacts.take_file

        async def take_file(store: Artifacts, key: str, path: Path) -> Stored:
            if len(refused) < failures:
                refused.append(key)
                raise ArtifactError("the store is away")
            return await whole(store, key, path)

        monkeypatch.setattr(Artifacts, "take_file", take_file)
        return refused

    def done(self, run: Run, **used: int) -> None:
        """Rank 0 answers with one file."""
        (Path(run.out_dir) / "0.png").write_bytes(b"picture")
        file = OutputFile(name="0.png", media_type="image/png", width=64, height=64, num_frames=1, fps=0)
        self.rank.say(Done(job=run.job, epoch=run.epoch, files=(file,), used=dict(used)))


@asynccontextmanager
async def ready_scene(folder: Path, settings: Settings | None = None) -> AsyncIterator[Scene]:
    """An agent that is idle, until the block ends; it drains for 60 s."""
    clock, launcher = FakeClock(), ScriptedLauncher()
    pool = Pool(model="dummy", limits=LIMITS)
    async with agent_house(
        clock, launcher, folder, pool=pool, settings=settings or Settings(drain_grace_s=60.0)
    ) as house:
        rank = await launcher.launched()
        await rank.come_up(Layout())
        await house.state(WorkerState.IDLE)
        yield Scene(house, clock, launcher, rank)
