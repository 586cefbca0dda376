"""The VAE in parts: split by width over ranks, exactly, and decoded in tiles, within rounding. Wan 2.1's VAE and 2.2's
with patches and shortcuts (TI2V)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine import cases
from tests.support.gloo import Gloo, Ranks
from workers.engine.stages import decode, tiles
from workers.engine.stages import vae as causal

Groups = Callable[[int], Gloo]
Folders = Callable[[str], Path]


def whole_and_split(ranks: Ranks, folder: Path, columns: int, rows: int = 8) -> dict[str, float]:
    """Largest difference of pixels and of latents, split against whole, on this rank; 5 frames."""
    model = cases.family(folder, ranks.world)
    vae, split = model._vae, model._split
    assert split is not None
    scale, generator = causal.scale(vae), torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 5, rows * scale, columns * scale, generator=generator) * 2 - 1
    latents = torch.randn(1, vae.config.z_dim, 2, rows, columns, generator=generator)
    chunks = [pixels[:, :, :1], pixels[:, :, 1:]]
    encoded, decoded = causal.encode(vae, chunks), torch.cat(list(causal.decode(vae, latents)), 2)
    with split.active():
        there = split.whole(causal.encode(vae, [split.part(chunk, scale) for chunk in chunks]))
        back = split.whole(torch.cat(list(causal.decode(vae, split.part(latents))), 2))
    return {"encode": float((there - encoded).abs().max()), "decode": float((back - decoded).abs().max())}


@pytest.mark.parametrize(
    ("family", "world", "columns"),
    # The widths that do not divide are the common ones: 480 and 720 pixels are 60 and 90 latents, for 8 ranks.
    [("wan21-t2v", 2, 7), ("wan21-t2v", 8, 25), ("wan22-ti2v", 2, 7), ("wan22-ti2v", 4, 12)],
)
def test_any_width_of_three_columns_for_each_rank_is_split_exactly(
    gloo: Groups, checkpoints: Folders, family: str, world: int, columns: int
) -> None:
    for difference in gloo(world).run(whole_and_split, checkpoints(family), columns):
        assert difference == {"encode": 0.0, "decode": 0.0}


@pytest.mark.parametrize(("world", "columns", "rows"), [(2, 7, 2), (4, 5, 8)])
def test_a_low_or_narrow_picture_is_split_within_rounding(
    gloo: Groups, checkpoints: Folders, world: int, columns: int, rows: int
) -> None:
    """Convolutions over few rows, or over one column, are left to kernels whose rounding depends on the width."""
    for difference in gloo(world).run(whole_and_split, checkpoints("wan21-t2v"), columns, rows):
        assert max(difference.values()) <= 1e-5


def test_fewer_columns_than_ranks_are_not_split(gloo: Groups, checkpoints: Folders) -> None:
    assert gloo(4).run(splits, checkpoints("wan21-t2v")) == [[False, True, True]] * 4


def splits(ranks: Ranks, folder: Path) -> list[bool]:
    split = cases.family(folder, ranks.world)._split
    assert split is not None
    return [split.splits(columns) for columns in (3, 4, 5)]


def whole_and_tiled(vae: Any, latents: torch.Tensor, folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    whole = [frame for chunk in decode.frames(vae, latents, None) for frame in chunk]
    tiled = [frame for chunk in tiles.frames(vae, latents, folder) for frame in chunk]
    return np.stack(whole).astype(int), np.stack(tiled).astype(int)


@pytest.mark.parametrize(("family", "size"), [("wan21-t2v", (2, 30)), ("wan22-ti2v", (30, 2))])
def test_tiles_give_the_pixels_of_the_whole(
    checkpoints: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, size: tuple[int, int]
) -> None:
    """The margin is as wide as it must be: with a third of it the tiles show."""
    vae = cases.family(checkpoints(family), 1)._vae
    latents = torch.randn(1, vae.config.z_dim, 2, *size, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(tiles, "SIDE", 10)
    whole, tiled = whole_and_tiled(vae, latents, tmp_path)
    assert whole.shape == tiled.shape
    assert np.abs(whole - tiled).max() <= 1
    assert np.mean(whole != tiled) < 1e-3
    right = tiles.margin(vae)
    monkeypatch.setattr(tiles, "margin", lambda _: right // 3)
    assert np.mean(whole != whole_and_tiled(vae, latents, tmp_path)[1]) > 1e-2
    assert list(tmp_path.iterdir()) == []


def test_what_a_pixel_depends_on_lies_within_the_margin(checkpoints: Folders) -> None:
    """By gradients: nothing further away has one, and what is nearly as far away does."""
    vae = cases.family(checkpoints("wan21-t2v"), 1)._vae
    around = tiles.margin(vae)
    width = 2 * around + 9
    x = torch.randn(1, vae.decoder.conv_in.out_channels, 1, 2, width, generator=torch.Generator().manual_seed(2))
    x.requires_grad_(True)
    pixels = tiles._enlarged(vae, x, [None] * vae._cached_conv_counts["decoder"], is_first=True)
    middle = width // 2 * 8
    pixels[..., middle : middle + 8].sum().backward()
    assert x.grad is not None
    touched = torch.nonzero(x.grad.abs().amax((0, 1, 2, 3))).flatten()
    assert width // 2 - around <= int(touched.min())
    assert int(touched.max()) <= width // 2 + around
    assert int(touched.max() - touched.min()) >= 2 * around - 2


def test_all_portions_are_counted(checkpoints: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = cases.family(checkpoints("wan21-t2v"), 1)._vae
    monkeypatch.setattr(tiles, "SIDE", 4)
    latents = torch.zeros(1, vae.config.z_dim, 2, 6, 9)
    portions = list(tiles.frames(vae, latents, tmp_path))
    assert len(portions) == tiles.count(latents) == (2 * 3 + 1) * 2
    assert [len(portion) for portion in portions] == [0] * 12 + [1, 4]
