"""The example pools in deploy/pools: each is a pool, its model is known, its layout is possible, and what it takes fits
the devices that its first line names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.cli import app
from shared.messages import ModelCard
from workers.engine import catalog, footprints
from workers.engine.footprints import Split
from workers.engine.model_sizes import PUBLISHED
from workers.engine.parallel.layouts import offered
from workers.pool import Pool, read

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "pools"
FILES = sorted(FOLDER.glob("*.toml"))
WAN = [file for file in FILES if file.name not in ("demo.toml", "dummy.toml")]


def card_of(pool: Pool) -> ModelCard:
    """The catalogue's card, also where the pool names the model by its folder."""
    if "/" not in pool.model:
        return catalog.entry(pool.model).card
    folder = Path(pool.model).name
    return next(entry.card for entry in map(catalog.entry, catalog.names()) if entry.folder == folder)


def test_there_is_one_for_every_number_of_devices_of_both_vendors() -> None:
    pools = [read(file) for file in WAN]
    assert {(pool.device, pool.width) for pool in pools} >= {
        (device, width) for device in ("cuda", "npu") for width in (1, 2, 4, 8)
    }
    assert len({pool.name for pool in pools}) == len(pools)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pool_check_is_content(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app(["pool", "check", str(file)], exit_on_error=False, result_action="return_value") in (0, None)
    assert "fine" in capsys.readouterr().out


@pytest.mark.parametrize("file", WAN, ids=lambda file: file.stem)
def test_its_layout_is_possible_at_every_width_that_it_may_have(file: Path) -> None:
    pool = read(file)
    heads = PUBLISHED[card_of(pool).name].dit.heads
    width = pool.width
    while width >= pool.narrowest:
        assert offered(width, heads, pool.layout, pool.width)
        width //= 2


@pytest.mark.parametrize("file", WAN, ids=lambda file: file.stem)
def test_a_usual_job_fits_its_devices(file: Path) -> None:
    named = re.search(r"(\d+) GB", file.read_text(encoding="utf-8").splitlines()[0])
    assert named is not None
    pool = read(file)
    card = card_of(pool)
    sizes = PUBLISHED[card.name]
    first = offered(pool.width, sizes.dit.heads, pool.layout, pool.width)[0]
    split = Split(pool.width, first.ulysses * first.ring, first.cfg, first.dit_fsdp, first.t5_fsdp, first.vae_parallel)
    stays = footprints.weights(sizes, split, 2, offload=pool.offload, quant=pool.quant)
    if pool.text_encoder == "cpu":
        stays -= 2 * sizes.text_encoder
    pixels, frames = card.width.default * card.height.default, card.num_frames.default
    adds = footprints.job(sizes, split, 2, pixels, frames, cache=pool.cache is not None)
    takes = stays + adds + footprints.RUNTIME
    assert takes < int(named[1]) * 1e9
    # Not so much less that the sharding or the offloading were for nothing.
    assert takes > 0.2 * int(named[1]) * 1e9
