"""How rank 0 leads the other ranks of a group.

Everything goes over a gloo group of its own, on every kind of device, as msgpack bytes in uint8 tensors: nothing is
ever unpickled. Between jobs the others wait for a command; so that a dead rank is noticed and no collective's timeout
runs out, rank 0 sends ``Beat`` about once a second and all ranks answer it. Within a job every step starts with a
``gate``: one small all-reduce that tells all ranks whether rank 0 wants to stop and whether any of them failed.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist
from msgspec import Struct

from shared.messages import Failure, JobRequest, Layout
from workers.engine.errors import PeersLost
from workers.engine.media import Clip, Picture

#: A rank that is silent this long in a collective of the control group is lost.
TIMEOUT_S = 600.0


class Work(Struct, frozen=True, tag="work"):
    """Do this job, in that layout, with those pictures and clips."""

    request: JobRequest
    layout: Layout
    pictures: dict[str, Picture]
    clips: dict[str, Clip] = {}


class Beat(Struct, frozen=True, tag="beat"):
    """Nothing to do; answer."""


class Leave(Struct, frozen=True, tag="leave"):
    """The group ends in good order."""


Command = Work | Beat | Leave
_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_failures: msgspec.msgpack.Decoder[Failure] = msgspec.msgpack.Decoder(Failure)


class Lockstep:
    """The control group as one rank sees it.

    Args:
        rank: of this process.
        world: ranks in the group; with 1 nothing is sent.
        timeout_s: of each collective.
    """

    def __init__(self, rank: int, world: int, timeout_s: float = TIMEOUT_S) -> None:
        self.rank, self.world = rank, world
        self._group: dist.ProcessGroup | None = None
        if world > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def lead(self, command: Command) -> None:
        """Rank 0: send a command. Every ``Beat`` waits for all ranks' answer.

        Raises:
            PeersLost: a rank is gone.
        """
        if self._group is None:
            return
        self._share(_encoder.encode(command), 0)
        if isinstance(command, Beat):
            self.gate(False, None)

    def follow(self) -> Command:
        """Other ranks: the next command; a ``Beat`` is answered before it is returned.

        Raises:
            PeersLost: rank 0 is gone.
        """
        command = _commands.decode(self._share(b"", 0))
        if isinstance(command, Beat):
            self.gate(False, None)
        return command

    def gate(self, stop: bool, failure: Failure | None) -> tuple[bool, Failure | None]:
        """All ranks learn whether rank 0 wants to stop, and the failure of the lowest rank that has one.

        Raises:
            PeersLost: a rank is gone.
        """
        if self._group is None:
            return stop, failure
        said = torch.tensor(
            [int(stop and self.rank == 0), self.world - self.rank if failure is not None else 0], dtype=torch.int32
        )
        try:
            dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group)
        except RuntimeError as error:
            raise PeersLost(str(error)) from error
        stopped, failed = (int(value) for value in said)
        if not failed:
            return bool(stopped), None
        lowest = self.world - failed
        told = self._share(_encoder.encode(failure) if failure is not None and self.rank == lowest else b"", lowest)
        return bool(stopped), _failures.decode(told)

    def smallest(self, value: int) -> int:
        """The smallest of what the ranks say, on every rank.

        Raises:
            PeersLost: a rank is gone.
        """
        if self._group is None:
            return value
        said = torch.tensor([value], dtype=torch.int64)
        try:
            dist.all_reduce(said, op=dist.ReduceOp.MIN, group=self._group)
        except RuntimeError as error:
            raise PeersLost(str(error)) from error
        return int(said[0])

    def _share(self, data: bytes, source: int) -> bytes:
        """The source rank's bytes, on every rank."""
        size = torch.tensor([len(data)], dtype=torch.int64)
        try:
            dist.broadcast(size, src=source, group=self._group)
            if self.rank == source:
                body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            else:
                body = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(body, src=source, group=self._group)
        except RuntimeError as error:
            raise PeersLost(str(error)) from error
        return body.numpy().tobytes()
