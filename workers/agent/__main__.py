"""``python -m workers.agent``: the worker of one pool, whose file ``GENFLEET_POOL`` names.

Exit status: 0 after SIGTERM or SIGINT, 1 for anything else, with one line on stderr that says what.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import prometheus_client
import uvloop

from shared import environment, garbage, nats_bus, settings, telemetry
from shared.clock import SystemClock
from shared.errors import GenfleetError, SettingsError
from shared.grants import BY_GRANTS
from shared.settings import Settings
from shared.stores import open_artifacts
from workers import pool as pools
from workers.agent.agent import Agent, fresh_incarnation
from workers.agent.granted import GrantedStore
from workers.agent.metrics import AgentMetrics
from workers.agent.process import LocalLauncher
from workers.agent.pulling import HubPulls
from workers.agent.spanning import SpanningLauncher, on_one_node
from workers.hub.repositories import search_path
from workers.pool import Pool


def worker_name(given: Settings, pool: Pool, host: str) -> str:
    """The worker's name: the setting, or pool and host, as far as a name may hold them."""
    if given.worker:
        return given.worker
    return re.sub(r"[^a-z0-9]+", "-", f"{pool.name}-{host}".lower()).strip("-")[:64]


def private_folder(given: Settings, worker: str) -> Path:
    """This worker's folder for sockets, jobs' files and logs, without what an earlier start left behind."""
    parent = Path(given.runtime_dir) if given.runtime_dir else Path(given.data_dir) / "run"
    folder = (parent / worker).absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in (*folder.glob("group-*"), folder / "jobs"):
        shutil.rmtree(left, ignore_errors=True)
    return folder


def serve_metrics(given: Settings, metrics: AgentMetrics) -> None:
    """Answer ``/metrics`` in a thread of its own, if a port is set.

    Raises:
        SettingsError: nobody can listen there.
    """
    if not given.worker_metrics_port:
        return
    try:
        prometheus_client.start_http_server(given.worker_metrics_port, given.metrics_host, metrics.registry)
    except OSError as error:
        where = f"{given.metrics_host}:{given.worker_metrics_port}"
        raise SettingsError(f"GENFLEET_WORKER_METRICS_PORT: cannot listen on {where}: {error}") from error


async def serve(given: Settings, pool: Pool, pool_path: Path) -> None:
    """Run the agent until it is told to go."""
    worker = worker_name(given, pool, socket.gethostname())
    incarnation = fresh_incarnation()
    folder = await asyncio.to_thread(private_folder, given, worker)
    metrics = AgentMetrics()
    serve_metrics(given, metrics)
    by_grants = given.artifacts == BY_GRANTS
    artifacts = GrantedStore() if by_grants else await asyncio.to_thread(open_artifacts, given)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    connecting = asyncio.ensure_future(nats_bus.connect(given, name=f"worker-{worker}", guest=worker))
    waiting = asyncio.ensure_future(stopped.wait())
    await asyncio.wait({connecting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not connecting.done():
        connecting.cancel()
        return
    bus = await connecting
    local = LocalLauncher(on_one_node(pool), pool_path, folder / "logs", f"{worker}.{incarnation}")
    launcher = SpanningLauncher(pool, local) if pool.nodes > 1 else local
    try:
        if isinstance(launcher, SpanningLauncher):
            await launcher.open()
        agent = Agent(
            bus,
            artifacts,
            pool,
            given,
            SystemClock(),
            worker=worker,
            incarnation=incarnation,
            launcher=launcher,
            runtime_dir=folder,
            metrics=metrics,
            pulls=HubPulls(pool, os.environ) if pool.download else None,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.stop)
        if stopped.is_set():
            agent.stop()
        garbage.rarely()
        await agent.run()
    finally:
        if isinstance(launcher, SpanningLauncher):
            await launcher.close()
        if isinstance(artifacts, GrantedStore):
            await artifacts.close()
        await bus.close()


def main() -> None:
    """Read settings and pool, and serve."""
    try:
        given = settings.load()
        if not given.pool:
            raise SettingsError("GENFLEET_POOL must name the pool's file")
        pool_path = Path(given.pool).absolute()
        pool = pools.read(pool_path)
        telemetry.configure("worker", given)
        # Where ranks look for a checkpoint by its name; they get none of the agent's settings.
        os.environ["MODEL_CKPT_DIR"] = ":".join(map(str, search_path(given, os.environ)))
        for line in environment.advice(os.environ, of_pool=True):
            telemetry.log(__name__).warning("environment_name_does_nothing", advice=line)
        uvloop.run(serve(given, pool, pool_path))
    except GenfleetError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
