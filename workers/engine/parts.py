"""Where the tensors of a checkpoint's parts lie, by the names that the model classes have for them, whatever the layout
and the file format. No torch, no weights read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from workers.engine import pickled
from workers.engine.checkpoint import Checkpoint, header, weight_files
from workers.engine.errors import CannotLoad


class Stored(Struct, frozen=True):
    """One tensor of a model: some rows (all if None) of what a file has under a key, in this shape.

    Attributes:
        dtype: as safetensors headers have it (``F32``, ``BF16``, …).
        size: bytes.
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    rows: tuple[int, int] | None = None


class Part(Struct, frozen=True):
    """What a model class of diffusers or transformers is built with, and the tensors to fill it with.

    Attributes:
        config: what the class's config says, as diffusers' ``config.json`` has it.
        source: the file that a complaint about the config should name.
    """

    config: dict[str, Any]
    source: Path
    tensors: dict[str, Stored]

    @property
    def size(self) -> int:
        """Bytes of all tensors; one that has two names counts once."""
        return sum(tensor.size for tensor in set(self.tensors.values()))


def stored_in(files: list[Path]) -> dict[str, Stored]:
    """Every tensor of these safetensors or ``.pth`` files, by its key.

    Raises:
        CannotLoad: a file is missing, truncated or something else, or two of them have the same key.
    """
    found: dict[str, Stored] = {}
    for file in files:
        read = pickled.header if file.suffix == ".pth" else header
        for key, info in read(file).items():
            if key in found:
                raise CannotLoad(f"{file}: tensor {key} is in {found[key].file.name} too")
            size = info.data_offsets[1] - info.data_offsets[0]
            found[key] = Stored(file, key, info.dtype, info.shape, size)
    return found


def of(checkpoint: Checkpoint, name: str) -> Part:
    """The part of that name.

    Raises:
        CannotLoad: as ``stored_in``, or a tensor is none of that part's.
    """
    if checkpoint.layout == "original":
        from workers.engine import original

        return original.part(checkpoint.folder, name)
    folder = checkpoint.folder / name
    source = folder / "config.json"
    try:
        config = json.loads(source.read_bytes())
    except (OSError, ValueError) as error:
        raise CannotLoad(f"{source}: {error}") from error
    rename = _RENAMED.get(name, _same)
    tensors: dict[str, Stored] = {}
    for key, tensor in stored_in(weight_files(folder)).items():
        known = rename(key)
        if known is not None:
            tensors[known] = tensor
    if name == "text_encoder":
        tie_embeddings(tensors)
    return Part(config, source, tensors)


def tie_embeddings(tensors: dict[str, Stored]) -> None:
    """T5's embedding has two names, of which files have one or both."""
    names = "shared.weight", "encoder.embed_tokens.weight"
    for name, other in (names, names[::-1]):
        if name in tensors:
            tensors[other] = tensors[name]
            return


def _same(key: str) -> str:
    return key


def _of_vision_tower(key: str) -> str | None:
    """Published towers carry a prefix that transformers' class has no more, a projection, or a whole CLIP model."""
    if key.startswith(("text_model.", "visual_projection.", "text_projection.")) or key == "logit_scale":
        return None
    return None if key.endswith(".position_ids") else key.removeprefix("vision_model.")


_RENAMED: dict[str, Callable[[str], str | None]] = {"image_encoder": _of_vision_tower}
