"""Groups of gloo ranks for tests: one per width, each running all its cases.

A case is a module-level function ``case(group: Ranks, *args) -> result``; it runs on every rank at the same time, and
the test gets the results in rank order. The ranks are forked from one server that has imported the engine once.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_PRELOAD = ["workers.engine.families.wan", "workers.engine.loading", "workers.engine.opening"]


class Ranks(NamedTuple):
    """What a case is told of its group."""

    rank: int
    world: int


class CaseFailed(AssertionError):
    """A case failed on some rank; the message holds the tracebacks."""


class Gloo:
    """One running group.

    Args:
        world: ranks.
        bound_s: seconds that one case may take.
    """

    def __init__(self, world: int, bound_s: float = 300.0) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        os.environ["OMP_NUM_THREADS"] = "1"
        self.world, self._bound_s = world, bound_s
        port = _free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, case: Callable[Concatenate[Ranks, P], T], *args: P.args, **kwargs: P.kwargs) -> list[T]:
        """The case's results, by rank.

        Raises:
            CaseFailed: it raised on a rank, or did not end in time; the group is not usable after that.
        """
        for pipe in self._pipes:
            pipe.send((case, args, kwargs))
        results: list[Any] = []
        failures: list[str] = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(self._bound_s if not failures else 5.0):
                failures.append(f"rank {rank} did not answer")
                continue
            try:
                fine, result = pipe.recv()
            except EOFError:
                failures.append(f"rank {rank} died")
                continue
            if fine:
                results.append(result)
            else:
                failures.append(f"rank {rank}:\n{result}")
        if failures:
            self.close()
            raise CaseFailed("\n".join(failures))
        return results

    def close(self) -> None:
        """End the ranks."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(rank: int, world: int, port: int, pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    while True:
        try:
            case, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send((True, case(Ranks(rank, world), *args, **kwargs)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
