"""A folder as Wan's authors publish it.

config.json, diffusion_pytorch_model*.safetensors     the transformer; Wan2.2 A14B: high_noise_model/, low_noise_model/
Wan2.1_VAE.pth or Wan2.2_VAE.pth                      the VAE
models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/     text encoder and tokenizer
models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth   the image encoder, where the model has image features
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from workers.engine.checkpoint import weight_files
from workers.engine.errors import CannotLoad
from workers.engine.original import encoders, transformer, vae
from workers.engine.parts import Part, Stored, stored_in, tie_embeddings

VAES = ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth")
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
TOKENIZER = "google/umt5-xxl"
EXPERTS = ("high_noise_model", "low_noise_model")


class Transcribed(Struct, frozen=True):
    """The folder in diffusers' words.

    Attributes:
        index: what ``model_index.json`` would say beside its parts.
        parts: class names by part.
        configs: by part, for those that the engine asks.
    """

    index: dict[str, msgspec.Raw]
    parts: dict[str, str]
    configs: dict[str, dict[str, Any]]


def is_original(folder: Path) -> bool:
    """Whether the folder has Wan's own layout: by a config of Wan's, or by any of its unmistakable files."""
    if (folder / "model_index.json").exists():
        return False
    return any((folder / name).exists() for name in (*VAES, T5, *EXPERTS)) or _is_wan_config(folder / "config.json")


def transcribed(folder: Path) -> Transcribed:
    """The folder in diffusers' words, after every file that the model needs was looked into.

    Raises:
        CannotLoad: naming the file that is missing, truncated or another model's.
    """
    places = _transformers(folder)
    first = part(folder, "transformer")
    told = _config(next(iter(places.values())))
    names = {name: transformer.class_name(told) for name in places}
    parts = {**names, "vae": "AutoencoderKLWan", "text_encoder": "UMT5EncoderModel"}
    configs = {"transformer": first.config, "vae": part(folder, "vae").config}
    for name in (*list(places)[1:], "text_encoder"):
        part(folder, name)
    if first.config["image_dim"] is not None:
        parts["image_encoder"] = "CLIPVisionModel"
        part(folder, "image_encoder")
    if not (folder / TOKENIZER).is_dir():
        raise CannotLoad(f"{folder / TOKENIZER}: missing")
    return Transcribed(transformer.index(told, len(places)), parts, configs)


def part(folder: Path, name: str) -> Part:
    """The part of that (diffusers') name.

    Raises:
        CannotLoad: as ``transcribed``.
    """
    match name:
        case "transformer" | "transformer_2":
            return _transformer(_transformers(folder)[name])
        case "vae":
            return _vae(folder)
        case "text_encoder":
            file = folder / T5
            stored = stored_in([file])
            tensors, unknown = encoders.t5(stored)
            _refuse(file, unknown)
            tie_embeddings(tensors)
            return Part(_told(file, encoders.t5_config, stored), file, tensors)
        case _:
            file = folder / CLIP
            stored = stored_in([file])
            tensors, unknown = encoders.clip(stored)
            _refuse(file, unknown)
            return Part(_told(file, encoders.clip_config, stored), file, tensors)


def _transformers(folder: Path) -> dict[str, Path]:
    """Folders of the transformers by part; of two experts the one for high noise is the first."""
    if not any((folder / name).is_dir() for name in EXPERTS):
        return {"transformer": folder}
    for name in EXPERTS:
        if not (folder / name).is_dir():
            raise CannotLoad(f"{folder / name}: missing")
    return {"transformer": folder / EXPERTS[0], "transformer_2": folder / EXPERTS[1]}


def _transformer(folder: Path) -> Part:
    file = folder / "config.json"
    told = _config(folder)
    stored = stored_in(weight_files(folder))
    names = {key: transformer.renamed(key) for key in stored}
    _refuse(weight_files(folder)[0], [key for key, name in names.items() if name is None])
    config = _told(weight_files(folder)[0], lambda shapes: transformer.config(told, shapes), stored)
    return Part(config, file, {name: stored[key] for key, name in names.items() if name is not None})


def _vae(folder: Path) -> Part:
    file = next((folder / name for name in VAES if (folder / name).exists()), folder / VAES[0])
    stored = stored_in([file])
    blocks = vae.residual_blocks(_shapes(stored))
    names = {key: vae.renamed(key, blocks) for key in stored}
    _refuse(file, [key for key, name in names.items() if name is None])
    config = _told(file, vae.config, stored)
    return Part(config, file, {name: stored[key] for key, name in names.items() if name is not None})


def _config(folder: Path) -> transformer.WanConfig:
    file = folder / "config.json"
    try:
        told = msgspec.json.decode(file.read_bytes(), type=transformer.WanConfig)
    except OSError as error:
        raise CannotLoad(f"{file}: missing or unreadable: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise CannotLoad(f"{file}: {error}") from error
    if told.model_type not in transformer.MODEL_TYPES:
        raise CannotLoad(f"{file}: model_type is {told.model_type!r}, not one of {', '.join(transformer.MODEL_TYPES)}")
    return told


def _is_wan_config(file: Path) -> bool:
    try:
        return "model_type" in msgspec.json.decode(file.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, msgspec.MsgspecError):
        return False


def _shapes(stored: dict[str, Stored]) -> dict[str, tuple[int, ...]]:
    return {key: tensor.shape for key, tensor in stored.items()}


def _told(file: Path, config: Any, stored: dict[str, Stored]) -> dict[str, Any]:
    """The config that the shapes tell, if they are that model's at all."""
    try:
        made: dict[str, Any] = config(_shapes(stored))
    except KeyError as error:
        raise CannotLoad(f"{file}: tensor {error.args[0]} is missing: another model's") from error
    except (ValueError, IndexError) as error:
        raise CannotLoad(f"{file}: the tensors' shapes are another model's: {error}") from error
    return made


def _refuse(file: Path, unknown: list[str]) -> None:
    if unknown:
        raise CannotLoad(f"{file}: {len(unknown)} tensors are another model's, the first is {unknown[0]}")
