"""Model cards: one TOML file per model that genfleet knows by name, or a card derived from a checkpoint's own configs.

A card's file holds ``folder``, the name of the checkpoint's folder, and ``[card]``, the fields of ``ModelCard``. The
folder is looked for under ``MODEL_CKPT_DIR`` (several, colon-separated) and among the checkpoints that come with
genfleet.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from shared.messages import FloatRange, IntRange, ModelCard, Task
from workers.engine import devices, footprints
from workers.engine.checkpoint import Checkpoint, is_checkpoint
from workers.engine.errors import CannotLoad
from workers.engine.model_sizes import of_checkpoint
from workers.engine.noise_schedulers import SOLVERS
from workers.pool import Pool
from workers.pool_lora import offered

_CARDS = Path(__file__).parent
_SHIPPED = _CARDS.parents[1] / "checkpoints"

#: Wan's own negative prompt, as its reference and diffusers' examples have it.
WAN_NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)


_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the catalogue."""

    folder: str
    card: ModelCard


def names() -> tuple[str, ...]:
    """Every model that the catalogue knows."""
    return tuple(sorted(file.stem for file in _CARDS.glob("*.toml")))


def entry(name: str) -> Entry:
    """The catalogue's entry of that name.

    Raises:
        CannotLoad: there is none, or its file is damaged.
    """
    if name not in names():
        raise CannotLoad(f"model {name!r} is neither a folder nor in the catalogue; known: {', '.join(names())}")
    file = _CARDS / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Entry)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise CannotLoad(f"{file}: {error}") from error


def locate(model: str, environ: Mapping[str, str] | None = None) -> tuple[Path, ModelCard | None]:
    """The checkpoint's folder for a pool's ``model``, and its card if the catalogue has one.

    Raises:
        CannotLoad: no such name, or its checkpoint is not on this machine.
    """
    folder = Path(model).expanduser()
    if "/" in model or is_checkpoint(folder):
        return folder, None
    env = os.environ if environ is None else environ
    found = entry(model)
    places = [Path(place).expanduser() for place in env.get("MODEL_CKPT_DIR", "").split(":") if place] + [_SHIPPED]
    for place in places:
        # Wan's own layout is published beside diffusers', in a repository without that word in its name.
        for name in (found.folder, found.folder.removesuffix("-Diffusers").removesuffix("-diffusers")):
            if is_checkpoint(place / name):
                return place / name, found.card
    looked = ", ".join(str(place / found.folder) for place in places)
    raise CannotLoad(
        f"{found.folder}/model_index.json: missing; looked in {looked}. `genfleet models pull {model}` "
        "gets it; or set MODEL_CKPT_DIR, or give the folder itself as `model`"
    )


def served_card(pool: Pool, checkpoint: Checkpoint, catalogued: ModelCard | None) -> ModelCard:
    """The card under the name that the pool serves the model as, with what only the checkpoint knows filled in.

    Raises:
        CannotLoad: ``genfleet.json`` overrides a field with a value that it cannot have.
    """
    card = catalogued or derive(checkpoint)
    card = replace(
        card,
        name=pool.serve_as or card.name,
        heads=checkpoint.transformer.num_attention_heads,
        cache=pool.cache or card.cache,
        step_cache=pool.step_cache or card.step_cache,
        loras=offered(pool.lora),
    )
    if card.footprints:
        return card
    on_host = devices.detect(pool.device) == "cpu"
    item = _BYTES.get(pool.dtype, _BYTES["float32" if on_host else "bfloat16"])
    runtime = 0 if on_host else footprints.RUNTIME
    sizes = of_checkpoint(checkpoint)
    if pool.text_encoder == "cpu" and not on_host:
        sizes = replace(sizes, text_encoder=0)
    taken = footprints.of_card(sizes, card, item, runtime=runtime, offload=pool.offload, quant=pool.quant)
    return replace(card, footprints=taken)


def derive(checkpoint: Checkpoint) -> ModelCard:
    """A card from a checkpoint's own configs; ``genfleet.json`` may override fields."""
    vae, transformer = checkpoint.vae, checkpoint.transformer
    tasks = _tasks(checkpoint)
    per_token, control = checkpoint.conditioning == "first_frame", checkpoint.conditioning == "control"
    columns = vae.scale_factor_spatial * transformer.patch_size[2]
    rows = vae.scale_factor_spatial * transformer.patch_size[1]
    temporal = vae.scale_factor_temporal
    card = ModelCard(
        name=_safe_name(checkpoint.folder.name),
        family="wan",
        tasks=tasks,
        width=IntRange(min=columns, max=2048, default=_near(832, columns), multiple_of=columns),
        height=IntRange(min=rows, max=2048, default=_near(480, rows), multiple_of=rows),
        max_pixels=1280 * 720,
        num_frames=IntRange(
            min=1, max=241, default=121 if per_token else 81, multiple_of=temporal, offset=1 % temporal
        ),
        fps=IntRange(min=1, max=60, default=24 if per_token else 16),
        steps=IntRange(min=1, max=200, default=40),
        guidance_scale=FloatRange(min=0.0, max=20.0, default=5.0),
        shift=FloatRange(min=0.1, max=30.0, default=5.0),
        solvers=SOLVERS,
        title=checkpoint.folder.name,
        negative_prompt=WAN_NEGATIVE_PROMPT,
        max_n=4,
        heads=transformer.num_attention_heads,
        also_takes=("mask", "references") if control else (),
        guidance_scale_2=FloatRange(min=0.0, max=20.0, default=5.0) if "transformer_2" in checkpoint.parts else None,
        strength=FloatRange(min=0.05, max=1.0, default=0.8) if Task.VIDEO_TO_VIDEO in tasks else None,
        control_scale=FloatRange(min=0.0, max=2.0, default=1.0) if control else None,
    )
    overrides = checkpoint.extras.card
    if not overrides:
        return card
    fields = msgspec.to_builtins(card) | {name: msgspec.json.decode(raw) for name, raw in overrides.items()}
    try:
        return msgspec.convert(fields, ModelCard)
    except msgspec.ValidationError as error:
        raise CannotLoad(f"{checkpoint.folder / 'genfleet.json'}: card: {error}") from error


def _tasks(checkpoint: Checkpoint) -> tuple[Task, ...]:
    """What a checkpoint of that kind can do, the first for what it is mostly asked; ``families/wan_conditions`` does
    it."""
    text = (Task.TEXT_TO_VIDEO, Task.TEXT_TO_IMAGE)
    kind = checkpoint.conditioning
    match kind:
        case "text":
            return (*text, Task.VIDEO_TO_VIDEO)
        case "first_frame":
            return (Task.IMAGE_TO_VIDEO, *text)
        case "control":
            return (Task.VIDEO_EDITING, *text, Task.IMAGE_TO_VIDEO, Task.FIRST_LAST_FRAME_TO_VIDEO)
        case "image_channels":
            first = (Task.IMAGE_TO_VIDEO,) if checkpoint.takes_first_frame else ()
            last = (Task.FIRST_LAST_FRAME_TO_VIDEO,) if checkpoint.takes_last_frame else ()
            also_text = text if checkpoint.extras.text_to_video != "refuse" else ()
            return (*first, *last, *also_text)
        case _:
            assert_never(kind)


def _near(value: int, multiple: int) -> int:
    return max(1, value // multiple) * multiple


def _safe_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)[:64] or "model"
