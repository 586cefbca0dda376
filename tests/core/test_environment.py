"""Names of the environment that the seeds are set up by: each has a row, a way, and what it claims."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.schema.requests import SubmitBody
from shared import environment
from shared.environment import NAMES
from shared.settings import Settings
from workers.agent.process import environment as ranks_environment
from workers.pool import Pool, PoolError, PoolLayout, parse, read

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
#: As they stand in the five seeds' texts.
OF_SEEDS = frozenset(
    re.findall(
        r"\w+",
        """
ALGO CPU_AFFINITY_CONF MASTER_ADDR MASTER_PORT NCCL_DEBUG PYTORCH_NPU_ALLOC_CONF TASK_QUEUE_ENABLE
TOKENIZERS_PARALLELISM ACL_STREAM_TIMEOUT ASCEND_RT_VISIBLE_DEVICES DEVICE_COUNT HCCL_BUFFSIZE HCCL_SINGLE_NODE
HCCL_TIMEOUT CELERY_CONCURRENCY CUDA_HOME CUTLASS_DIR DATABASE_URL HF_HUB_OFFLINE LD_LIBRARY_PATH MAX_JOBS
PYTORCH_CUDA_ALLOC_CONF TD_HF_OFFLINE TD_UMT5_DEVICE TD_UMT5_TOKENIZER TD_UMT5_TOKENIZER_DIR TRANSFORMERS_OFFLINE
USE_NINJA ASCEND_LAUNCH_BLOCKING DIT_FSDP MAX_CONCURRENT_TASKS MODEL_CKPT_DIR SERVER_PORT T5_CPU TASK_TIMEOUT
ULYSSES_SIZE USE_ATTENTION_CACHE VAE_PARALLEL CUDA_VISIBLE_DEVICES WAN_CHECKPOINT_DIR WAN_DEFAULT_OFFLOAD_MODEL
WAN_DFLOAT11_CPU_OFFLOAD WAN_DFLOAT11_LOCAL_DIR WAN_DFLOAT11_MAX_MEMORY WAN_ENABLE_FSDP WAN_ENABLE_SEQUENCE_PARALLEL
WAN_MODELS_ROOT WAN_MODEL_REVISION WAN_USE_DFLOAT11 WAN_USE_RELIGHTING_LORA WORLD_SIZE
""",
    )
)
_WORD = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\bALGO\b")
_ROW = re.compile(r"^\| `([A-Z0-9_]+)` \| ([^|]+) \| `([^`|]+)` \|", re.MULTILINE)
_WAYS = {"passed": "passed through", "set": "set", "default": "stands in for", "replaced": "replaced by"}
BY_NAME = {name.name: name for name in NAMES}


def field(kind: Any, path: str) -> bool:
    """Whether that struct has a field of that dotted path."""
    for part in path.split("."):
        fields = {one.name: one for one in msgspec.structs.fields(kind)} if hasattr(kind, "__struct_fields__") else {}
        if part not in fields:
            return False
        kind = fields[part].type
    return True


def test_every_name_of_the_seeds_has_a_row() -> None:
    assert len(BY_NAME) == len(NAMES)
    assert set(BY_NAME) >= OF_SEEDS


def test_the_list_is_what_the_seeds_say() -> None:
    seeds = sorted(SEEDS.glob("*.md"))
    if not seeds:
        pytest.skip("the seeds' texts are not here")
    found = {word for seed in seeds for word in _WORD.findall(seed.read_text(encoding="utf-8"))}
    assert found == OF_SEEDS


def test_the_documents_table_says_the_same() -> None:
    rows = {name: (way.strip(), to) for name, way, to in _ROW.findall((ROOT / "docs" / "models.md").read_text())}
    assert rows == {name.name: (_WAYS[name.way], name.setting) for name in NAMES}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.name)
def test_what_a_row_claims_exists(name: environment.Name) -> None:
    setting = name.setting
    if setting.startswith("GENFLEET_"):
        assert setting.removeprefix("GENFLEET_").lower() in Settings.__struct_fields__
    elif setting == "MODEL_CKPT_DIR":
        assert BY_NAME[setting].way == "default"
    elif setting.startswith("genfleet "):
        assert setting == "genfleet models pull"
    else:
        assert field(Pool, setting) or field(SubmitBody, setting)


def test_a_service_advises_on_what_does_nothing() -> None:
    environ = {
        "TASK_TIMEOUT": "1800",
        "DEVICE_COUNT": "8",
        "ULYSSES_SIZE": "8",
        "NCCL_DEBUG": "INFO",
        "SERVER_PORT": "",
    }
    (of_gateway,) = environment.advice(environ, of_pool=False)
    assert "TASK_TIMEOUT" in of_gateway
    assert "GENFLEET_DEFAULT_RUN_TIMEOUT_S" in of_gateway
    (of_worker,) = environment.advice(environ, of_pool=True)
    assert of_worker.startswith("DEVICE_COUNT")
    assert environment.advice({}, of_pool=True) == ()


def test_what_is_passed_through_reaches_the_ranks() -> None:
    passed = {name.name: "word" for name in NAMES if name.way == "passed"}
    others = {"HCCL_WHITELIST_DISABLE": "1", "NCCL_IB_DISABLE": "1", "ASCEND_GLOBAL_LOG_LEVEL": "3"}
    made = ranks_environment(Pool(model="m", env={"ALGO": "1"}), 1, 0, "mark", passed | others)
    assert made.items() >= (passed | others | {"ALGO": "1"}).items()


# --- what stands in for a pool's fields ------------------------------------------------------------------------------


def test_a_pool_that_says_nothing_takes_the_environments_word() -> None:
    environ = {
        "ULYSSES_SIZE": "4",
        "DIT_FSDP": "true",
        "VAE_PARALLEL": "False",
        "USE_ATTENTION_CACHE": "1",
    }
    pool = parse('model = "m"\nwidth = 8', environ=environ)
    assert pool.layout == PoolLayout(ulysses=4, dit_fsdp=True, vae_parallel=False)
    assert pool.cache is not None
    assert (pool.cache.start_step, pool.cache.interval, pool.cache.end_step) == (12, 4, 37)
    assert parse('model = "m"', environ={"T5_CPU": "true"}).text_encoder == "cpu"
    assert parse('model = "m"', environ={"TD_UMT5_DEVICE": "cpu"}).text_encoder == "cpu"
    assert parse('model = "m"', environ={"TD_UMT5_DEVICE": "cuda", "T5_CPU": "false"}).text_encoder == "device"
    both = parse('model = "m"\nwidth = 8', environ={"WAN_ENABLE_FSDP": "1"})
    assert both.layout == PoolLayout(dit_fsdp=True, t5_fsdp=True)


def test_the_file_wins_field_by_field() -> None:
    environ = {"ULYSSES_SIZE": "4", "DIT_FSDP": "true", "USE_ATTENTION_CACHE": "true"}
    text = 'model = "m"\nwidth = 8\n[layout]\nulysses = 8\n[cache]\nstart_step = 1\ninterval = 2\nend_step = 3'
    pool = parse(text, environ=environ)
    assert pool.layout == PoolLayout(ulysses=8, dit_fsdp=True)
    assert pool.cache is not None
    assert pool.cache.start_step == 1
    assert parse('model = "m"', environ={"USE_ATTENTION_CACHE": "false"}).cache is None
    assert parse('model = "dummy"', environ={"ULYSSES_SIZE": "8"}).layout.ulysses is None


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"ULYSSES_SIZE": "many"}, "ULYSSES_SIZE is 'many'"),
        ({"ULYSSES_SIZE": "0"}, "ULYSSES_SIZE"),
        ({"DIT_FSDP": "perhaps"}, "DIT_FSDP is 'perhaps'"),
        ({"ULYSSES_SIZE": "8"}, "with ULYSSES_SIZE from the environment"),
    ],
)
def test_a_value_that_cannot_be_names_its_variable(environ: dict[str, str], told: str) -> None:
    with pytest.raises(PoolError, match=told):
        parse('model = "m"\nwidth = 2', environ=environ)


def test_a_file_is_read_with_this_processs_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('model = "m"\nwidth = 4\n')
    monkeypatch.setenv("ULYSSES_SIZE", "2")
    assert read(file).layout.ulysses == 2
    monkeypatch.delenv("ULYSSES_SIZE")
    assert read(file).layout.ulysses is None
