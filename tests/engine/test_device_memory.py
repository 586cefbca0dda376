"""What a group says of its devices' memory, and of models that it does not have loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from tests.engine import cases
from tests.support.gloo import Gloo
from workers.engine import rank
from workers.engine.devices.base import Device
from workers.engine.devices.cpu import Cpu
from workers.pool import OtherModel, Pool


def test_ranks_on_the_host_share_its_memory() -> None:
    total = psutil.virtual_memory().total
    assert rank.device_memory(Cpu(), 1) == total
    assert rank.device_memory(Cpu(), 4) == total // 4


def test_a_device_that_does_not_say_has_unknown_memory() -> None:
    assert rank.device_memory(Device(), 1) == 0


def test_a_group_says_the_smallest_of_its_ranks(gloo: Callable[[int], Gloo]) -> None:
    assert gloo(2).run(cases.smallest_of, (9_000, 7_000)) == [7_000, 7_000]


def test_the_cards_of_other_models_are_read_without_their_weights(checkpoints: Callable[[str], Path]) -> None:
    folder = checkpoints("wan21-t2v")
    others = (
        OtherModel(model=str(folder), serve_as="other"),
        OtherModel(model=str(folder / "nothing"), serve_as="missing"),
    )
    pool = Pool(model=str(folder), serve_as="first", others=others)
    assert [card.name for card in rank.other_cards(pool)] == ["other"]
    assert [card.name for card in rank.other_cards(pool.serving("other"))] == ["first"]
    assert rank.other_cards(Pool(model=str(folder))) == ()
