"""Parts of the engine at real sizes, each by itself: attention kernels, the text encoder, decoding; and how time and
memory are taken on any device."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests.bench import report
from tests.bench.random_wan import Sizes
from workers.engine.acceleration import attention_choice, cost
from workers.engine.acceleration.attention_choice import Shape
from workers.engine.devices.base import Device
from workers.engine.families.wan import Wan
from workers.engine.stages import decode

Video = tuple[int, int, int]


def kernels(sizes: Sizes, video: Video, device: Device, dtype: torch.dtype) -> str:
    """Every kernel of the device on that video's sequence; the one that ``auto`` takes is in use afterwards."""
    shape = Shape(cost.tokens(*video), sizes.dit.heads, sizes.dit.head_size)
    flops = 4 * shape.tokens**2 * shape.heads * shape.size
    rows = []
    for kernel in device.kernels():
        tried = attention_choice.compare(kernel, device, shape, dtype)
        if not tried.why_not and (kernel.name != "sdpa-math" or device.kind == "cpu"):
            tried = attention_choice.measure(kernel, tried, device, shape, dtype, time.perf_counter)
        ms = "" if tried.seconds is None else f"{1000 * tried.seconds:.2f}"
        speed = "" if tried.seconds is None else f"{flops / tried.seconds / 1e12:.0f}"
        deviation = "" if tried.deviation is None else f"{tried.deviation:.1e}"
        rows.append((tried.name, ms, speed, deviation, tried.why_not))
    choice = attention_choice.choose("auto", device, shape, dtype)
    attention_choice.use(choice, device)
    head = (f"attention, {shape.tokens} tokens", "ms", "TFLOP/s", "deviation", "")
    return f"{report.table(head, rows)}\n\nTaken: {choice.name}."


def text_encoder(model: Wan, device: Device) -> str:
    """Prompts of three lengths."""
    rows = []
    for words in (8, 120, 511):
        prompt = (" ".join(["left"] * words),)
        seconds = [timed(device, partial(model._encode_text.encode, prompt)) for _ in range(3)]
        rows.append((words + 1, f"{1000 * seconds[-1]:.1f}"))
    return report.table(("text encoder, tokens", "ms"), rows)


def decoding(model: Wan, videos: tuple[Video, ...], device: Device) -> str:
    """Latents to frames on the host, without a file."""
    rows = []
    for width, height, frames in videos:
        shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        latents = torch.randn(shape, device=device.torch_device)
        if device.kind != "cpu":
            torch.accelerator.reset_peak_memory_stats()
        seconds = []
        for _ in range(2):
            seconds.append(timed(device, partial(_decoded, model, latents)))
        rows.append((f"{width}×{height}×{frames}", f"{seconds[-1]:.2f}", peak(device)))
    return report.table(("VAE decode, float32", "s", ""), rows)


def _decoded(model: Wan, latents: Tensor) -> int:
    """How many frames; none is kept."""
    return sum(len(chunk) for chunk in decode.frames(model._vae, latents, None))


def timed(device: Device, do: Callable[[], object]) -> float:
    """Seconds until the device has done it."""
    device.synchronise()
    began = time.perf_counter()
    do()
    device.synchronise()
    return time.perf_counter() - began


def peak(device: Device) -> str:
    """The most memory that was allocated since it was last reset."""
    return "" if device.kind == "cpu" else f"peak {torch.accelerator.max_memory_allocated() / 2**30:.1f} GiB"
