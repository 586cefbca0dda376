"""How an attempt's end becomes known: the result is put until the bus says that it is there, an idempotent write of one
key that only this agent writes.

Whether it came too late, and what is to become of the attempt's files then, is for the scheduler to say, which knows
the record (``scheduler.leftovers``); so whoever has put files into the store writes a result, even one that counts for
nothing.
"""

from __future__ import annotations

from msgspec.structs import replace

from shared.bus import Bus
from shared.clock import Clock
from shared.errors import BucketFull, BusError, BusUnavailable
from shared.messages import Failed, Reason, Result, encode
from shared.telemetry import log
from shared.topology import RESULTS, result_key

#: Seconds between tries, doubling up to the second.
RETRY_S = (0.1, 2.0)

_log = log(__name__)


class Results:
    """The results of one agent's attempts."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._results = bus.bucket(RESULTS.name)
        self._clock = clock

    async def deliver(self, result: Result) -> None:
        """Write the result, however long that takes."""
        key = result_key(result.worker, result.job, result.epoch)
        wait, longest = RETRY_S
        while True:
            try:
                await self._results.put(key, encode(result))
                return
            except (BusUnavailable, BucketFull) as error:
                _log.warning("result_delayed", error=str(error), retry_s=wait)
            except BusError as error:
                # The bus will never carry this one (too large): say so instead.
                _log.error("result_refused", error=str(error))
                message = f"the result could not be written: {error}"[:500]
                result = replace(result, outcome=Failed(reason=Reason.ENGINE_ERROR, message=message))
            await self._clock.sleep(wait)
            wait = min(2 * wait, longest)
