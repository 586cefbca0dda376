"""Checkpoints and groups of ranks, made once for all tests of the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.gloo import Gloo

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="package")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random checkpoint of a family."""
    from workers.training.tiny_checkpoints import build

    root = tmp_path_factory.mktemp("checkpoints")

    def folder(family: str) -> Path:
        if not (root / family / "model_index.json").exists():
            build(family, root / family)
        return root / family

    return folder


@pytest.fixture(scope="package")
def gloo() -> Iterator[Callable[[int], Gloo]]:
    """The running group of that many ranks."""
    groups: dict[int, Gloo] = {}

    def group(world: int) -> Gloo:
        if world not in groups:
            groups[world] = Gloo(world)
        return groups[world]

    yield group
    for running in groups.values():
        running.close()
