"""One machine's fleet: nats-server, gateway, scheduler and workers as child processes, watched over until the stop.

    start: lock the data folder ─▶ files and ports ─▶ all processes at once ─▶ /readyz and every worker ─▶ ready
    life:  a process that ends is started again (``deploy.process``), the rest goes on meanwhile
    stop:  gateway and workers ─▶ scheduler ─▶ nats-server, each with its grace, then by force

The services find each other through the bus and wait for it by themselves, so they are all started at the same time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from deploy import nats
from deploy.datafolder import DataFolder, kept, write_private
from deploy.nats_credentials import Credentials
from deploy.plan import Places, PlanError, Programs, address, plan, pool_files, sized, worker_names
from deploy.ports import PortInUse, check_free, free_port
from deploy.process import Child, Ended, last_lines
from shared.clock import Clock, SystemClock
from shared.errors import GenfleetError
from shared.exposure import check_listening
from shared.permissions import FLEET
from shared.settings import Settings
from workers import detection

#: A process that ends so often in a row before the fleet was ever ready will not come up.
HOPELESS = 5
#: Gateway and broker are up within this time on any machine, or never. Workers may load their model for long.
SERVICES_S = 60.0
_POLL_S = 0.1


class UpError(GenfleetError):
    """The fleet could not be started."""


class _Worker(Struct):
    id: str
    state: str
    detail: str = ""
    loaded: float = 1.0


class _Workers(Struct):
    data: list[_Worker]


@dataclass(frozen=True, slots=True)
class _Standing:
    """What is known of one worker: ``serves``, or the reason why it never will."""

    serves: bool = False
    hopeless: str = ""


class LocalFleet:
    """A fleet on this machine, as an async context manager: inside, it is ready and supervised.

    Args:
        settings: as given; port 0 takes a free one.
        say: is told, in a line, what a person at a terminal wants to know.

    Attributes:
        url: where the gateway answers.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None], clock: Clock | None = None) -> None:
        self._given = settings
        self._say = say
        self._clock = clock or SystemClock()
        self._children: list[Child] = []
        self._ends: Counter[str] = Counter()
        self._folder = DataFolder(settings.data_dir)
        self._admin_key = ""
        self.url = ""

    @property
    def places(self) -> Places:
        """Where it keeps what it has."""
        return self._folder.places

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            await self._until_ready()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- start ---------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Make the files, take the ports, start the processes.

        Raises:
            FolderError, CredentialsError, PlanError, PortInUse, nats.NatsServerMissing: it cannot be.
            SettingsError: everybody in the network could do everything (``shared.exposure``).
        """
        check_listening(self._given)
        settings = replace(self._given, model=_model(self._given.model))
        settings = sized(settings, detection.choose(settings.device, os.environ))
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        pools = pool_files(settings, cores)
        self._folder.open()
        settings = replace(settings, port=_port(settings), nats_port=settings.nats_port or free_port("127.0.0.1"))
        check_free("127.0.0.1", settings.nats_port)
        server = await asyncio.to_thread(nats.ensure, self.places.data / "tools")
        await asyncio.to_thread(self._make_broker, settings)
        write_private(self.places.secret, settings.secret or kept(self.places.secret))
        if not settings.keyless:
            self._admin_key = settings.admin_key or kept(self.places.admin_key)
            write_private(self.places.admin_key, self._admin_key)
            self._say(f"requests need a key; the admin's is in {self.places.admin_key}")
        for name, text in pools.items():
            (self.places.pools / f"{name}.toml").write_text(text, encoding="utf-8")
        programs = Programs(nats_server=server, python=Path(sys.executable))
        self.url = "http://" + address(settings)
        self._children = [
            Child(spec, self._clock, self._note_end) for spec in plan(settings, self.places, programs, os.environ)
        ]
        for child in self._children:
            child.start()

    def _make_broker(self, settings: Settings) -> None:
        """The broker's configuration, and what its clients show it: each a seed of its own, unless there is a token."""
        places, accounts = self.places, ""
        if settings.nats_token:
            write_private(places.token, settings.nats_token)
        else:
            credentials, names = Credentials(places.credentials), worker_names(settings)
            credentials.make(names, without=set(credentials.workers()) - set(names))
            accounts = credentials.accounts_file.read_text()
        nats.adopt(places.jetstream, FLEET if accounts else nats.GLOBAL)
        config = nats.config(
            port=settings.nats_port, token=settings.nats_token, accounts=accounts, store_dir=places.jetstream
        )
        write_private(places.nats_config, config)

    # --- until it is ready ---------------------------------------------------------------------------------------

    async def _until_ready(self) -> None:
        """Return when the gateway is ready and every worker that ever can serves.

        Raises:
            UpError: a service does not come up, or no worker can ever serve.
        """
        told: dict[str, str] = {}
        standing = {name: _Standing() for name in worker_names(self._given)}
        headers = {"Authorization": f"Bearer {self._admin_key}"} if self._admin_key else {}
        async with httpx.AsyncClient(base_url=self.url, timeout=5.0, trust_env=False, headers=headers) as client:
            began, answers = self._clock.monotonic(), False
            while not all(one.serves or one.hopeless for one in standing.values()):
                await self._clock.sleep(_POLL_S)
                workers = await _workers(client)
                answers = answers or workers is not None
                self._check_services()
                if not answers and self._clock.monotonic() - began > SERVICES_S:
                    raise UpError(f"the gateway is not ready after {SERVICES_S:.0f} s; see {self.places.logs}")
                for worker in workers or ():
                    if worker.id in standing:
                        standing[worker.id] = _judged(worker)
                        self._tell_worker(worker, told)
                for name, one in standing.items():
                    if not one.serves and self._ends[name] >= HOPELESS:
                        standing[name] = _Standing(hopeless=self._last_words(name))
        if not any(one.serves for one in standing.values()):
            reasons = "\n".join(f"{name}: {one.hopeless}" for name, one in standing.items())
            raise UpError(f"no worker can serve {self._given.model}.\n{reasons}")
        for name, one in standing.items():
            if one.hopeless:
                self._say(f"{name} cannot serve, the others can: {one.hopeless}")

    def _check_services(self) -> None:
        for name in ("nats", "gateway", "scheduler"):
            if self._ends[name] >= HOPELESS:
                raise UpError(f"{name} does not come up: {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        log = self.places.logs / f"{name}.log"
        return f"it ended {self._ends[name]} times in a row; the end of {log}:\n{last_lines(log)}"

    def _tell_worker(self, worker: _Worker, told: dict[str, str]) -> None:
        """A worker's news, once."""
        news = worker.state
        if worker.state == "starting" and worker.loaded > 0:
            news = f"loading {self._given.model}"
        if worker.state != "broken" and told.get(worker.id) != news:
            told[worker.id] = news
            self._say(f"{worker.id}: {news}")

    # --- life and stop -------------------------------------------------------------------------------------------

    def _note_end(self, end: Ended) -> None:
        self._ends[end.name] = end.in_a_row
        if end.in_a_row <= HOPELESS:
            when = f"in {end.delay_s:.1f} s" if end.delay_s else "now"
            self._say(f"{end.name} {end.how}; it is started again {when}")
        elif end.in_a_row == HOPELESS + 1:
            self._say(f"{end.name} keeps ending; trying on. Its log: {self.places.logs / f'{end.name}.log'}")

    def pids(self) -> dict[str, int | None]:
        """The process ids by name; None for one that is between two lives."""
        return {child.spec.name: child.pid for child in self._children}

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop everything, in order; with ``at_once`` by force. Idempotent. Returns when no process is left."""
        if at_once:
            await asyncio.gather(*(child.stop(0.0) for child in self._children))
        for rank in sorted({child.spec.stop_rank for child in self._children}):
            await asyncio.gather(*(child.stop() for child in self._children if child.spec.stop_rank == rank))
        self._children = []
        self._folder.close()


async def serve(settings: Settings, say: Callable[[str], None], ready: Callable[[str], Awaitable[None]]) -> None:
    """A fleet from its start until ``ready``, which is awaited with its URL, returns, or until SIGTERM, SIGINT or
    SIGHUP. A second signal stops it by force.

    Raises:
        GenfleetError: it could not be started; says why.
    """
    loop = asyncio.get_running_loop()
    fleet = LocalFleet(settings, say)
    forced: set[asyncio.Task[None]] = set()

    async def live() -> None:
        async with fleet:
            await ready(fleet.url)

    living = asyncio.ensure_future(live())

    def stop() -> None:
        if living.cancelling():
            forced.add(asyncio.ensure_future(fleet.stop(at_once=True)))
        else:
            say("stopping")
            living.cancel()

    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup genfleet up` outlives its terminal
        loop.add_signal_handler(signal.SIGHUP, stop)
    with suppress(asyncio.CancelledError):
        await living


async def _workers(client: httpx.AsyncClient) -> list[_Worker] | None:
    """The workers as the gateway shows them; None while it is not ready."""
    try:
        if (await client.get("/readyz")).status_code != 200:
            return None
        answer = await client.get("/v1/workers")
        return msgspec.json.decode(answer.content, type=_Workers).data if answer.status_code == 200 else None
    except httpx.TransportError:
        return None


def _judged(worker: _Worker) -> _Standing:
    if worker.state in ("idle", "busy"):
        return _Standing(serves=True)
    return _Standing(hopeless=worker.detail or "broken") if worker.state == "broken" else _Standing()


def _model(given: str) -> str:
    """A name as it is, a folder as an absolute path; a slash makes it a folder."""
    if "/" not in given:
        return given
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise PlanError(f"--model {given}: there is no such folder")
    return str(folder)


def _port(settings: Settings) -> int:
    if settings.port == 0:
        return free_port(settings.host)
    try:
        check_free(settings.host, settings.port)
    except PortInUse as error:
        raise PortInUse(f"{error}. Choose another with --port; --port 0 takes a free one") from error
    return settings.port
