"""``torch.compile`` of what repeats: a block's forward, and the projections of its self-attention.

Only these two are traced. Self-attention itself stays outside, because what it does between its projections depends on
the job: exchanges with other ranks, the caches, the kernel. So do all hooks, those of sharded weights included. All
blocks share the two compiled codes; a second size makes one more of each, with sizes as variables, for all others.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch

from workers.engine.acceleration import projections
from workers.engine.devices.base import Kind

Project = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def missing(kind: Kind) -> str:
    """Why nothing can be compiled for that kind of device here; empty if it can."""
    match kind:
        case "cpu":
            compilers = (os.environ.get("CXX", "g++"), "clang++")
            return "" if any(map(shutil.which, compilers)) else "there is no C++ compiler (g++ or clang++)"
        case "cuda":
            return "" if importlib.util.find_spec("triton") else "triton is not installed"
        case _:
            return f"not for {kind}"


def compile_blocks(blocks: Iterable[Any], backend: str = "inductor") -> Project:
    """Compile the forwards of these blocks in place, at their first use; gives the compiled projections."""
    for block in blocks:
        block.attn1.forward = torch.compiler.disable(block.attn1.forward)
        block.forward = torch.compile(block.forward, backend=backend)
    compiled: Project = torch.compile(projections.project, backend=backend)
    return compiled
