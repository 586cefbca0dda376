"""Which devices a machine has, by a folder that pretends to be its /dev."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.plan import PlanError, sized, split_devices
from shared.settings import Settings
from workers.detection import Found, choose, find

Machine = Callable[..., Path]
ASCEND = ("davinci_manager", "devmm_svm", "hisi_hdc", *(f"davinci{index}" for index in range(8)))
NVIDIA = ("nvidiactl", "nvidia-uvm", "nvidia-modeset", *(f"nvidia{index}" for index in range(4)))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A root whose ``dev`` has these files."""

    def make(*files: str) -> Path:
        (tmp_path / "dev").mkdir()
        for file in ("null", "nvidia-caps-not", "davinci", *files):
            (tmp_path / "dev" / file).touch()
        return tmp_path

    return make


def test_without_device_files_there_is_the_cpu(machine: Machine) -> None:
    root = machine()
    assert find({}, root) == ()
    assert choose("auto", {}, root) == Found("cpu", 1)
    assert choose("cuda", {}, root) == Found("cuda", 0)


def test_devices_are_counted_by_vendor(machine: Machine) -> None:
    root = machine(*ASCEND)
    assert find({}, root) == (Found("npu", 8),)
    assert choose("auto", {}, root) == Found("npu", 8)
    assert choose("cpu", {}, root) == Found("cpu", 1)


def test_both_vendors_in_one_machine(machine: Machine) -> None:
    root = machine(*ASCEND, *NVIDIA)
    assert find({}, root) == (Found("npu", 8), Found("cuda", 4))
    assert choose("cuda", {}, root) == Found("cuda", 4)
    assert choose("auto", {"ASCEND_RT_VISIBLE_DEVICES": ""}, root) == Found("cuda", 4)


def test_files_without_a_driver_are_nothing(machine: Machine) -> None:
    assert find({}, machine("nvidia0", "davinci0")) == ()


@pytest.mark.parametrize(
    ("shown", "count"),
    [
        ("0,1", 2),
        ("3", 1),
        ("2, 0", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,2", 1),
        ("1,9,2", 1),
        ("GPU-8f2a,GPU-11c0", 2),
        ("0,1,2,3,0", 4),
    ],
)
def test_a_visibility_variable_is_read_as_the_runtime_does(machine: Machine, shown: str, count: int) -> None:
    found = choose("cuda", {"CUDA_VISIBLE_DEVICES": shown}, machine(*NVIDIA))
    assert found == Found("cuda", count)


def test_a_container_counts_the_devices_that_it_was_given(machine: Machine) -> None:
    root = machine("nvidiactl", "nvidia5", "nvidia6")
    assert choose("auto", {"CUDA_VISIBLE_DEVICES": "0,1"}, root) == Found("cuda", 2)


def test_all_devices_are_shared_out_in_powers_of_two(machine: Machine) -> None:
    eight = Found("npu", 8)
    assert sized(Settings(group_size=0), eight) == Settings(group_size=8, device="npu")
    two = sized(Settings(group_size=0, workers=2), eight)
    assert (two.group_size, split_devices(two)) == (4, ((0, 1, 2, 3), (4, 5, 6, 7)))
    assert sized(Settings(group_size=0, workers=3), eight).group_size == 2
    assert sized(Settings(group_size=0), Found("cuda", 6)).group_size == 4
    assert sized(Settings(group_size=0), Found("cpu", 1)) == Settings(device="cpu")
    some = sized(Settings(group_size=0, devices="7,5,3"), eight)
    assert split_devices(some) == ((7, 5),)
    assert sized(Settings(group_size=2), eight) == Settings(group_size=2)
    with pytest.raises(PlanError, match="4 devices"):
        sized(Settings(group_size=0, workers=5), Found("cuda", 4))


def test_a_rank_keeps_the_devices_that_its_agent_showed_it() -> None:
    """In a process of its own, because it is that process's environment."""
    code = (
        "import os\n"
        "from workers.engine.rank import environment\n"
        "from workers.pool import Pool\n"
        "pool = Pool(model='m', device='cuda', width=4, devices=(4, 5, 6, 7), env={'HCCL_BUFFSIZE': '512'})\n"
        "os.environ['CUDA_VISIBLE_DEVICES'] = '6,7'\n"
        "environment(pool, 'cuda', 2)\n"
        "shown = os.environ.pop('CUDA_VISIBLE_DEVICES')\n"
        "environment(pool, 'cuda', 4)\n"
        "print(shown, os.environ['CUDA_VISIBLE_DEVICES'], os.environ['HCCL_BUFFSIZE'])\n"
    )
    root = Path(__file__).resolve().parents[2]
    made = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["6,7", "4,5,6,7", "512"]
