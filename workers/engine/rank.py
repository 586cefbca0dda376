"""What every rank of a group runs: ``python -m workers.engine.rank --link SOCKET --pool POOL.toml`` under torchrun, or
alone for a group of one.

Rank 0 says hello before anything heavy is imported, then all ranks load the model; from then on rank 0's main loop
takes frames from the agent and leads the others. A thread of rank 0 reads the link, so that a cancel arrives while a
job runs, and ends the process at once when the agent is gone. An error outside the points of agreement is written to
``failure.json`` beside the link's socket, by the first rank that has one, and ends the rank, and with it the group.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import queue
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from shared.messages import ModelCard, Reason
from workers import link
from workers.engine import devices
from workers.engine.agent_link import AgentLink
from workers.link import CannotLoad, Hello, Loading, Pulse, Quit, Ready
from workers.pool import Pool
from workers.pool import read as read_pool

if TYPE_CHECKING:
    from workers.engine.devices.base import Device, Kind
    from workers.engine.families.base import Family
    from workers.engine.lockstep import Lockstep

#: Seconds between signs of life while there is nothing to do.
IDLE_BEAT_S = 1.0
_PR_SET_PDEATHSIG = 1


def main(argv: list[str] | None = None) -> int:
    """Entry point; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine.rank")
    parser.add_argument("--link", type=Path, required=True)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--serve", default="", help="the model, of a pool that has several")
    arguments = parser.parse_args(argv)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    _die_with_parent()
    try:
        return serve(rank, world, arguments.link, read_pool(arguments.pool).serving(arguments.serve))
    except Exception as error:
        leave_failure(arguments.link.parent, rank, error)
        raise


def serve(rank: int, world: int, socket_path: Path, pool: Pool) -> int:
    """Be that rank until the group ends."""
    kind = devices.detect(pool.device)
    environment(pool, kind, world)
    agent: AgentLink | None = None
    if rank == 0:
        agent = AgentLink(socket_path)
        agent.send(Hello(pid=os.getpid(), width=world, device=kind, device_name=devices.hardware_name(kind)))
        agent.listen()
    group = open_group(rank, world, kind, pool)
    try:
        family = _load(group.lockstep, group.device, group.mesh, pool, agent)
        if family is None or not warm(family, agent):
            return 1
        memory = group.lockstep.smallest(device_memory(group.device, world))
        if agent is not None:
            agent.send(
                Ready(
                    cards=(family.card,),
                    layouts=family.layouts,
                    others=other_cards(pool),
                    device_memory=memory,
                    acceleration=family.acceleration,
                )
            )
            _lead(family, group.device, group.lockstep, agent)
        else:
            follow(family, group.device, group.lockstep)
    finally:
        group.close()
    return 0


def environment(pool: Pool, kind: Kind, world: int) -> None:
    """What the runtimes read at their import: threads per rank, the pool's devices, its own settings."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = pool.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # Threads that spin at a barrier while others want the core make a step several times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The agent has shown this group its devices, which may be a part of the pool's; by hand the pool's are meant.
    name = devices.visible_env(kind)
    if name and pool.devices:
        os.environ.setdefault(name, ",".join(str(index) for index in pool.devices))
    os.environ.update(pool.env)


class Group:
    """The device, the process groups, and their end."""

    def __init__(self, rank: int, world: int, kind: Kind, pool: Pool) -> None:
        import torch
        import torch.distributed as dist

        from workers.engine.lockstep import Lockstep
        from workers.engine.parallel.mesh import Mesh

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.device = devices.open_device(kind, int(os.environ.get("LOCAL_RANK", rank)))
        self._joined = world > 1
        if self._joined:
            dist.init_process_group(self.device.backend, rank=rank, world_size=world)
        self.lockstep = Lockstep(rank, world, timeout_s=max(60.0, 2 * pool.limits.silence_timeout_s))
        self.mesh = Mesh(kind, world)

    def close(self) -> None:
        """Leave in good order, unless something broke: the others may then be where they cannot be met."""
        import torch.distributed as dist

        if self._joined and sys.exc_info()[0] is None:
            dist.destroy_process_group()


def open_group(rank: int, world: int, kind: Kind, pool: Pool) -> Group:
    """The group as this rank sees it. Collective."""
    return Group(rank, world, kind, pool)


def _load(lockstep: Lockstep, device: Device, mesh: object, pool: Pool, agent: AgentLink | None) -> Family | None:
    """The model, or None if any rank could not load it; the agent has then been told why."""
    from shared.messages import Failure
    from workers.engine.errors import CannotLoad as LoadError
    from workers.engine.opening import open_model
    from workers.engine.parallel.mesh import Mesh

    assert isinstance(mesh, Mesh)

    def on_loading(fraction: float, what: str) -> None:
        if agent is not None:
            agent.send(Loading(fraction=fraction, what=what))

    family: Family | None = None
    failure: Failure | None = None
    try:
        family = open_model(pool, device, mesh, on_loading)
    except LoadError as error:
        failure = Failure(reason=Reason.CANNOT_SERVE, message=str(error))
    _, agreed = lockstep.gate(False, failure)
    if agreed is None:
        return family
    if agent is not None:
        agent.send(CannotLoad(message=agreed.message))
    return None


def warm(family: Family, agent: AgentLink | None) -> bool:
    """Warm the model up; False if the pool asks for what cannot be had here, and then the agent has been told."""
    from workers.engine.errors import CannotLoad as LoadError

    try:
        family.warm_up()
    except LoadError as error:
        if agent is None:
            raise
        agent.send(CannotLoad(message=str(error)))
        return False
    return True


def device_memory(device: Device, world: int) -> int:
    """Bytes of this rank's device; 0 where it does not say. Ranks on the host share its memory."""
    memory = device.memory()
    if memory is None:
        return 0
    return memory.total // world if device.kind == "cpu" else memory.total


def other_cards(pool: Pool) -> tuple[ModelCard, ...]:
    """Cards of the pool's other models, of those whose checkpoints can be read."""
    from workers.engine.errors import CannotLoad as LoadError
    from workers.engine.opening import card_of

    cards = []
    for name in pool.names:
        if name != pool.serve_as:
            try:
                cards.append(card_of(pool.serving(name)))
            except LoadError as error:
                print(f"{name} cannot be served: {error}", file=sys.stderr)
    return tuple(cards)


def _lead(family: Family, device: Device, lockstep: Lockstep, agent: AgentLink) -> None:
    """Rank 0's main loop."""
    from workers.engine import attempt
    from workers.engine.lockstep import Beat, Leave, Work
    from workers.engine.progress import Pace

    pace = Pace()
    while True:
        try:
            frame = agent.frames.get(timeout=IDLE_BEAT_S)
        except queue.Empty:
            lockstep.lead(Beat())
            agent.send(Pulse(step_s=pace.last_step_s))
            continue
        if isinstance(frame, Quit):
            lockstep.lead(Leave())
            return
        prepared = attempt.prepare(family, frame)
        if isinstance(prepared, link.Refused):
            answer: attempt.Answer = prepared
        else:
            lockstep.lead(Work(prepared.request, prepared.layout, prepared.pictures, prepared.clips))
            try:
                answer = attempt.lead(
                    family,
                    device,
                    lockstep,
                    frame,
                    prepared,
                    pace,
                    agent.send,
                    partial(agent.is_cancelled, frame),
                )
            except Exception as error:
                if lockstep.world > 1:
                    raise
                family.forget()
                answer = attempt.broke(device, frame, error)
        agent.answered(frame)
        agent.send(answer)


def follow(family: Family, device: Device, lockstep: Lockstep) -> None:
    """The main loop of the other ranks."""
    from workers.engine.course import Course, Silent
    from workers.engine.errors import AgreedFailure, StoppedAt
    from workers.engine.families.base import Job
    from workers.engine.lockstep import Beat, Leave, Work

    while True:
        command = lockstep.follow()
        match command:
            case Work(request=request, layout=layout, pictures=pictures, clips=clips):
                course = Course(lockstep, Silent(), device.is_out_of_memory)
                try:
                    family.run(Job(request, layout, pictures, None, clips), course)
                except (StoppedAt, AgreedFailure):
                    family.forget()
            case Beat():
                continue
            case Leave():
                return
            case _:
                assert_never(command)


def leave_failure(folder: Path, rank: int, error: Exception) -> None:
    """Write why this rank ends, unless another rank already did: the first one knows, the others lost a peer."""
    from workers.engine import attempt
    from workers.engine.errors import JobError, NoMemoryInExchange, PeersLost

    reason = Reason.GROUP_LOST if isinstance(error, PeersLost) else Reason.ENGINE_ERROR
    if isinstance(error, JobError):
        reason = Reason(error.reason)
    elif isinstance(error, NoMemoryInExchange):
        reason = Reason.OUT_OF_MEMORY
    elif "torch" in sys.modules:
        from workers.engine.devices import verdict

        if verdict.is_out_of_memory(error):
            reason = Reason.OUT_OF_MEMORY
        elif verdict.is_sticky(error):
            reason = Reason.DEVICE_ERROR
    told = json.dumps({"rank": rank, "reason": reason, "message": attempt.first_line(error)})
    draft = folder / f"failure.{rank}.tmp"
    try:
        draft.write_text(told)
        os.link(draft, folder / "failure.json")
    except OSError:
        pass  # another rank was first, or the folder is gone with the agent
    finally:
        draft.unlink(missing_ok=True)


def _die_with_parent() -> None:
    """Linux: be killed when torchrun, or the agent, dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
