"""A LoRA in a whole model: the same numbers in any layout, and the model as it was when it is out again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.messages import LoraUse
from tests.engine import lora_cases, lora_files
from tests.engine.requests import request
from tests.support.gloo import Gloo
from workers.engine.direct import Direct
from workers.link import Done, Refused
from workers.pool import Pool
from workers.pool_lora import PoolLora
from workers.training.tiny_checkpoints import _transformer


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[PoolLora, ...]:
    """One LoRA of every linear layer of the tiny text-to-video transformer."""
    model = _transformer(1, channels=16, out=16)
    given = lora_files.factors(model, lora_files.layers(model))
    path = lora_files.write(tmp_path_factory.mktemp("lora") / "style.safetensors", lora_files.wan(given))
    return (PoolLora(name="style", path=str(path)),)


@pytest.mark.parametrize("fsdp", [False, True])
def test_any_layout_gives_what_one_process_gives(
    gloo: Callable[[int], Gloo], checkpoints: Callable[[str], Path], table: tuple[PoolLora, ...], fsdp: bool
) -> None:
    folder = checkpoints("wan21-t2v")
    alone = lora_cases.alone(folder, table, request())
    without, using, again = alone
    assert np.abs(using - without).max() > 1e-3
    np.testing.assert_array_equal(again, without)
    worst = gloo(2).run(lora_cases.together, folder, table, request(), fsdp, alone)
    assert worst == [[0.0] * 6] * 2


def test_a_job_names_one_and_is_told_what_it_got(
    checkpoints: Callable[[str], Path], table: tuple[PoolLora, ...], tmp_path: Path
) -> None:
    direct = Direct(Pool(model=str(checkpoints("wan21-t2v")), lora=table))
    assert direct.card.loras == ("style",)
    done = direct.run(request(loras=(LoraUse(name="style", weight=0.5),)), {}, tmp_path)
    assert isinstance(done, Done)
    assert done.used["loras"] == "style:0.5"
    plain = direct.run(request(), {}, tmp_path)
    assert isinstance(plain, Done)
    assert "loras" not in plain.used
    refused = direct.run(request(loras=(LoraUse(name="others"),)), {}, tmp_path)
    assert isinstance(refused, Refused)
    assert "style" in refused.message
