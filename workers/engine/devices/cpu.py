"""CPU with gloo: the device of tests, of the demo, and of the last resort."""

from __future__ import annotations

import psutil
from typing_extensions import override

from workers.engine.devices import hardware_name
from workers.engine.devices.base import Device, Memory

#: What torch's host allocator says; it says it by a bare ``RuntimeError``, so that its words are all there is to
#: know it by (``alloc_cpu`` in c10/core/impl/alloc_cpu.cpp).
_ALLOCATOR = "DefaultCPUAllocator"


def is_host_memory(error: BaseException) -> bool:
    """Whether that error says that the host's memory ran out."""
    return isinstance(error, MemoryError) or (type(error) is RuntimeError and _ALLOCATOR in str(error))


class Cpu(Device):
    """The host itself; one rank is one process with some of its threads."""

    @override
    def name(self) -> str:
        return hardware_name("cpu")

    @override
    def synchronise(self) -> None:
        return None

    @override
    def memory(self) -> Memory:
        host = psutil.virtual_memory()
        return Memory(free=host.available, total=host.total)

    @override
    def is_out_of_memory(self, error: BaseException) -> bool:
        return super().is_out_of_memory(error) or is_host_memory(error)
