"""Process groups for the layouts of one group of ranks.

Rank order within a layout is ``[replica][cfg][ring][ulysses]``: neighbours share a sequence by all-to-all, because that
exchange is the heaviest; a ring passes its blocks between such neighbourhoods. A layout's groups are made when it is
first used, which is the same job on all ranks, so that all ranks make all groups in the same order.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shared.messages import Layout
from workers.engine.parallel.collective import collective
from workers.engine.parallel.guard import Guard


class Place:
    """Where a rank stands in one layout; a group is None where that degree is 1.

    Attributes:
        cfg_group, cfg_index: the halves of guidance, and which this rank computes.
        sequence_group: the ranks that hold one sequence, in the order of its parts.
        ulysses_group, ring_group: those of them that share heads, and that pass blocks on.
        guard: of the ranks that hold one sequence.
    """

    cfg_group: dist.ProcessGroup | None = None
    cfg_index: int = 0
    sequence_group: dist.ProcessGroup | None = None
    ulysses_group: dist.ProcessGroup | None = None
    ring_group: dist.ProcessGroup | None = None
    guard: Guard | None = None


class Mesh:
    """All places of one rank.

    Args:
        kind: device kind of the default process group.
        world: ranks in the group.
    """

    def __init__(self, kind: str, world: int) -> None:
        self._kind, self.world = kind, world
        self.rank = dist.get_rank() if world > 1 else 0
        self.everyone = dist.group.WORLD if world > 1 else None
        self._places: dict[tuple[int, int, int], Place] = {}
        self._flat: DeviceMesh | None = None

    def place(self, layout: Layout) -> Place:
        """This rank's place in that layout; collective the first time."""
        key = (layout.cfg, layout.ulysses, layout.ring)
        if key not in self._places:
            self._places[key] = self._make(layout)
        return self._places[key]

    def _make(self, layout: Layout) -> Place:
        place, sequence = Place(), layout.ulysses * layout.ring
        if layout.cfg * sequence == 1:
            return place
        replicas = self.world // (layout.cfg * sequence)
        outer = self._mesh(replica=replicas, cfg=layout.cfg, sequence=sequence)
        if layout.cfg > 1:
            place.cfg_group = outer.get_group("cfg")
            place.cfg_index = dist.get_rank(place.cfg_group)
        if sequence > 1:
            place.sequence_group = outer.get_group("sequence")
            place.guard = Guard(self._on_host(place.sequence_group, sequence))
        if layout.ulysses > 1 and layout.ring > 1:
            inner = self._mesh(outer=replicas * layout.cfg, ring=layout.ring, ulysses=layout.ulysses)
            place.ring_group, place.ulysses_group = inner.get_group("ring"), inner.get_group("ulysses")
        elif layout.ring > 1:
            place.ring_group = place.sequence_group
        else:
            place.ulysses_group = place.sequence_group
        return place

    def _mesh(self, **degrees: int) -> DeviceMesh:
        return init_device_mesh(self._kind, tuple(degrees.values()), mesh_dim_names=tuple(degrees))

    def _on_host(self, group: dist.ProcessGroup, size: int) -> dist.ProcessGroup:
        """A group of gloo with the same ranks; every rank makes all of them, in the same order."""
        if dist.get_backend(group) == "gloo":
            return group
        blocks = [list(range(first, first + size)) for first in range(0, self.world, size)]
        mine: dist.ProcessGroup = dist.new_subgroups_by_enumeration(blocks, backend="gloo")[0]
        return mine

    def share(self, tensor: Tensor) -> None:
        """Rank 0's tensor on every rank, in place. Collective."""
        with collective():
            dist.broadcast(tensor, 0, group=self.everyone)

    def flat(self) -> DeviceMesh:
        """All ranks in one dimension, for sharded weights; collective the first time."""
        if self._flat is None:
            self._flat = init_device_mesh(self._kind, (self.world,), mesh_dim_names=("shard",))
        return self._flat
