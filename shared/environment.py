"""Names of the environment that the services before genfleet were set up by, and what has become of each. Pure.

``docs/models.md`` shows this table to operators. A name has one way:

- ``passed``: a runtime or library gets it: the ranks' environment is the agent's and the pool's ``env``.
- ``set``: genfleet sets it for the ranks, from the pool.
- ``default``: it stands in for a field of the pool file that the file does not give.
- ``replaced``: it does nothing here; a service that finds it at its start says what does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Way = Literal["passed", "set", "default", "replaced"]


class Name(Struct, frozen=True):
    """One name.

    Attributes:
        setting: what it stands in for, is set from or replaced by: ``GENFLEET_…``, a pool file's field, a command.
        what: it does, or did.
    """

    name: str
    way: Way
    setting: str
    what: str


def _passed(what: str, *names: str) -> tuple[Name, ...]:
    return tuple(Name(name, "passed", "env", what) for name in names)


def _set(setting: str, what: str, *names: str) -> tuple[Name, ...]:
    return tuple(Name(name, "set", setting, what) for name in names)


def _default(setting: str, what: str, name: str) -> tuple[Name, ...]:
    return (Name(name, "default", setting, what),)


def _replaced(setting: str, what: str, *names: str) -> tuple[Name, ...]:
    return tuple(Name(name, "replaced", setting, what) for name in names)


NAMES: tuple[Name, ...] = (
    *_passed("MindIE's choice of attention algorithm; genfleet's own is the pool's `attention`", "ALGO"),
    *_passed("how torch_npu queues operators (0, 1, 2)", "TASK_QUEUE_ENABLE"),
    *_passed("torch_npu binds threads to the cores near a device", "CPU_AFFINITY_CONF"),
    *_passed("the device allocator", "PYTORCH_NPU_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *_passed("`false` unless it is set", "TOKENIZERS_PARALLELISM"),
    *_passed("log level of NCCL; all other `NCCL_*` likewise", "NCCL_DEBUG"),
    *_passed("buffers and limits of HCCL; all other `HCCL_*` likewise", "HCCL_BUFFSIZE", "HCCL_TIMEOUT"),
    *_passed("HCCL's limits for making connections and for one operation", "HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT"),
    *_passed("a hint of HiDream's scripts", "HCCL_SINGLE_NODE"),
    *_passed("operators one by one, for debugging; all other `ASCEND_*` likewise", "ASCEND_LAUNCH_BLOCKING"),
    *_passed("the runtime's limit for one stream", "ACL_STREAM_TIMEOUT"),
    *_passed("for building kernels; nothing is built here", "CUDA_HOME", "CUTLASS_DIR", "MAX_JOBS", "USE_NINJA"),
    *_passed("where libraries are found", "LD_LIBRARY_PATH"),
    *_set("devices", "the group's devices; those that were visible before are counted from 0", "CUDA_VISIBLE_DEVICES"),
    *_set("devices", "the same on Ascend", "ASCEND_RT_VISIBLE_DEVICES"),
    *_set("download", "1 for the ranks always: a worker, if asked to, downloads before", "HF_HUB_OFFLINE"),
    *_set("download", "the same of transformers", "TRANSFORMERS_OFFLINE"),
    *_set("rendezvous", "where ranks meet, by torchrun; on one machine the loopback", "MASTER_ADDR", "MASTER_PORT"),
    *_set("width", "how many ranks there are", "WORLD_SIZE"),
    *_default("layout.ulysses", "ranks that share a sequence", "ULYSSES_SIZE"),
    *_default("layout.dit_fsdp", "the denoiser's weights shared out", "DIT_FSDP"),
    *_default("layout.vae_parallel", "the VAE split over the ranks", "VAE_PARALLEL"),
    *_default("cache", "true: reuse of attention from step 12 to 37, every 4th anew", "USE_ATTENTION_CACHE"),
    *_default("layout.dit_fsdp", "true: `layout.dit_fsdp` and `layout.t5_fsdp`", "WAN_ENABLE_FSDP"),
    *_default("text_encoder", "true: `cpu`", "T5_CPU"),
    *_default("text_encoder", "`cpu`", "TD_UMT5_DEVICE"),
    *_default("model", "folders in which catalogue models are looked for, colons between them", "MODEL_CKPT_DIR"),
    *_replaced("width", "how many devices", "DEVICE_COUNT"),
    *_replaced("GENFLEET_PORT", "the gateway's port", "SERVER_PORT"),
    *_replaced("GENFLEET_DEFAULT_RUN_TIMEOUT_S", "how long a job may run", "TASK_TIMEOUT"),
    *_replaced("GENFLEET_WORKERS", "jobs at once: one per worker", "MAX_CONCURRENT_TASKS", "CELERY_CONCURRENCY"),
    *_replaced("GENFLEET_NATS_URL", "where jobs are kept", "DATABASE_URL"),
    *_replaced("model", "the checkpoint's folder", "WAN_CHECKPOINT_DIR"),
    *_replaced("MODEL_CKPT_DIR", "where checkpoints are kept", "WAN_MODELS_ROOT"),
    *_replaced("revision", "which revision is downloaded", "WAN_MODEL_REVISION"),
    *_replaced("offload", "parts that wait on the host", "WAN_DEFAULT_OFFLOAD_MODEL", "WAN_DFLOAT11_CPU_OFFLOAD"),
    *_replaced("layout.ulysses", "1 is without", "WAN_ENABLE_SEQUENCE_PARALLEL"),
    *_replaced("quant", "smaller weights", "WAN_USE_DFLOAT11", "WAN_DFLOAT11_LOCAL_DIR", "WAN_DFLOAT11_MAX_MEMORY"),
    *_replaced("lora", "a LoRA in the weights", "WAN_USE_RELIGHTING_LORA"),
    *_replaced("model", "the tokenizer is the checkpoint's own", "TD_UMT5_TOKENIZER", "TD_UMT5_TOKENIZER_DIR"),
    *_replaced("download", "nothing is downloaded unless it is asked for", "TD_HF_OFFLINE"),
)


def advice(environ: Mapping[str, str], *, of_pool: bool) -> tuple[str, ...]:
    """A sentence for each name that is set and does nothing here: for a worker those that its pool file replaces
    (``of_pool``), for other services those that their own settings do."""
    return tuple(
        f"{name.name} is set and does nothing here; {name.what}: use {name.setting}"
        for name in NAMES
        if name.way == "replaced" and environ.get(name.name) and name.setting.startswith("GENFLEET_") != of_pool
    )
