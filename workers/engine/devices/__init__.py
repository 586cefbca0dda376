"""The only room that names a vendor: one file per kind of device, and the choice between them.

``detect`` looks at device files and imports nothing, so that rank 0 can say hello before torch is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from workers import detection

if TYPE_CHECKING:
    from workers.engine.devices.base import Device, Kind


def detect(wanted: str = "auto") -> Kind:
    """The kind of device to use: the wanted one, or the best that this machine shows this process."""
    return detection.choose(wanted, os.environ).kind


def visible_env(kind: Kind) -> str:
    """The environment name by which the vendor's runtime is told which devices to see; empty on CPU."""
    return detection.VISIBLE.get(kind, "")


def hardware_name(kind: Kind) -> str:
    """What the first device calls itself, read without loading its runtime."""
    match kind:
        case "cuda":
            for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
                return _field(file, "Model")
            return "cuda"
        case "npu":
            return "npu"
        case "cpu":
            return _field(Path("/proc/cpuinfo"), "model name") or "cpu"
        case _:
            assert_never(kind)


def _field(file: Path, name: str) -> str:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def open_device(kind: Kind, local_rank: int = 0) -> Device:
    """The device of this rank; loads torch and the vendor's runtime."""
    match kind:
        case "cuda":
            from workers.engine.devices.cuda import Cuda

            return Cuda(local_rank)
        case "npu":
            from workers.engine.devices.npu import Npu

            return Npu(local_rank)
        case "cpu":
            from workers.engine.devices.cpu import Cpu

            return Cpu()
        case _:
            assert_never(kind)
