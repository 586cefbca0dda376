"""A fleet without a supervisor: one broker, and two of everything else, each service behind a network of its own.

A blow falls on one process (or its network) and is put right by itself after its time; several may overlap, as long as
they fall on different ones.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, assert_never

import httpx
import psutil

from deploy import nats
from deploy.nats_credentials import Credentials
from deploy.ports import free_port
from shared.settings import Settings, to_environ
from tests.faults.plan import Blow, Fault, Target
from tests.faults.processes import MARK, Owned, marked, ranks_of
from tests.support.proxy import Proxy

LEASE_S = 2.0
POOL = """\
model = "dummy"
name = "{name}"
device = "cpu"
capacity = {capacity}

[limits]
load_timeout_s = 20
silence_timeout_s = 3
stop_grace_s = 3
"""
#: For a target to be there to be hit.
PRESENT_S = 60.0
#: From SIGTERM to the end of a service.
CLOSE_S = 20.0


class BareFleet:
    """The processes of one run, all in ``folder``; an asynchronous context manager that leaves nothing running.

    Attributes:
        urls: of the gateways.
        settings: that lead straight to the broker, past every proxy.
        struck: how many blows of each kind fell.
        faults_found: what was wrong with the processes themselves, in sentences.
    """

    def __init__(self, folder: Path, *, gateways: int = 2, schedulers: int = 2, pools: int = 3) -> None:
        self.folder = folder
        self.run = secrets.token_hex(8)
        self.struck: Counter[tuple[Target, Blow]] = Counter()
        self.faults_found: list[str] = []
        self.urls: list[str] = []
        self._counts = {Target.GATEWAY: gateways, Target.SCHEDULER: schedulers, Target.AGENT: pools}
        self._owned: dict[Target, list[Owned]] = {target: [] for target in Target if target is not Target.RANK}
        self._proxies: dict[str, Proxy] = {}
        self._repairs: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._exit = AsyncExitStack()
        self._nats_port = free_port("127.0.0.1")
        self._credentials = Credentials(folder / "nats")
        self._credentials.make(f"pool-{number}" for number in range(pools))
        self.settings = Settings(
            nats_url=f"nats://127.0.0.1:{self._nats_port}",
            nats_nkey=self._seed("admin"),
            artifacts=str(folder / "artifacts"),
            lease_s=LEASE_S,
            assign_timeout_s=1.0,
            shutdown_grace_s=2.0,
            drain_grace_s=0.0,
            # As soon as may be, so that a long run sees jobs archived under fire too.
            archive_after_s=120.0,
            # What is left at the end of a run are mostly jobs that were made to fail: workers would rest for minutes.
            quarantine_s=2.0,
            # The receiver of all webhooks is in the harness; the claim of a gateway that was killed runs out soon.
            secret=secrets.token_hex(32),
            webhook_networks="127.0.0.0/8",
            webhook_timeout_s=3.0,
        )

    async def __aenter__(self) -> Self:
        try:
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            await self._start_broker()
            for number in range(self._counts[Target.GATEWAY]):
                port = free_port("127.0.0.1")
                self.urls.append(f"http://127.0.0.1:{port}")
                await self._start_service(Target.GATEWAY, number, "gateway", {"GENFLEET_PORT": str(port)})
            for number in range(self._counts[Target.SCHEDULER]):
                await self._start_service(Target.SCHEDULER, number, "scheduler", {})
            for number in range(self._counts[Target.AGENT]):
                # One job at once, as a torch group does, or three: then one blow hits several.
                given = self._pool(f"pool-{number}", 1 + 2 * (number % 2))
                await self._start_service(Target.AGENT, number, "workers.agent", given)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Services first, the broker last. What does not end in time, or stays behind, is killed and noted."""
        self.heal()
        brokers = self._owned[Target.NATS]
        services = [owned for target, some in self._owned.items() if target is not Target.NATS for owned in some]
        codes = await asyncio.gather(*(owned.close(CLOSE_S) for owned in services))
        await asyncio.gather(*(broker.close(CLOSE_S) for broker in brokers))
        for owned, code in zip(services, codes, strict=True):
            if code != 0:
                how = "had to be killed" if code is None else f"ended with {code}"
                self.faults_found.append(f"{owned.name} {how} after SIGTERM:\n{owned.last_words()}")
        for owned in (*services, *brokers):
            if owned.own_ends:
                times = f"{len(owned.own_ends)} times, with {sorted(set(owned.own_ends))}"
                self.faults_found.append(f"{owned.name} ended by itself {times}, see {owned.log}")
            if owned.refusals:
                self.faults_found.append(f"{owned.name} could not be started again: {owned.refusals[-1]}")
        for left in await asyncio.to_thread(marked, self.run):
            with suppress(psutil.Error):
                self.faults_found.append(f"left behind: {' '.join(left.cmdline())}")
                left.kill()
        await self._exit.aclose()

    # --- starting --------------------------------------------------------------------------------------------------

    async def _start_broker(self) -> None:
        config = self.folder / "nats.conf"
        accounts = self._credentials.accounts_file.read_text()
        store = self.folder / "jetstream"
        config.write_text(nats.config(port=self._nats_port, store_dir=store, accounts=accounts))
        binary = await asyncio.to_thread(nats.ensure, Path(".tools"))
        await self._own(Target.NATS, "nats", [str(binary), "-c", str(config)], {})

    async def _start_service(self, target: Target, number: int, module: str, more: Mapping[str, str]) -> None:
        name = f"{target}-{number}"
        proxy = await self._exit.enter_async_context(Proxy(self._nats_port))
        self._proxies[name] = proxy
        given = {
            **to_environ(self.settings),
            "GENFLEET_NATS_URL": f"nats://127.0.0.1:{proxy.port}",
            "GENFLEET_NATS_NKEY": self._seed(str(target), more.get("GENFLEET_WORKER", "")),
            **more,
        }
        await self._own(target, name, [sys.executable, "-m", module], given)

    def _seed(self, service: str, worker: str = "") -> str:
        """What that service shows the broker, and no other."""
        return self._credentials.seed_file(service, worker).read_text().strip()

    def _pool(self, name: str, capacity: int) -> dict[str, str]:
        path = self.folder / f"{name}.toml"
        path.write_text(POOL.format(name=name, capacity=capacity))
        runtime = self.folder / "run" / name
        runtime.mkdir(parents=True)
        return {"GENFLEET_POOL": str(path), "GENFLEET_WORKER": name, "GENFLEET_RUNTIME_DIR": str(runtime)}

    async def _own(self, target: Target, name: str, command: list[str], env: Mapping[str, str]) -> None:
        base = {key: value for key, value in os.environ.items() if not key.startswith("GENFLEET_")}
        owned = Owned(name, command, {**base, **env, MARK: self.run}, self.folder / "logs" / f"{name}.log")
        self._owned[target].append(owned)
        await owned.start()

    async def ready(self, bound_s: float = 120.0) -> None:
        """Wait until every gateway answers and every worker is idle."""
        async with asyncio.timeout(bound_s), httpx.AsyncClient(timeout=5) as client:
            for url in self.urls:
                await _sees_workers(client, url, self._counts[Target.AGENT])

    # --- blows -----------------------------------------------------------------------------------------------------

    async def strike(self, fault: Fault) -> None:
        """Let the blow fall as soon as its target is there; it is put right by itself afterwards.

        Raises:
            TimeoutError: the target does not come back from an earlier blow.
        """
        async with asyncio.timeout(PRESENT_S):
            if fault.target is Target.RANK:
                await self._strike_rank(fault)
            else:
                some = self._owned[fault.target]
                owned = some[fault.which % len(some)]
                await owned.up.wait()
                self._strike_process(owned, fault)
        self.struck[fault.target, fault.blow] += 1

    def _strike_process(self, owned: Owned, fault: Fault) -> None:
        match fault.blow:
            case Blow.KILL:
                owned.kill(fault.lasts_s)
            case Blow.STOP:
                owned.stop()
                self._repair(fault.lasts_s, owned.carry_on)
            case Blow.BLACK_HOLE:
                self._proxies[owned.name].black_hole()
                self._repair(fault.lasts_s, self._proxies[owned.name].heal)
            case Blow.RESET:
                self._proxies[owned.name].reset()
                self._repair(fault.lasts_s, self._proxies[owned.name].heal)
            case _ as never:
                assert_never(never)

    async def _strike_rank(self, fault: Fault) -> None:
        agents = self._owned[Target.AGENT]
        turn = fault.which
        while not (ranks := ranks_of(agents[turn % len(agents)])):
            turn += 1
            await asyncio.sleep(0.05)
        rank = ranks[0]
        with suppress(psutil.NoSuchProcess):
            if fault.blow is Blow.KILL:
                rank.kill()
                return
            rank.suspend()
            self._repair(fault.lasts_s, lambda: _resume(rank))

    def _repair(self, after_s: float, put_right: Callable[[], None]) -> None:
        async def repair() -> None:
            await asyncio.sleep(after_s)
            put_right()

        task = asyncio.create_task(repair())
        self._repairs[task] = put_right
        task.add_done_callback(lambda _: self._repairs.pop(task, None))

    def heal(self) -> None:
        """Put right now what would be later; what was killed is started again in its time."""
        for task, put_right in list(self._repairs.items()):
            task.cancel()
            put_right()


def _resume(rank: psutil.Process) -> None:
    with suppress(psutil.Error):
        rank.resume()


async def _sees_workers(client: httpx.AsyncClient, url: str, count: int) -> None:
    while True:
        with suppress(httpx.TransportError):
            answer = await client.get(f"{url}/v1/workers")
            if answer.status_code == 200:
                states = [worker["state"] for worker in answer.json()["data"]]
                if states.count("idle") >= count:
                    return
        await asyncio.sleep(0.1)
