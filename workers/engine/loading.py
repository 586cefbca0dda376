"""A checkpoint's weights in diffusers' and transformers' model classes, from either layout (``parts``).

Host memory: a model is built without weights and filled tensor by tensor from mapped files (``reading``), so that on a
device the host never holds more than one tensor; and where weights are sharded, no rank holds more than its share.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from msgspec import Struct
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from workers.engine import parts, reading
from workers.engine.checkpoint import WITH_TENSORS, Checkpoint
from workers.engine.errors import CannotLoad
from workers.engine.parts import Part
from workers.engine.reading import Shards

#: Told the fraction of bytes read, and what is being read.
OnLoading = Callable[[float, str], None]

#: What the published image encoders expect (diffusers' ``image_processor``); Wan's own layout has no file for it.
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Components(Struct, frozen=True):
    """A loaded checkpoint. ``Any``: the models are classes of untyped libraries."""

    transformers: tuple[Any, ...]
    vae: Any
    text_encoder: Any
    tokenizer: Any
    image_encoder: Any = None
    image_processor: Any = None


class Sharding(Struct, frozen=True):
    """Which models' weights are shared out over the ranks of ``mesh``."""

    mesh: DeviceMesh
    dit: bool
    t5: bool

    def of(self, part: str) -> Shards | None:
        """How that part's weights are shared out, if they are."""
        if self.dit and part in ("transformer", "transformer_2"):
            return Shards(self.mesh, lambda model: (*model.blocks, *getattr(model, "vace_blocks", ())))
        if self.t5 and part == "text_encoder":
            return Shards(self.mesh, lambda model: model.encoder.block)
        return None


def load(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    on_loading: OnLoading = lambda *_: None,
    sharding: Sharding | None = None,
    on_host: tuple[str, ...] = (),
    without_text: bool = False,
) -> Components:
    """All parts of the checkpoint on that device, those named ``on_host`` on the host, in eval mode without gradients;
    ``without_text`` leaves the text encoder out.

    The VAE is kept in float32; the parts of a model that its class wants in float32 are, too.

    Raises:
        CannotLoad: tensors are missing, or of other names or shapes than the class has; it names the file.
    """
    there = {name: parts.of(checkpoint, name) for name in WITH_TENSORS if name in checkpoint.parts}
    if not checkpoint.has_clip:
        there.pop("image_encoder", None)
    if without_text:
        there.pop("text_encoder", None)
    progress = _Progress(sum(part.size for part in there.values()), on_loading)
    loaded: dict[str, Any] = {}
    for name, part in there.items():
        model = build(checkpoint, name, part)
        in_float32 = _in_float32(model, dtype)
        wanted = torch.float32 if name == "vae" else dtype

        def dtype_of(tensor: str, wanted: torch.dtype = wanted, kept: frozenset[str] = in_float32) -> torch.dtype:
            return torch.float32 if kept.intersection(tensor.split(".")) else wanted

        def told(size: int, name: str = name) -> None:
            progress.add(size, name)

        shards = None if sharding is None else sharding.of(name)
        reading.fill(model, part, torch.device("cpu") if name in on_host else device, dtype_of, told, shards)
        loaded[name] = model.eval()
    on_loading(1.0, "")
    return Components(
        tuple(loaded[name] for name in ("transformer", "transformer_2") if name in loaded),
        loaded["vae"],
        loaded.get("text_encoder"),
        tokenizer(checkpoint),
        loaded.get("image_encoder"),
        _image_processor(checkpoint, loaded["image_encoder"]) if "image_encoder" in loaded else None,
    )


def build(checkpoint: Checkpoint, name: str, part: Part) -> nn.Module:
    """The part's model without weights: its parameters are on the meta device.

    Raises:
        CannotLoad: the config is another class's.
    """
    make = _in_transformers if name in ("text_encoder", "image_encoder") else _in_diffusers
    try:
        with _BUILDING, init_empty_weights(include_buffers=False):
            return make(checkpoint, name, part)
    except (OSError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CannotLoad(f"{part.source}: {error}") from error


#: ``init_empty_weights`` changes ``nn.Module`` itself for as long as it lasts.
_BUILDING = threading.Lock()


def _in_diffusers(checkpoint: Checkpoint, name: str, part: Part) -> nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

    if name == "vae":
        model_class: Any = AutoencoderKLWan
    else:
        model_class = WanTransformer3DModel if checkpoint.transformer.vace_layers is None else WanVACETransformer3DModel
    ignored = frozenset(model_class._keys_to_ignore_on_load_unexpected or ())
    for tensor in [tensor for tensor in part.tensors if ignored.intersection(tensor.split("."))]:
        del part.tensors[tensor]
    model: nn.Module = model_class.from_config(part.config)
    return model


def _in_transformers(checkpoint: Checkpoint, name: str, part: Part) -> nn.Module:
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    config_class, model_class = (
        (UMT5Config, UMT5EncoderModel) if name == "text_encoder" else (CLIPVisionConfig, CLIPVisionModel)
    )
    # A whole CLIP model's config has the tower's inside it.
    told = {key: value for key, value in part.config.get("vision_config", part.config).items() if key != "model_type"}
    model: nn.Module = model_class(config_class.from_dict(told))
    return model


def _in_float32(model: Any, dtype: torch.dtype) -> frozenset[str]:
    """Names of the modules and parameters that the class keeps in float32: diffusers' always, transformers' in float16
    (``wo`` of T5, whose values pass what float16 can hold)."""
    if type(model).__module__.startswith("transformers.") and dtype != torch.float16:
        return frozenset(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    return frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())


class _Progress:
    def __init__(self, total: int, tell: OnLoading) -> None:
        self._total = max(1, total)
        self._read = 0
        self._told = -1.0
        self._tell = tell

    def add(self, size: int, what: str) -> None:
        self._read += size
        fraction = min(0.999, self._read / self._total)
        if fraction - self._told >= 0.01:
            self._told = fraction
            self._tell(fraction, what)


def _image_processor(checkpoint: Checkpoint, encoder: Any) -> Any:
    if checkpoint.layout == "original":
        from transformers import CLIPImageProcessorPil

        side = encoder.config.image_size
        return CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size=side, image_mean=list(_CLIP_MEAN), image_std=list(_CLIP_STD)
        )
    from transformers import AutoImageProcessor

    folder = checkpoint.folder / "image_processor"
    try:
        return AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise CannotLoad(f"{folder}: {error}") from error


def tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        CannotLoad: it cannot be read.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.tokenizer
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CannotLoad(f"{folder}: {error}") from error
