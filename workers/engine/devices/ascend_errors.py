"""What an Ascend device's errors mean. torch_npu has a type for want of memory only; all else it raises as a bare
``RuntimeError``, so that its words and the runtime's error code are all there is to know it by.

The words are those of torch_npu 2.13.0's library, the codes those of its ``rt_error_codes.h``; a test looks for both in
what the wheel says. Nothing of torch_npu is imported.
"""

from __future__ import annotations

import re

#: Said by the runtime's and the workspace's allocator, where they do not raise ``torch.OutOfMemoryError``.
OUT_OF_MEMORY = "NPU out of memory. "
#: A device, its memory or a link is lost, or the device was told to stop.
LOST = (
    "FORCE STOP",
    "UCE ERROR",
    "HBM MULTI BIT ECC ERROR",
    "SUSPECT MEM ERROR",
    "SUSPECT REMOTE ERROR",
    "HCCS LINK ERROR",
    "UB LINK ERROR",
    "HCCL OP RETRY FAILED",
)
#: A collective's communicator is not to be used after its first error.
COLLECTIVE = "HCCL function error: "
#: The runtime's codes 107… are wrong calls, 207… want of a resource; 507… come from the device: an exception or
#: timeout of a core, a lost heartbeat, an error of its memory or link. What follows on such a context fails too.
DEVICE_CODES = range(507_000, 508_000)
#: Memory could not be allocated on the device, in the codes of the runtime.
MEMORY_CODES = frozenset({207001, 207018})
_CODE = re.compile(r", error code is (\d+)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that error of torch_npu says that a device's memory ran out."""
    return isinstance(error, RuntimeError) and (OUT_OF_MEMORY in str(error) or bool(_codes(error) & MEMORY_CODES))


def is_sticky(error: BaseException) -> bool:
    """Whether after that error of torch_npu the process cannot use its device, or its group, any more."""
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return False
    text = str(error)
    if COLLECTIVE in text or any(word in text for word in LOST):
        return True
    return any(code in DEVICE_CODES for code in _codes(error))


def _codes(error: BaseException) -> set[int]:
    return {int(code) for code in _CODE.findall(str(error))}
