"""The pool file: what it says, what it refuses, and which devices it shows a group."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from shared.messages import StepCache
from workers.pool import Pool, PoolError, PoolLayout, parse, read, schema, visible_devices

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "deploy" / "pools").glob("*.toml"))


def test_the_smallest_pool() -> None:
    assert parse('model = "wan-demo"') == Pool(model="wan-demo")


def test_a_whole_pool() -> None:
    pool = parse(
        """
        model = "/models/Wan2.1-T2V-14B"
        name = "ascend-a"
        serve_as = "wan2.1-14b"
        device = "npu"
        devices = [0, 1, 2, 3]
        width = 4
        narrowest = 2
        [layout]
        cfg = 2
        ulysses = 2
        dit_fsdp = true
        [cache]
        start_step = 12
        interval = 4
        end_step = 37
        [limits]
        silence_timeout_s = 60
        [env]
        HCCL_CONNECT_TIMEOUT = "600"
        """
    )
    assert pool.devices == (0, 1, 2, 3)
    assert pool.layout == PoolLayout(cfg=2, ulysses=2, dit_fsdp=True)
    assert pool.limits.silence_timeout_s == 60.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "model"),
        ("model = ", "TOML"),
        ('model = "a"\nwidht = 2', "widht"),
        ('model = "a"\nwidth = 0', "width"),
        ('model = "a"\nwidth = "two"', "width"),
        ('model = "a"\nname = "A B"', "name"),
        ('model = "a"\nserve_as = "../x"', "serve_as"),
        ('model = "a"\ndevice = "tpu"', "device"),
        ('model = "a"\nwidth = 2\ndevices = [0]', "devices"),
        ('model = "a"\nwidth = 2\ndevices = [1, 1]', "devices"),
        ('model = "a"\ndevices = [-1]', "devices"),
        ('model = "a"\nwidth = 2\nnarrowest = 4', "narrowest"),
        ('model = "a"\nwidth = 3\n[layout]\ncfg = 3', "layout.cfg"),
        ('model = "a"\nwidth = 8\n[layout]\ncfg = 2\nulysses = 2', "ulysses"),
        ('model = "a"\n[limits]\nload_timeout_s = 0', "load_timeout_s"),
        ('model = "a"\n[limits]\nlaunch_attempts = 11', "launch_attempts"),
        ('model = "a"\n[env]\nX = 1', "env"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(PoolError, match=named.replace(".", r"\.")):
        parse(text, source="p.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"none\.toml"):
        read(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PoolError, match=r"binary\.toml"):
        read(tmp_path / "binary.toml")


def test_the_schema_is_one() -> None:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    validator = jsonschema.Draft202012Validator(found)
    assert validator.is_valid({"model": "dummy", "width": 8})
    assert not validator.is_valid({"model": "dummy", "width": 0})
    assert not validator.is_valid({"modle": "dummy"})


def test_there_are_examples() -> None:
    assert {"demo.toml", "dummy.toml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_can_be_used(path: Path) -> None:
    assert read(path).name


def test_cpu_has_no_devices_to_choose() -> None:
    assert visible_devices(Pool(model="m", device="cpu", width=4), 2, 0, {}) == {}


def test_without_a_list_at_full_width_the_environment_stays() -> None:
    assert visible_devices(Pool(model="m", device="cuda", width=4), 4, 0, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == {}


def test_listed_devices_are_shown() -> None:
    pool = Pool(model="m", device="npu", width=2, devices=(5, 3))
    assert visible_devices(pool, 2, 0, {}) == {"ASCEND_RT_VISIBLE_DEVICES": "5,3"}


def test_a_narrower_group_gets_its_slice() -> None:
    pool = Pool(model="m", device="cuda", width=8)
    assert visible_devices(pool, 4, 4, {}) == {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}


def test_indices_count_within_what_is_shown_already() -> None:
    pool = Pool(model="m", device="cuda", width=2, devices=(0, 2))
    shown = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}
    assert visible_devices(pool, 2, 0, shown) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}


def test_an_unknown_device_gets_every_vendors_variable() -> None:
    pool = Pool(model="m", device="auto", width=2, devices=(0, 1))
    assert set(visible_devices(pool, 2, 0, {})) == {"CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"}


def test_only_the_dummy_holds_several_jobs_at_once() -> None:
    assert parse('model = "dummy"\ncapacity = 8').capacity == 8
    with pytest.raises(PoolError, match="only the dummy"):
        parse('model = "wan-demo"\ncapacity = 2')


def test_a_pool_of_several_models_is_seen_by_a_group_as_the_one_it_is_launched_with() -> None:
    pool = parse(
        'model = "wan-demo"\nserve_as = "fast"\ndtype = "float32"\n'
        'others = [{ model = "/models/14b", serve_as = "fine", dtype = "bfloat16", layout = { dit_fsdp = true } }]\n'
    )
    assert pool.names == ("fast", "fine")
    assert pool.serving("") is pool
    assert pool.serving("fast") is pool
    fine = pool.serving("fine")
    assert (fine.model, fine.serve_as, fine.dtype, fine.layout.dit_fsdp) == ("/models/14b", "fine", "bfloat16", True)
    assert fine.names == ("fine", "fast")
    fast = fine.serving("fast")
    assert (fast.model, fast.dtype, fast.layout) == (pool.model, pool.dtype, pool.layout)
    with pytest.raises(PoolError, match="has no model 'best'"):
        pool.serving("best")
    assert parse('model = "wan-demo"').names == ()


def test_accelerators() -> None:
    plain = parse('model = "wan-demo"')
    assert (plain.attention, plain.compile, plain.fuse_qkv, plain.quant, plain.offload) == (
        *("auto", False, False),
        *("none", "none"),
    )
    pool = parse('model = "a"\nattention = "flash3"\ncompile = true\nquant = "float8"\n[step_cache]\nthreshold = 0.1')
    assert (pool.attention, pool.compile, pool.quant) == ("flash3", True, "float8")
    assert pool.step_cache == StepCache(threshold=0.1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('attention = "fast"', "Invalid enum value 'fast'"),
        ("fuse_qkv = true\nlayout.dit_fsdp = true", "`fuse_qkv` and `layout.dit_fsdp`"),
        ('quant = "int8"\nlayout.dit_fsdp = true', "`quant` and `layout.dit_fsdp`"),
        ('offload = "model"\nlayout.t5_fsdp = true', "`offload` and sharded weights"),
        ('quant = "int8"\nlora = [{ name = "ink", path = "/ink.safetensors" }]', "`quant` and `lora`"),
        ('fuse_qkv = true\nquant = "int8"', "`fuse_qkv` and `quant`"),
        ('fuse_qkv = true\noffload = "experts"', "`fuse_qkv` and `offload`"),
        ("step_cache = { threshold = 2 }", "`step_cache.threshold` is from 0 to 1, not 2"),
        (
            'serve_as = "a"\nquant = "int8"\nothers = [{ model = "b", serve_as = "b", layout = { dit_fsdp = true } }]',
            "`quant` and `layout.dit_fsdp`",
        ),
    ],
)
def test_accelerators_that_do_not_go_together(text: str, says: str) -> None:
    with pytest.raises(PoolError, match=says):
        parse(f'model = "wan-demo"\n{text}')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('model = "a"\nothers = [{ model = "b", serve_as = "b" }]', "`serve_as` must say"),
        ('model = "a"\nserve_as = "b"\nothers = [{ model = "b", serve_as = "b" }]', "two models under one name"),
        ('model = "dummy"\nserve_as = "a"\nothers = [{ model = "b", serve_as = "b" }]', "the dummy engine beside"),
        ('model = "a"\nserve_as = "a"\nothers = [{ model = "b" }]', "missing required field `serve_as`"),
        (
            'model = "a"\nserve_as = "a"\n[[others]]\nmodel = "b"\nserve_as = "b"\nlayout = { cfg = 2, ulysses = 2 }',
            "`width` is 1",
        ),
    ],
)
def test_a_pool_of_several_models_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(PoolError, match=says):
        parse(text)
