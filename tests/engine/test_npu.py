"""Ascend without Ascend: every call into torch_npu is held against the wheel's own schemas, and the device's whole file
runs against a stand-in that keeps to them. ``make npu`` reads the facts anew from the wheel.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.npu import calls, facts
from tests.support.npu.calls import Call
from tests.support.npu.facts import Facts
from workers.engine.devices import ascend_errors
from workers.engine.rank import leave_failure

ENGINE = Path(facts.__file__).resolve().parents[3] / "workers" / "engine"
FILES = sorted(ENGINE.rglob("*.py"))
KEPT = facts.kept()
NPU_CALLS = calls.calls(FILES, ("torch_npu", "torch.ops.npu"))


def why_not(call: Call, known: Facts) -> str:
    """What is wrong with a call of torch_npu; empty if it can be made."""
    operator = call.name.removeprefix("torch.ops.npu.").removeprefix("torch_npu.")
    if operator in known.operators:
        arguments = torch._C.parse_schema(f"npu::{known.operators[operator]}").arguments
        by_position = [argument.name for argument in arguments if not argument.kwarg_only]
        taken = by_position[: call.positional]
        needed = {argument.name for argument in arguments if not argument.has_default_value()}
        named = {argument.name for argument in arguments}
    elif call.name in known.functions:
        signature = inspect.signature(eval(f"lambda {known.functions[call.name][1:-1]}: None"))
        by_position, named, needed = [], set(), set()
        for name, parameter in signature.parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                by_position.append(name)
            named.add(name)
            if parameter.default is inspect.Parameter.empty:
                needed.add(name)
        taken = by_position[: call.positional]
    else:
        return "the wheel has no such operator or function (or `make npu` has not been run since)"
    if call.starred:
        return "its arguments cannot be read off"
    if call.positional > len(by_position):
        return f"takes {len(by_position)} arguments by position"
    if unknown := set(call.keywords) - named:
        return f"has no argument {sorted(unknown)}"
    if twice := set(call.keywords) & set(taken):
        return f"gets {sorted(twice)} twice"
    if missing := needed - set(taken) - set(call.keywords):
        return f"needs {sorted(missing)}"
    return ""


@pytest.mark.parametrize("call", NPU_CALLS, ids=lambda call: f"{call.where} {call.name}")
def test_the_wheel_has_what_is_called(call: Call) -> None:
    assert why_not(call, KEPT) == ""


def test_calls_were_found() -> None:
    names = {call.name for call in NPU_CALLS}
    assert {"torch_npu.npu_fusion_attention", "torch_npu.npu.mem_get_info", "torch_npu.npu.empty_cache"} <= names


def test_only_the_devices_name_the_vendors_library() -> None:
    naming = {file.relative_to(ENGINE).parts[0] for file in FILES if "import torch_npu" in file.read_text()}
    assert naming == {"devices"}


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (Call("x", "torch_npu.npu_fusion_atention", 5, (), False), "no such operator"),
        (Call("x", "torch_npu.npu_fusion_attention", 5, ("pre_tokens",), False), "has no argument"),
        (Call("x", "torch_npu.npu_fusion_attention", 4, ("scale",), False), r"needs \['input_layout'\]"),
        (Call("x", "torch_npu.npu_fusion_attention", 5, ("head_num",), False), "twice"),
        (Call("x", "torch_npu.npu_rms_norm", 4, (), False), "by position"),
        (Call("x", "torch_npu.npu.mem_get_info", 2, (), False), "by position"),
    ],
)
def test_a_wrong_call_would_be_found(call: Call, wrong: str) -> None:
    assert re.search(wrong, why_not(call, KEPT))


def test_the_facts_are_the_wheels() -> None:
    wheels = list(facts.CACHE.glob("torch_npu-*.whl"))
    if not wheels:
        pytest.skip("the wheel is not here; `make npu` fetches it")
    assert facts.read(wheels[0]) == KEPT


def test_the_facts_are_of_the_release_that_pairs_with_torch() -> None:
    assert KEPT.version == torch.__version__.partition("+")[0]


# --- errors ----------------------------------------------------------------------------------------------------------


def acl(code: int, what: str = "aclrtSynchronizeDevice") -> RuntimeError:
    """As torch_npu's check of a runtime call words it."""
    return RuntimeError(
        f"npuSynchronizeDevice:build/CMakeFiles/torch_npu.dir/compiler_depend.ts:551 NPU function error: {what}, error "
        f"code is {code}\n[ERROR] 2026-11-20-10:00:00 (PID:7, Device:0, RankID:-1) ERR00100 PTA call acl api failed"
    )


def test_the_words_and_codes_are_the_wheels() -> None:
    ours = {*ascend_errors.LOST, ascend_errors.COLLECTIVE}
    assert ours <= set(KEPT.words)
    assert any(word.startswith(ascend_errors.OUT_OF_MEMORY) for word in KEPT.words)
    assert {"ACL_ERROR_RT_MEMORY_ALLOCATION", "ACL_ERROR_RT_DEVICE_OOM"} == {
        name for name, code in KEPT.errors.items() if code in ascend_errors.MEMORY_CODES
    }


@pytest.mark.parametrize(
    "name",
    [
        "ACL_ERROR_RT_AICORE_EXCEPTION",
        "ACL_ERROR_RT_AICORE_TIMEOUT",
        "ACL_ERROR_RT_LOST_HEARTBEAT",
        "ACL_ERROR_RT_DEVICE_MEM_ERROR",
        "ACL_ERROR_RT_LINK_ERROR",
        "ACL_ERROR_RT_STREAM_SYNC_TIMEOUT",
    ],
)
def test_a_devices_own_error_is_sticky(name: str) -> None:
    """Row 29."""
    error = acl(KEPT.errors[name])
    assert ascend_errors.is_sticky(error)
    assert not ascend_errors.is_out_of_memory(error)


@pytest.mark.parametrize(
    "text",
    [
        "FORCE STOP.[ERROR] 2026-11-20 ERR00100 PTA call acl api failed",
        "HBM MULTI BIT ECC ERROR.",
        "createHCCLComm:ProcessGroupHCCL.cpp:12 HCCL function error: HcclCommInitRootInfo, error code is 7",
    ],
)
def test_a_lost_device_or_group_is_sticky(text: str) -> None:
    assert ascend_errors.is_sticky(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.97 GiB total capacity)"),
        RuntimeError("NPU out of memory. NPUWorkspaceAllocator tried to allocate 512 MiB"),
        acl(207001, "aclrtMallocAlign32"),
        acl(207018, "aclrtMallocPhysical"),
    ],
)
def test_want_of_memory_is_not_sticky(error: RuntimeError) -> None:
    assert ascend_errors.is_out_of_memory(error)
    assert not ascend_errors.is_sticky(error)


@pytest.mark.parametrize(
    "error",
    [
        acl(107002),
        ValueError("FORCE STOP"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("call aclnnAdd failed, detail: EZ1001, error code is 161002"),
    ],
)
def test_a_wrong_call_is_neither(error: Exception) -> None:
    assert not ascend_errors.is_sticky(error)
    assert not ascend_errors.is_out_of_memory(error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (acl(507015), "device_error"),
        (torch.OutOfMemoryError("NPU out of memory. Tried to allocate 2.00 GiB"), "out_of_memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "device_error"),
        (acl(107002), "engine_error"),
    ],
)
def test_a_rank_that_ends_leaves_the_reason(tmp_path: Path, error: Exception, reason: str) -> None:
    leave_failure(tmp_path, 3, error)
    assert json.loads((tmp_path / "failure.json").read_text())["reason"] == reason


# --- the device's whole file -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(checkpoints: Callable[[str], Path]) -> list[dict[str, Any]]:
    """What two ranks found, each in a process with the stand-in."""
    folder = checkpoints("wan21-t2v")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.engine.npu_scene"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(port), str(folder)],
            cwd=ENGINE.parents[1],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = []
    try:
        said = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_the_device_says_what_it_is(scene: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(scene):
        assert found["backend"] == "hccl"
        assert found["device"] == f"npu:{rank}"
        assert found["name"] == "Ascend910B2"
        assert found["memory"] == [60 * 2**30, 64 * 2**30]
        assert found["cleared"] == 1
        assert found["synchronised"] == [f"npu:{rank}"]
        assert found["plain error"] == [False, False]


def test_its_attention_is_torchs(scene: list[dict[str, Any]]) -> None:
    for found in scene:
        assert found["attention torch.float32"] < 1e-6
        assert found["attention torch.bfloat16"] < 2e-2
        kernels = {name: value for name, value in found.items() if name.startswith(("kernel ", "lse "))}
        assert "kernel npu-fusion" in kernels
        assert "lse npu-fusion" in kernels
        assert max(kernels.values()) < 1e-5


def test_a_group_over_its_backend_computes_what_one_process_does(scene: list[dict[str, Any]]) -> None:
    assert all(found["ulysses"] < 1e-6 for found in scene)
    assert scene[0]["video"] < 1e-4


def test_every_line_of_its_file_ran(scene: list[dict[str, Any]]) -> None:
    assert scene[0]["missed"] == []


def test_the_stand_in_has_the_wheels_signatures() -> None:
    from tests.support.npu.stand_in import StandIn

    module = StandIn()
    for name in ("get_device_name", "mem_get_info", "empty_cache"):
        ours = inspect.signature(getattr(module.npu, name))
        plain = ours.replace(
            parameters=[p.replace(annotation=inspect.Parameter.empty) for p in ours.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
        assert str(plain) == KEPT.functions[f"torch_npu.npu.{name}"]
