"""Reads a checkpoint's weights into diffusers' and transformers' model classes.

Host memory: a diffusers part is built without weights and filled tensor by tensor from memory-mapped files, so that on
a device the host never holds more than one tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from msgspec import Struct
from safetensors import safe_open
from torch import nn

from workers.engine.checkpoint import Checkpoint, header, weight_files
from workers.engine.errors import CannotLoad

#: Told the fraction of bytes read, and what is being read.
OnLoading = Callable[[float, str], None]

_ALIGNMENT = 64


class Components(Struct, frozen=True):
    """A loaded checkpoint. ``Any``: the models are classes of untyped libraries."""

    transformers: tuple[Any, ...]
    vae: Any
    text_encoder: Any
    tokenizer: Any
    image_encoder: Any = None
    image_processor: Any = None


def load(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, on_loading: OnLoading = lambda *_: None
) -> Components:
    """All parts of the checkpoint on that device, in eval mode without gradients.

    The VAE is kept in float32; the parts of a transformer that its class wants in float32 are, too.

    Raises:
        CannotLoad: tensors are missing, or of other names or shapes than the class has; it names the file.
    """
    progress = _Progress(checkpoint, on_loading)
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

    experts = [part for part in ("transformer", "transformer_2") if part in checkpoint.parts]
    model_class = WanTransformer3DModel if checkpoint.transformer.vace_layers is None else WanVACETransformer3DModel
    transformers = tuple(_fill(model_class, checkpoint, part, device, dtype, progress) for part in experts)
    vae = _fill(AutoencoderKLWan, checkpoint, "vae", device, torch.float32, progress)
    text_encoder = _text_encoder(checkpoint, device, dtype, progress)
    tokenizer = _tokenizer(checkpoint)
    image_encoder = image_processor = None
    if checkpoint.has_clip:
        image_encoder, image_processor = _clip(checkpoint, device, dtype, progress)
    on_loading(1.0, "")
    return Components(transformers, vae, text_encoder, tokenizer, image_encoder, image_processor)


class _Progress:
    def __init__(self, checkpoint: Checkpoint, tell: OnLoading) -> None:
        parts = [part for part in checkpoint.parts if (checkpoint.folder / part).is_dir() and part != "tokenizer"]
        self._sizes = {
            part: sum(file.stat().st_size for file in (checkpoint.folder / part).glob("*.safetensors"))
            for part in parts
        }
        self._total = max(1, sum(self._sizes.values()))
        self._read = 0
        self._told = -1.0
        self._tell = tell

    def add(self, size: int, what: str) -> None:
        self._read += size
        fraction = min(0.999, self._read / self._total)
        if fraction - self._told >= 0.01:
            self._told = fraction
            self._tell(fraction, what)

    def add_part(self, part: str) -> None:
        self.add(self._sizes.get(part, 0), part)


def _fill(
    model_class: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype, progress: _Progress
) -> Any:
    folder = checkpoint.folder / part
    try:
        config = model_class.load_config(str(folder), local_files_only=True)
        with init_empty_weights(include_buffers=False):
            model = model_class.from_config(config)
    except (OSError, TypeError, ValueError) as error:
        raise CannotLoad(f"{folder / 'config.json'}: {error}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ignored: tuple[str, ...] = tuple(model_class._keys_to_ignore_on_load_unexpected or ())
    in_float32: tuple[str, ...] = tuple(model_class._keep_in_fp32_modules or ())
    seen: set[str] = set()
    for file in weight_files(folder):
        found = {
            name: info for name, info in header(file).items() if not any(word in name.split(".") for word in ignored)
        }
        for name, info in found.items():
            if wanted.get(name) != info.shape:
                expected = wanted.get(name)
                raise CannotLoad(f"{file}: tensor {name} has shape {info.shape}, the model wants {expected}")
        with safe_open(str(file), framework="pt") as tensors:
            for name, info in found.items():
                keep = any(word in name.split(".") for word in in_float32)
                tensor = tensors.get_tensor(name).to(device=device, dtype=torch.float32 if keep else dtype)
                _assign(model, name, _aligned(tensor))
                progress.add(info.data_offsets[1] - info.data_offsets[0], part)
        seen |= found.keys()
    missing = sorted(wanted.keys() - seen)
    if missing:
        raise CannotLoad(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    return model.to(device).eval().requires_grad_(False)


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """CPU kernels round differently on memory that is not aligned as torch's own allocations are; a mapped file is
    not, sharded weights are, and both must give the same bits."""
    return tensor.clone() if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT else tensor


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


def _text_encoder(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, progress: _Progress) -> Any:
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    return _pretrained(UMT5EncoderModel, checkpoint, "text_encoder", device, dtype, progress)


def _clip(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, progress: _Progress) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    encoder = _pretrained(CLIPVisionModel, checkpoint, "image_encoder", device, dtype, progress)
    folder = checkpoint.folder / "image_processor"
    try:
        processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")
    except (OSError, ValueError) as error:
        raise CannotLoad(f"{folder}: {error}") from error
    return encoder, processor


def _pretrained(
    model_class: Any, checkpoint: Checkpoint, part: str, device: torch.device, dtype: torch.dtype, progress: _Progress
) -> Any:
    """transformers' own loader, because it knows the renamed tensors of old checkpoints."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = checkpoint.folder / part
    try:
        model, info = model_class.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CannotLoad(f"{folder}: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CannotLoad(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    progress.add_part(part)
    return model.to(device).eval().requires_grad_(False)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    folder = checkpoint.folder / "tokenizer"
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CannotLoad(f"{folder}: {error}") from error
