"""From a pool file to a loaded, warm model: on every rank of a group, or in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shared.messages import ModelCard
from workers.engine import catalog, checkpoint
from workers.engine.devices.base import Device
from workers.engine.families.base import Family
from workers.engine.parallel.mesh import Mesh
from workers.pool import Pool

if TYPE_CHECKING:
    from workers.engine.loading import OnLoading, Sharding

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def card_of(pool: Pool) -> ModelCard:
    """The card of the pool's model, from its checkpoint's configs: no weights are read.

    Raises:
        CannotLoad: see ``checkpoint.read``.
    """
    folder, catalogued = catalog.locate(pool.model)
    return catalog.served_card(pool, checkpoint.read(folder), catalogued)


def open_model(pool: Pool, device: Device, mesh: Mesh, on_loading: OnLoading = lambda *_: None) -> Family:
    """The pool's model, loaded on this rank. Not collective but for the process groups of the default layout.

    Raises:
        CannotLoad: see ``checkpoint.read`` and ``loading.load``.
    """
    folder, catalogued = catalog.locate(pool.model)
    found = checkpoint.read(folder)
    card = catalog.served_card(pool, found, catalogued)
    # After the folder was read, because it takes seconds: a checkpoint that cannot be served is named at once.
    from workers.engine.acceleration import offload
    from workers.engine.families.wan import Wan
    from workers.engine.loading import load

    dtype = _DTYPES.get(pool.dtype, device.dtype)
    on_host = offload.on_host(pool.offload, 2 if "transformer_2" in found.parts else 1)
    text_on_host = pool.text_encoder == "cpu"
    if text_on_host:
        on_host = (*on_host, "text_encoder")
    components = load(
        found,
        device.torch_device,
        dtype,
        on_loading,
        _sharding(pool, mesh),
        on_host,
        without_text=text_on_host and mesh.rank > 0,
    )
    return Wan(found, components, card, pool, device, mesh)


def _sharding(pool: Pool, mesh: Mesh) -> Sharding | None:
    """Whose weights are shared out over the ranks; all ranks ask at the same time."""
    from workers.engine.loading import Sharding

    wish = pool.layout
    if mesh.world == 1 or not (wish.dit_fsdp or wish.t5_fsdp):
        return None
    return Sharding(mesh.flat(), wish.dit_fsdp, wish.t5_fsdp)
