"""A pool that may download: its checkpoint is pulled before its group is launched, and everybody can see it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import Layout, WorkerState
from shared.settings import Settings
from tests.support.clock import FakeClock
from tests.support.hub_server import COMMIT, HubServer
from tests.support.scripted_rank import ScriptedLauncher, agent_house, until
from workers.agent import follower
from workers.agent.process import OFFLINE, environment
from workers.agent.pulling import HubPulls, OnPull
from workers.pool import Pool, PoolError, parse

POOL = Pool(model="wan2.1-t2v-1.3b", download=True, revision=COMMIT)


class ScriptedPulls:
    """Pulls as the test says."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[tuple[OnPull, asyncio.Future[str]]] = asyncio.Queue()
        self.cancelled = asyncio.Event()

    async def ensure(self, on_pull: OnPull) -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait((on_pull, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_the_lease_shows_the_pull_and_the_group_is_launched_after_it(tmp_path: Path) -> None:
    clock, launcher, pulls = FakeClock(), ScriptedLauncher(), ScriptedPulls()
    async with agent_house(clock, launcher, tmp_path, pool=POOL, pulls=pulls) as house:
        on_pull, answer = await pulls.asked.get()
        on_pull(0.37, "transformer/model.safetensors")
        await until(lambda: (lease := house.lease()) is not None and lease.loaded == 0.37, "the lease shows it")
        shown = house.lease()
        assert shown is not None
        assert (shown.state, shown.detail) == (WorkerState.STARTING, "pulling transformer/model.safetensors")
        assert launcher.all == []
        answer.set_result("")
        rank = await launcher.launched()
        await rank.come_up(Layout())
        lease = await house.state(WorkerState.IDLE)
        assert (lease.loaded, lease.detail) == (1.0, "")


async def test_a_pull_that_fails_is_said_and_tried_again(tmp_path: Path) -> None:
    clock, launcher, pulls = FakeClock(), ScriptedLauncher(), ScriptedPulls()
    async with agent_house(clock, launcher, tmp_path, pool=POOL, pulls=pulls) as house:
        _, answer = await pulls.asked.get()
        answer.set_result("owner/model: not found")
        lease = await house.state(WorkerState.BROKEN)
        assert "owner/model: not found" in lease.detail
        await clock.advance(60.0)
        _, answer = await pulls.asked.get()
        answer.set_result("")
        await (await launcher.launched()).come_up(Layout())
        await house.state(WorkerState.IDLE)


async def test_an_agent_that_leaves_stops_its_pull(tmp_path: Path) -> None:
    clock, launcher, pulls = FakeClock(), ScriptedLauncher(), ScriptedPulls()
    async with agent_house(clock, launcher, tmp_path, pool=POOL, pulls=pulls) as house:
        await pulls.asked.get()
        house.agent.stop()
        async with asyncio.timeout(10):
            await pulls.cancelled.wait()
            await house.running
        assert launcher.all == []


async def test_a_further_machine_of_a_group_pulls_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []

    async def at_once(seconds: float) -> None:
        rests.append(seconds)

    class Failing:
        answers = iter(["no network", "no network", ""])

        async def ensure(self, on_pull: OnPull) -> str:
            on_pull(0.5, "a file")
            return next(self.answers)

    monkeypatch.setattr(asyncio, "sleep", at_once)
    await follower.pulled(Failing())
    assert rests == [60.0, 120.0]


# --- the process -----------------------------------------------------------------------------------------------------

FILES = {"model_index.json": b"{}", "transformer/diffusion_pytorch_model.safetensors": bytes(5000)}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from tests.support import hub_server

    monkeypatch.setattr(hub_server, "REPOSITORY", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    with HubServer(dict(FILES)) as running:
        yield running


def environ(server: HubServer, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "GENFLEET_MODELS_DIR": str(folder),
        "GENFLEET_MODELS_MIRROR": server.url,
        "GENFLEET_NATS_TOKEN": "secret",
    }


async def test_the_process_pulls_by_the_pools_name_and_revision(server: HubServer, tmp_path: Path) -> None:
    told: list[float] = []
    pulls = HubPulls(POOL, environ(server, tmp_path))
    async with asyncio.timeout(60):
        assert await pulls.ensure(lambda fraction, _: told.append(fraction)) == ""
        index = tmp_path / "Wan2.1-T2V-1.3B-Diffusers" / "model_index.json"
        assert await asyncio.to_thread(index.read_bytes) == b"{}"
        assert told
        server.requests.clear()
        assert await pulls.ensure(lambda *_: None) == ""
    assert server.requests == []


async def test_what_the_process_cannot_get_it_says(server: HubServer, tmp_path: Path) -> None:
    server.files.clear()
    async with asyncio.timeout(60):
        failure = await HubPulls(POOL, environ(server, tmp_path)).ensure(lambda *_: None)
    assert "holds nothing that a checkpoint is made of" in failure


async def test_a_process_that_dies_is_said(tmp_path: Path) -> None:
    pulls = HubPulls(POOL, {**os.environ, "GENFLEET_MODELS_DIR": str(tmp_path)})
    pulls._command = ["-c", "print('a warning'); import os; os.abort()"]
    async with asyncio.timeout(60):
        assert "ended with status -6" in await pulls.ensure(lambda *_: None)


async def test_a_pull_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    code = f"import os, pathlib, time; pathlib.Path({str(alive)!r}).write_text(str(os.getpid())); "
    code += 'print(\'{"fraction": 0.5, "what": "x"}\', flush=True); time.sleep(600)'
    pulls = HubPulls(POOL, dict(os.environ))
    pulls._command = ["-c", code]
    begun = asyncio.Event()
    work = asyncio.ensure_future(pulls.ensure(lambda *_: begun.set()))
    async with asyncio.timeout(60):
        await begun.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(await asyncio.to_thread(alive.read_text)), 0)


def test_the_process_gets_no_credentials_but_its_own() -> None:
    base = {"GENFLEET_NATS_TOKEN": "a", "AWS_SECRET_ACCESS_KEY": "b", "GENFLEET_MODELS_TOKEN": "c", "PATH": "/bin"}
    assert HubPulls(POOL, base)._environ == {"GENFLEET_MODELS_TOKEN": "c", "PATH": "/bin"}


def test_ranks_are_kept_from_the_network() -> None:
    made = environment(Pool(model="m"), 1, 0, "mark", {"PATH": "/bin", "HF_HUB_OFFLINE": "0"})
    assert OFFLINE.items() <= made.items()
    assert {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} <= OFFLINE.keys()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('model = "wan2.1-t2v-1.3b"\ndownload = true', "`download` needs `revision`"),
        ('model = "wan2.1-t2v-1.3b"\nrevision = "v1"', "`revision` is of `download`"),
        ('model = "/models/x"\ndownload = true\nrevision = "v1"', "a name of `genfleet models list`"),
        ('model = "dummy"\ndownload = true\nrevision = "v1"', "a name of `genfleet models list`"),
        ('model = "wan-demo"\ndownload = true\nrevision = "../x"', "revision"),
        (
            'model = "a"\nserve_as = "a"\ndownload = true\nrevision = "v1"\n[[others]]\nmodel = "b"\nserve_as = "b"',
            "pools of one model",
        ),
    ],
)
def test_pools_that_cannot_download(text: str, why: str) -> None:
    with pytest.raises(PoolError, match=why):
        parse(text)


def test_settings_of_checkpoints() -> None:
    settings = Settings()
    assert (settings.models_hub, settings.models_mirror, settings.models_token) == ("huggingface", "", "")
