"""Weights of the blocks' matrices in 8 bits, by torchao 0.18.0, which is an extra: ``pip install genfleet[quant]``.

``int8`` stores them in int8 with one scale per row and computes as before: half the memory of bfloat16. ``float8``
also takes activations to float8 on the way, row by row: faster on devices that multiply float8. Embeddings, norms,
modulation and the output layer stay as they are.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from workers.engine.devices.base import Device
from workers.engine.errors import CannotLoad

PACKAGE = "torchao"
_FLOAT8_CAPABILITY = (8, 9)


def missing(kind: str, device: Device) -> str:
    """Why weights cannot be of that kind on that device; empty if they can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"{PACKAGE} is not installed (genfleet[quant])"
    if kind == "float8":
        if device.kind != "cuda":
            return f"float8 is for CUDA, not for {device.kind}"
        if torch.cuda.get_device_capability(device.torch_device) < _FLOAT8_CAPABILITY:
            return "float8 wants compute capability 8.9"
    return ""


def quantise(blocks: Iterable[nn.Module], kind: str) -> None:
    """Replace the weights of all linear layers in these blocks, block by block, in place.

    Raises:
        CannotLoad: torchao is of another release than this was written for.
    """
    try:
        api: Any = importlib.import_module(f"{PACKAGE}.quantization")
        config = api.Int8WeightOnlyConfig() if kind == "int8" else _float8(api)
    except (ImportError, AttributeError, OSError) as error:
        raise CannotLoad(f"quant: {PACKAGE} cannot be used: {error}") from error
    for block in blocks:
        api.quantize_(block, config)


def _float8(api: Any) -> Any:
    return api.Float8DynamicActivationFloat8WeightConfig(granularity=api.PerRow())
