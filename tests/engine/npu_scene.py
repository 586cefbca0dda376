"""The Ascend device with a stand-in for its library: ``python -m tests.engine.npu_scene RANK WORLD PORT FOLDER`` is one
rank, in a process of its own because torch gets another device for good. Prints what it found as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.support.npu import stand_in
from workers.engine import devices
from workers.engine.parallel import ulysses

_FILE = "/workers/engine/devices/npu.py"


class Lines:
    """Which lines of the device's file ran, and which never did."""

    def __init__(self) -> None:
        self.ran: set[int] = set()

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        """For ``sys.settrace``."""
        if not frame.f_code.co_filename.endswith(_FILE):
            return None
        if event == "line":
            self.ran.add(frame.f_lineno)
        return self.trace

    def missed(self, file: Path) -> list[int]:
        """The lines inside functions that did not run."""
        return sorted(_lines(compile(file.read_text(), str(file), "exec"), inside=False) - self.ran)


def _lines(code: CodeType, *, inside: bool) -> set[int]:
    # A function's first line is its definition, which runs in what surrounds it.
    own = {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
    found = own if inside else set()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            is_class = not constant.co_flags & 0x2
            found |= _lines(constant, inside=not is_class)
    return found


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by torch, [B, S, H, D]."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def worst(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a.float() - b.float()).abs().max())


def main(rank: int, world: int, port: int, folder: Path) -> None:
    """One rank of the scene."""
    torch.set_num_threads(1)
    if rank == 0:
        # Before the stand-in is there: diffusers would look for more in it. The other rank has no need of it.
        importlib.import_module("tests.engine.cases")
    module = stand_in.install()
    lines = Lines()
    sys.settrace(lines.trace)
    device = devices.open_device("npu", rank)
    dist.init_process_group(device.backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found: dict[str, Any] = {"backend": dist.get_backend(), "device": str(device.torch_device), "name": device.name()}
    found["memory"] = device.memory()
    device.clear()
    found["cleared"] = module.cleared
    device.synchronise()
    found["synchronised"] = [str(waited) for waited in module.synchronised]
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (torch.randn(2, length, 4, 16, dtype=dtype) for length in (33, 21, 21))
        found[f"attention {dtype}"] = worst(device.attention(q, k, v), plain(q, k, v))
    for kernel in device.kernels():
        if not kernel.missing(device.torch_device, torch.bfloat16):
            q, k, v = (torch.randn(1, 9, 4, 16) for _ in range(3))
            found[f"kernel {kernel.name}"] = worst(kernel(q, k, v), plain(q, k, v))
            if kernel.gives_lse:
                scores = torch.einsum("bqhd,bkhd->bqhk", q, k) * 16**-0.5
                found[f"lse {kernel.name}"] = worst(kernel.with_lse(q, k, v)[1], torch.logsumexp(scores, -1))
    q, k, v = (torch.randn(1, 16, 4, 16) for _ in range(3))
    whole, group = plain(q, k, v), dist.group.WORLD
    assert group is not None
    parts = ulysses.to_heads(tuple(ulysses.split_sequence(tensor, group) for tensor in (q, k, v)), group)
    exchanged = ulysses.to_sequence(device.attention(parts[0], parts[1], parts[2]), group)
    found["ulysses"] = worst(ulysses.gather_sequence(exchanged, group, 16), whole)
    found["plain error"] = [device.is_out_of_memory(ValueError()), device.is_sticky(RuntimeError("shape"))]
    sys.settrace(None)
    if rank == 0:
        found["video"] = video(device, folder)
    found["missed"] = lines.missed(Path(devices.__file__).with_name("npu.py"))
    print(json.dumps(found))
    dist.destroy_process_group()


def video(device: Any, folder: Path) -> float:
    """A whole denoising with this device's attention, against the CPU's own."""
    from tests.engine import cases
    from tests.engine.requests import request
    from workers.engine.course import Alone, Course, Silent
    from workers.engine.opening import open_model
    from workers.engine.parallel.mesh import Mesh
    from workers.pool import Pool

    expected = cases.alone(folder, request())
    device.torch_device = torch.device("cpu")
    model = open_model(Pool(model=str(folder), dtype="float32"), device, Mesh("cpu", 1))
    course = Course(Alone(), Silent(), device.is_out_of_memory)
    made = cases.outcome(model, cases.job_of(request(), model.check(request()), None), course)  # type: ignore[arg-type]
    return float(abs(made.latents - expected.latents).max())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
