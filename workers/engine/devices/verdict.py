"""What an error says of a device, where it is not known any more which device that was. Imports torch."""

from __future__ import annotations

from workers.engine.devices import ascend_errors
from workers.engine.devices.cpu import Cpu


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the host or of any kind of device, ran out."""
    return Cpu().is_out_of_memory(error) or ascend_errors.is_out_of_memory(error)


def is_sticky(error: BaseException) -> bool:
    """Whether this process cannot use its device, of any kind, any more."""
    return Cpu().is_sticky(error) or ascend_errors.is_sticky(error)
