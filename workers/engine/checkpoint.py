"""What a checkpoint folder says of itself, and whether its files are whole; no torch, no weights read. The folder has
diffusers' layout, or Wan's own (``original``); ``parts`` says where its tensors lie, ``loading`` reads them.

Beside diffusers' own files a folder may hold ``genfleet.json`` for what diffusers' configs do not say of a model that
was trained otherwise than the published ones, see ``Extras``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from workers.engine.errors import CannotLoad

T = TypeVar("T")


class TransformerConfig(Struct, frozen=True):
    """Of ``transformer/config.json``, what the engine needs to know."""

    in_channels: int
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    out_channels: int = 16
    text_dim: int = 4096
    image_dim: int | None = None
    pos_embed_seq_len: int | None = None
    vace_layers: tuple[int, ...] | None = None
    vace_in_channels: int = 96


class VaeConfig(Struct, frozen=True):
    """Of ``vae/config.json``; the factors are pixels per latent."""

    z_dim: int = 16
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8
    patch_size: int | None = None
    temperal_downsample: tuple[bool, ...] = (False, True, True)


IMAGINED: Final = 2.5
"""What the mask says of a first frame that is not given but to be made up (``Extras.text_to_video``)."""


class Extras(Struct, frozen=True):
    """``genfleet.json``.

    Attributes:
        image_condition: ``first_frame`` as the published models: the condition video is the image, then zeros;
            ``repeat_first_frame``: the image in every frame. The mask marks frame 0 in both.
        text_to_video: ``zero_condition``: an image-to-video transformer also does text-to-video, its condition
            channels and mask all zero. ``imagined_frame``: it does, with the condition of a picture
            (``encode_image.canvas``) whose mask holds `IMAGINED` instead of 1. ``refuse``: it does not.
        max_sequence_length: tokens that prompt embeddings are padded to.
        card: fields of the model card that differ from what is derived.
    """

    image_condition: Literal["first_frame", "repeat_first_frame"] = "first_frame"
    text_to_video: Literal["zero_condition", "imagined_frame", "refuse"] = "refuse"
    max_sequence_length: int = 512
    card: dict[str, msgspec.Raw] = {}


class SchedulerConfig(Struct, frozen=True):
    """Of ``scheduler/scheduler_config.json``, what the transformer's output is."""

    prediction_type: Literal["flow_prediction", "sample"] = "flow_prediction"


class Checkpoint(Struct, frozen=True):
    """A checkpoint folder whose files are all there and as long as they should be.

    Attributes:
        parts: names of its sub-folders, with the class that ``model_index.json`` gives each.
        boundary_ratio: with two transformers, the share of timesteps below which the second one denoises.
    """

    folder: Path
    pipeline: str
    parts: dict[str, str]
    transformer: TransformerConfig
    vae: VaeConfig
    extras: Extras
    boundary_ratio: float | None = None
    scheduler: SchedulerConfig = SchedulerConfig()
    #: The transformer takes a timestep per token, and the first latent frame may be given (Wan2.2 TI2V).
    expand_timesteps: bool = False
    layout: Literal["diffusers", "original"] = "diffusers"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.folder / ("google/umt5-xxl" if self.layout == "original" else "tokenizer")

    @property
    def conditioning(self) -> Literal["text", "image_channels", "first_frame", "control"]:
        """What the denoiser is conditioned with beside text."""
        if self.transformer.vace_layers is not None:
            return "control"
        if self.expand_timesteps:
            return "first_frame"
        return "image_channels" if self.takes_image else "text"

    @property
    def takes_first_frame(self) -> bool:
        """Of a checkpoint with condition channels: a first frame alone. One that has learnt positions of two pictures'
        CLIP features always wants two."""
        return self.transformer.pos_embed_seq_len is None

    @property
    def takes_last_frame(self) -> bool:
        """Of a checkpoint with condition channels: a first and a last frame."""
        if self.extras.image_condition != "first_frame":
            return False
        return not self.has_clip or not self.takes_first_frame

    @property
    def takes_image(self) -> bool:
        """Whether the transformer has condition channels beside the latents."""
        return self.transformer.in_channels > self.vae.z_dim

    @property
    def has_clip(self) -> bool:
        """Whether the transformer also wants the image's CLIP features."""
        return self.transformer.image_dim is not None


_NEEDED = {
    "transformer": ("WanTransformer3DModel", "WanVACETransformer3DModel"),
    "vae": ("AutoencoderKLWan",),
    "text_encoder": ("UMT5EncoderModel",),
}
#: The parts of a checkpoint that have weights, as far as it has them.
WITH_TENSORS = ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder")


def read(folder: Path) -> Checkpoint:
    """Read the configs and check every weight file's header against its length.

    Raises:
        CannotLoad: naming the file that is missing, truncated, or of another class of model.
    """
    from workers.engine import original

    if original.is_original(folder):
        there = original.transcribed(folder)
        index, parts, configs = there.index, there.parts, there.configs
        transformer = _of(configs["transformer"], TransformerConfig)
        vae = _of(configs["vae"], VaeConfig)
        scheduler = SchedulerConfig()
    else:
        index, parts = _checked_parts(folder)
        transformer = _json(folder / "transformer" / "config.json", TransformerConfig)
        vae = _json(folder / "vae" / "config.json", VaeConfig)
        if transformer.image_dim is not None and "image_encoder" not in parts:
            raise CannotLoad(
                f"{folder / 'model_index.json'}: the transformer wants CLIP features, but names no encoder"
            )
        scheduler_file = folder / "scheduler" / "scheduler_config.json"
        scheduler = _json(scheduler_file, SchedulerConfig) if scheduler_file.exists() else SchedulerConfig()
    if transformer.out_channels != vae.z_dim:
        raise CannotLoad(
            f"{folder}: the transformer makes latents of {transformer.out_channels} channels, the VAE has {vae.z_dim}: "
            "one of them is another model's"
        )
    extras_file = folder / "genfleet.json"
    extras = _json(extras_file, Extras) if extras_file.exists() else Extras()
    return Checkpoint(
        folder,
        _value(index, "_class_name", str) or "",
        parts,
        transformer,
        vae,
        extras,
        _value(index, "boundary_ratio", float),
        scheduler,
        _value(index, "expand_timesteps", bool) or False,
        "original" if original.is_original(folder) else "diffusers",
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder has one of the two layouts, whole or not."""
    from workers.engine import original

    return (folder / "model_index.json").exists() or original.is_original(folder)


def _checked_parts(folder: Path) -> tuple[dict[str, msgspec.Raw], dict[str, str]]:
    """``model_index.json`` and the parts that it names, after their classes, weights' headers and tokenizer were looked
    at."""
    index = _json(folder / "model_index.json", dict[str, msgspec.Raw])
    parts = _parts(folder, index)
    for part, wanted in _NEEDED.items():
        if part not in parts:
            raise CannotLoad(f"{folder / 'model_index.json'}: names no {part}")
        if parts[part] not in wanted:
            raise CannotLoad(f"{folder / 'model_index.json'}: {part} is a {parts[part]}, not a {' or '.join(wanted)}")
    for part in ("transformer", "transformer_2", "vae"):
        if part in parts:
            _check_class(folder / part / "config.json", parts[part])
    for part in WITH_TENSORS:
        if part in parts:
            for file in weight_files(folder / part):
                header(file)
    if not (folder / "tokenizer").is_dir():
        raise CannotLoad(f"{folder / 'tokenizer'}: missing")
    return index, parts


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of one part: a single one, or the shards that its index names.

    Raises:
        CannotLoad: there are none, or the index is damaged.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        index = part / f"{stem}.safetensors.index.json"
        if index.exists():
            shards = sorted(set(_json(index, _ShardIndex).weight_map.values()))
            strange = [name for name in shards if Path(name).name != name]
            if strange or not shards:
                raise CannotLoad(f"{index}: names no files beside itself: {strange[:1]}")
            return [part / name for name in shards]
        single = part / f"{stem}.safetensors"
        if single.exists():
            return [single]
    raise CannotLoad(f"{part / 'diffusion_pytorch_model.safetensors'}: missing (nor is there an index of shards)")


class TensorInfo(Struct, frozen=True):
    """One tensor in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _ShardIndex(Struct, frozen=True):
    weight_map: dict[str, str]


def header(file: Path) -> dict[str, TensorInfo]:
    """The tensors that a safetensors file holds, after checking that the file is as long as they need.

    The layout is the one of the safetensors format: 8 bytes of little-endian header length, a JSON header, the data.

    Raises:
        CannotLoad: the file is missing, truncated or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, 100_000_000):
                raise CannotLoad(f"{file}: truncated, or not a safetensors file ({size} bytes)")
            raw = stream.read(length)
    except OSError as error:
        raise CannotLoad(f"{file}: missing or unreadable: {error.strerror}") from error
    try:
        named = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        named.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(info, type=TensorInfo) for name, info in named.items()}
    except msgspec.MsgspecError as error:
        raise CannotLoad(f"{file}: not a safetensors file: {error}") from error
    needed = 8 + length + max((info.data_offsets[1] for info in tensors.values()), default=0)
    if size != needed:
        raise CannotLoad(f"{file}: truncated: {size} bytes of {needed}")
    return tensors


def _json(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise CannotLoad(f"{file}: missing or unreadable: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise CannotLoad(f"{file}: {error}") from error


def _of(config: dict[str, Any], kind: type[T]) -> T:
    return msgspec.convert({name: value for name, value in config.items() if value is not None}, kind)


def _value(index: dict[str, msgspec.Raw], name: str, kind: type[T]) -> T | None:
    if name not in index:
        return None
    return msgspec.json.decode(index[name], type=kind | None)


def _parts(folder: Path, index: dict[str, msgspec.Raw]) -> dict[str, str]:
    parts: dict[str, str] = {}
    for name, raw in index.items():
        value = json.loads(bytes(raw))
        if isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value):
            parts[name] = value[1]
    if not parts:
        raise CannotLoad(f"{folder / 'model_index.json'}: names no parts: not a diffusers checkpoint")
    return parts


def _check_class(file: Path, wanted: str) -> None:
    found = _value(_json(file, dict[str, msgspec.Raw]), "_class_name", str)
    if found != wanted:
        raise CannotLoad(f"{file}: is of class {found}, not {wanted}: another model's")
