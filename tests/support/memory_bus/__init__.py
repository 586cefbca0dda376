"""The bus in memory, for tests: every fault that the real one shows, on the clock it is given.

One ``MemoryBroker`` stands for the server, each ``connect(name)`` for one process's connection. Nothing here waits
except on the clock and on other tasks. Each call gives way to other tasks before and after it takes effect, as a
network does, so that races between read and write can happen.

What may be provoked: ``stop``/``start`` (memory buckets vanish), ``pause``/``resume`` (a stopped process: calls time
out, writes happen later), ``cut``/``mend`` (one connection), ``lose_answer``, ``refuse``, ``redeliver``,
``duplicate``, ``lose_reply``, ``coalesce``, and ``before_write``/``after_write`` to step in at any write.
"""

from tests.support.memory_bus.broker import MemoryBroker
from tests.support.memory_bus.bus import CALL_TIMEOUT_S, MemoryBus
from tests.support.memory_bus.stream import Write

__all__ = ["CALL_TIMEOUT_S", "MemoryBroker", "MemoryBus", "Write"]
