"""Tensors out of mapped files, piece by piece, into a model that was built without weights.

A model on one rank gets its tensors whole; one whose weights are shared out over the ranks (``Shards``) is shared out
while it has none, and then each rank reads its own rows only. Either way the host holds no more than the piece that is
being copied, beside what the files' pages take in the kernel's cache, which the ranks of a machine have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from workers.engine import pickled
from workers.engine.errors import CannotLoad
from workers.engine.parallel import fsdp
from workers.engine.parts import Part, Stored

_ALIGNMENT = 64
#: Of weights. Those in 8 bits mean nothing without the scales that each tool keeps elsewhere.
_TYPES = ("BF16", "F16", "F32", "F64")

#: Rows ``start`` to ``stop`` of a stored tensor's dimension 0, in its shape.
Pieces = Callable[[Stored, int, int], Tensor]


class Shards:
    """How one model's weights are shared out over all ranks.

    Args:
        mesh: all ranks in one dimension.
        blocks: the sub-modules that are gathered by themselves.
    """

    def __init__(self, mesh: DeviceMesh, blocks: Callable[[Any], Iterable[nn.Module]]) -> None:
        self.mesh, self.blocks = mesh, blocks


def fill(
    model: nn.Module,
    part: Part,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    told: Callable[[int], None],
    shards: Shards | None = None,
) -> None:
    """Give the model, whose parameters are on the meta device, the part's tensors, on ``device``.

    Args:
        dtype_of: by the tensor's name.
        told: called with the bytes of each tensor that was read.
        shards: if its weights are to be shared out. Not collective.

    Raises:
        CannotLoad: as ``check``, or a file cannot be read.
    """
    check(model, part)
    _cast(model, dtype_of)
    _tie(model, part)
    model.requires_grad_(False)
    if shards is not None:
        fsdp.shard(model, shards.blocks(model), shards.mesh)
    filled: dict[str, Tensor] = {}
    made: dict[Stored, Tensor] = {}
    with opened(tensor.file for tensor in part.tensors.values()) as pieces:
        empty = model.state_dict()
        for name, stored in part.tensors.items():
            if stored not in made:
                try:
                    made[stored] = _made(empty[name], stored, device, dtype_of(name), pieces)
                except (OSError, RuntimeError) as error:
                    if isinstance(error, torch.OutOfMemoryError):
                        raise
                    raise CannotLoad(f"{stored.file}: {error}") from error
                told(stored.size)
            filled[name] = made[stored]
    model.load_state_dict(filled, strict=True, assign=True)
    _tie(model, part)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[name] = buffer.to(device)


def check(model: nn.Module, part: Part) -> None:
    """Compare the part's tensors with what the model has, by name and shape; and with the types that weights have.

    Raises:
        CannotLoad: naming the file whose tensors are another model's, or the part that lacks some.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, stored in part.tensors.items():
        if wanted.get(name) != stored.shape:
            raise CannotLoad(
                f"{stored.file}: tensor {stored.key} has shape {stored.shape}, the model wants {wanted.get(name)}"
            )
        if stored.dtype not in _TYPES:
            raise CannotLoad(f"{stored.file}: tensor {stored.key} is of type {stored.dtype}, not {', '.join(_TYPES)}")
    missing = sorted(wanted.keys() - part.tensors.keys())
    if missing:
        where = part.source if part.source.name != "config.json" else part.source.parent
        raise CannotLoad(f"{where}: {len(missing)} tensors are missing, the first is {missing[0]}")


@contextmanager
def opened(files: Iterable[Path]) -> Iterator[Pieces]:
    """Pieces of what these files hold, from memory maps."""
    tensors: dict[Path, Any] = {}
    with torch.no_grad():
        for file in dict.fromkeys(files):
            tensors[file] = _mapped(file) if file.suffix == ".pth" else safe_open(str(file), framework="pt")

        def piece(stored: Stored, start: int, stop: int) -> Tensor:
            source = tensors[stored.file]
            first = stored.rows[0] if stored.rows else 0
            if isinstance(source, dict):
                found: Tensor = source[stored.key].reshape(stored.shape) if not stored.rows else source[stored.key]
                return found[first + start : first + stop] if stored.shape else found
            if not stored.shape:
                return source.get_tensor(stored.key)
            return source.get_slice(stored.key)[first + start : first + stop]

        yield piece


def _mapped(file: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=pickled.is_mappable(file))
    return found


def _made(empty: Tensor, stored: Stored, device: torch.device, dtype: torch.dtype, pieces: Pieces) -> Tensor:
    if not isinstance(empty, DTensor):
        whole = pieces(stored, 0, stored.shape[0] if stored.shape else 1)
        tensor = whole.to(device=device, dtype=dtype)
        return _aligned(tensor).contiguous()
    shape, offset = compute_local_shape_and_global_offset(empty.shape, empty.device_mesh, empty.placements)
    local = torch.empty(shape, dtype=dtype, device=device)
    if local.numel():
        local.copy_(pieces(stored, offset[0], offset[0] + shape[0]))
    return DTensor.from_local(
        local, empty.device_mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride()
    )


def _aligned(tensor: Tensor) -> Tensor:
    """CPU kernels round differently on memory that is not aligned as torch's own allocations are; a mapped file is
    not, sharded weights are, and both must give the same bits."""
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT else tensor


def _cast(model: nn.Module, dtype_of: Callable[[str], torch.dtype]) -> None:
    """Of a model without weights: FSDP takes the types that it meets when it shares the weights out."""
    for prefix, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                empty = torch.empty_like(parameter, dtype=dtype_of(name))
                module._parameters[leaf] = nn.Parameter(empty, requires_grad=False)


def _tie(model: nn.Module, part: Part) -> None:
    """One parameter for all names that one stored tensor has."""
    first: dict[Stored, str] = {}
    for name, stored in part.tensors.items():
        if stored in first:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._parameters[leaf] = model.get_parameter(first[stored])
        else:
            first[stored] = name
