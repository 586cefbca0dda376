"""What the engine calls of torch for devices that no test machine has is there, in the installed torch, and takes those
arguments."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed

import workers.engine
from tests.support.npu import calls
from tests.support.npu.calls import Call

ENGINE = Path(workers.engine.__file__).parent
FILES = sorted(ENGINE.rglob("*.py"))
#: Libraries of torch whose functions do nothing, or are never reached, on a machine without an accelerator.
LIBRARIES = ("torch.cuda", "torch.accelerator", "torch.backends", "torch.ops.aten")
NAMES = sorted(calls.names(FILES, LIBRARIES))
CALLS = calls.calls(FILES, ("torch.cuda", "torch.accelerator"))


def resolved(name: str) -> Any:
    """What the installed torch has under that dotted name."""
    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def bind(call: Call) -> None:
    """Raise TypeError unless the function takes such a call."""
    inspect.signature(resolved(call.name)).bind(*range(call.positional), **dict.fromkeys(call.keywords))


@pytest.mark.parametrize("name", NAMES)
def test_torch_has_it(name: str) -> None:
    resolved(name)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.where} {call.name}")
def test_torch_takes_that_call(call: Call) -> None:
    assert not call.starred
    bind(call)


def test_calls_were_found() -> None:
    assert {"torch.cuda.mem_get_info", "torch.cuda.get_device_name", "torch.cuda.empty_cache"} <= set(NAMES)
    assert {"torch.accelerator.set_device_index"} <= {call.name for call in CALLS}


def test_a_wrong_call_would_be_found() -> None:
    with pytest.raises(AttributeError):
        resolved("torch.cuda.mem_get_infos")
    with pytest.raises(TypeError):
        bind(Call("x", "torch.cuda.mem_get_info", 2, (), False))
    with pytest.raises(TypeError):
        bind(Call("x", "torch.cuda.empty_cache", 0, ("device",), False))
