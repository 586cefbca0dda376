"""Weights that are sharded are read by rows, each rank its own: the ranks together hold one copy, not one each, and
the shards are bit for bit those of a whole load.
"""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import Struct
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from tests.engine import cases
from tests.support.gloo import Gloo, Ranks
from tests.support.original_layout import rewrite
from workers.engine import checkpoint, loading, parts, reading
from workers.engine.parts import Stored

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]
CPU = torch.device("cpu")
IN_SHARDS = ("transformer", "transformer_2", "text_encoder")


class Held(Struct):
    """What one rank held: bytes of its shards, of all pieces that it read, of the most that pieces of sharded models
    were at once beside the shards; and whether all its rows are those of the whole load."""

    shards: int
    read: int
    most_at_once: int
    equal: bool


class Meter:
    """Counts the bytes of pieces; those out of ``files`` also while they live."""

    def __init__(self, files: set[Path]) -> None:
        self.files = files
        self.read = self.now = self.most = 0

    def _gone(self, size: int) -> None:
        self.now -= size

    @contextmanager
    def counting(self) -> Iterator[None]:
        usual = reading.opened

        @contextmanager
        def metered(files: Any) -> Iterator[Any]:
            with usual(files) as pieces:

                def piece(stored: Stored, start: int, stop: int) -> torch.Tensor:
                    found = pieces(stored, start, stop)
                    size = found.numel() * found.element_size()
                    self.read += size
                    if stored.file in self.files:
                        self.now += size
                        self.most = max(self.most, self.now)
                        weakref.finalize(found, self._gone, size)
                    return found

                yield piece

        reading.opened = metered
        try:
            yield
        finally:
            reading.opened = usual


def sharded(ranks: Ranks, folder: Path, dtype: torch.dtype) -> Held:
    found = checkpoint.read(folder)
    whole = loading.load(found, CPU, dtype)
    mesh = cases.mesh(ranks.world).flat()
    files = {
        tensor.file for name in IN_SHARDS if name in found.parts for tensor in parts.of(found, name).tensors.values()
    }
    meter = Meter(files)
    with meter.counting():
        shared = loading.load(found, CPU, dtype, sharding=loading.Sharding(mesh, True, True))
    size, equal = 0, True
    for ours, theirs in (
        *zip(shared.transformers, whole.transformers, strict=True),
        (shared.text_encoder, whole.text_encoder),
    ):
        wanted = theirs.state_dict()
        seen = set[int]()
        for name, tensor in ours.state_dict().items():
            assert isinstance(tensor, DTensor), name
            local = tensor.to_local()
            if id(tensor._local_tensor) not in seen and name != "encoder.embed_tokens.weight":
                size += local.numel() * local.element_size()
            seen.add(id(tensor._local_tensor))
            equal = equal and torch.equal(tensor.full_tensor(), wanted[name])
            equal = equal and tensor.dtype == wanted[name].dtype
    return Held(size, meter.read, meter.most, equal)


def sizes(folder: Path) -> tuple[int, int, int]:
    """Bytes of the parts that are sharded, of the others, and of the largest tensor."""
    found = checkpoint.read(folder)
    each = {name: parts.of(found, name) for name in checkpoint.WITH_TENSORS if name in found.parts}
    stored = {name: set(part.tensors.values()) for name, part in each.items()}
    shared = sum(tensor.size for name in IN_SHARDS for tensor in stored.get(name, ()))
    others = sum(tensor.size for name in stored if name not in IN_SHARDS for tensor in stored[name])
    return shared, others, max(tensor.size for tensors in stored.values() for tensor in tensors)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_read_and_hold_one_copy(
    gloo: Groups, checkpoints: Folders, tmp_path: Path, world: int, layout: str
) -> None:
    folder = checkpoints("wan22-i2v")
    if layout == "original":
        folder = rewrite(folder, tmp_path / "original", "i2v")
    shared, others, largest = sizes(folder)
    held = gloo(world).run(sharded, folder, torch.float32)
    assert all(rank.equal for rank in held)
    assert sum(rank.shards for rank in held) == shared
    assert sum(rank.read for rank in held) == shared + world * others
    assert max(rank.shards for rank in held) < 1.25 * shared / world
    assert max(rank.most_at_once for rank in held) <= largest


def test_types_that_differ_within_a_model(gloo: Groups, checkpoints: Folders) -> None:
    held = gloo(2).run(sharded, checkpoints("wan21-t2v"), torch.bfloat16)
    assert all(rank.equal for rank in held)


def grown(ranks: Ranks, folder: Path) -> int:
    """Bytes of memory of its own, not of mapped files, that a rank has more after a sharded load."""
    before = _private()
    mesh = cases.mesh(ranks.world).flat()
    found = checkpoint.read(folder)
    kept = loading.load(found, CPU, torch.float32, sharding=loading.Sharding(mesh, True, True))
    after = _private()
    del kept
    return after - before


def _private() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssAnon")


def test_the_process_itself_grows_by_its_share(gloo: Groups, checkpoints: Folders, tmp_path: Path) -> None:
    """As the kernel counts it, with an embedding of 64 MiB: four copies would be 64 MiB in each of four ranks."""
    folder = Path(shutil.copytree(checkpoints("wan21-t2v"), tmp_path / "wide"))
    config = folder / "text_encoder" / "config.json"
    told = json.loads(config.read_text())
    rows = 64 * 1024 * 1024 // (4 * told["d_model"])
    config.write_text(json.dumps(told | {"vocab_size": rows}))
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    (name,) = (name for name in tensors if name in ("shared.weight", "encoder.embed_tokens.weight"))
    tensors[name] = torch.ones(rows, told["d_model"])
    save_file(tensors, weights)
    world = 4
    growths = gloo(world).run(grown, folder)
    assert max(growths) < 40 * 1024 * 1024
    assert sum(growths) < 2 * 64 * 1024 * 1024
