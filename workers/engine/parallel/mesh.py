"""Process groups for the layouts of one group of ranks.

Rank order within a layout is ``[replica][cfg][ulysses]``: neighbours share a sequence, because that exchange is the
heaviest. A layout's groups are made when it is first used, which is the same job on all ranks, so that all ranks make
all groups in the same order.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from shared.messages import Layout


class Place:
    """Where this rank stands in one layout: its groups for CFG and Ulysses (None: that degree is 1) and its index."""

    def __init__(self, mesh: DeviceMesh | None, layout: Layout) -> None:
        self.cfg_group = mesh.get_group("cfg") if mesh is not None and layout.cfg > 1 else None
        self.ulysses_group = mesh.get_group("ulysses") if mesh is not None and layout.ulysses > 1 else None
        self.cfg_index = dist.get_rank(self.cfg_group) if self.cfg_group is not None else 0


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
        self._places: dict[tuple[int, int], Place] = {}
        self._flat: DeviceMesh | None = None

    def place(self, layout: Layout) -> Place:
        """This rank's place in that layout; collective the first time."""
        key = (layout.cfg, layout.ulysses)
        if key not in self._places:
            mesh = None
            if layout.cfg * layout.ulysses > 1:
                shape = (self.world // (layout.cfg * layout.ulysses), layout.cfg, layout.ulysses)
                mesh = init_device_mesh(self._kind, shape, mesh_dim_names=("replica", "cfg", "ulysses"))
            self._places[key] = Place(mesh, layout)
        return self._places[key]

    def flat(self) -> DeviceMesh:
        """All ranks in one dimension, for sharded weights; collective the first time."""
        if self._flat is None:
            self._flat = init_device_mesh(self._kind, (self.world,), mesh_dim_names=("shard",))
        return self._flat
