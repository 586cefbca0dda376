"""The host's memory runs out in torch's own allocator: an error that is typed from there on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from workers.engine import devices
from workers.engine.course import Alone, Course, Silent
from workers.engine.errors import AgreedFailure, NoMemoryInExchange, PeersLost
from workers.engine.parallel.collective import collective
from workers.engine.rank import leave_failure

#: Elements that no address space holds.
TOO_MANY = 1 << 48


def refused() -> RuntimeError:
    """What torch raises."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(TOO_MANY)
    return caught.value


def test_the_allocators_error_is_told_from_others() -> None:
    device = devices.open_device("cpu")
    assert device.is_out_of_memory(refused())
    assert device.is_out_of_memory(MemoryError())
    assert not device.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not device.is_sticky(refused())


def test_ranks_agree_on_it() -> None:
    course = Course(Alone(), Silent(), devices.open_device("cpu").is_out_of_memory)
    with pytest.raises(AgreedFailure) as failure, course.agreed(0):
        torch.empty(TOO_MANY)
    assert failure.value.reason == "out_of_memory"
    assert not failure.value.refused


def test_in_an_exchange_it_is_not_a_lost_peer(tmp_path: Path) -> None:
    """The others are in it already and cannot be told: the rank ends, and says why."""
    with pytest.raises(NoMemoryInExchange) as caught, collective():
        torch.empty(TOO_MANY)
    leave_failure(tmp_path, 0, caught.value)
    assert json.loads((tmp_path / "failure.json").read_text())["reason"] == "out_of_memory"
    with pytest.raises(PeersLost), collective():
        raise RuntimeError("connection closed by peer")


def test_a_rank_that_ends_by_it_says_so(tmp_path: Path) -> None:
    leave_failure(tmp_path, 0, refused())
    assert json.loads((tmp_path / "failure.json").read_text())["reason"] == "out_of_memory"
