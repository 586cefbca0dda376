"""CPU with gloo: the device of tests, of the demo, and of the last resort."""

from __future__ import annotations

import psutil
from typing_extensions import override

from workers.engine.devices import hardware_name
from workers.engine.devices.base import Device, Memory


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
