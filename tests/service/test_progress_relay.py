"""What reaches the bucket ``progress`` of what an engine tells."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from shared.messages import Progress, decode
from shared.topology import PROGRESS, progress_key
from tests.support.clock import FakeClock, settle
from tests.support.memory_bus import MemoryBroker
from workers.agent.progress import ProgressRelay


async def test_a_preview_outlives_the_pulses_that_overtake_it(broker: MemoryBroker, clock: FakeClock) -> None:
    bucket = broker.connect("agent").bucket(PROGRESS.name)
    relay = ProgressRelay(bucket, clock)
    running = asyncio.create_task(relay.run())

    def tell(step: int, preview: bytes = b"") -> None:
        relay.tell(Progress(job="j", epoch=1, worker="w1", stage="denoise", step=step, total_steps=9, preview=preview))

    async def written() -> tuple[int, bytes]:
        entry = await bucket.get(progress_key("w1", "j"))
        assert entry is not None
        assert entry.value is not None
        found = decode(entry.value, Progress)
        return found.step, found.preview

    tell(1)
    await settle()
    assert await written() == (1, b"")
    # Both come before the next write may go out.
    tell(2, b"look")
    tell(3)
    await clock.advance(1.0)
    assert await written() == (3, b"look")
    tell(4)
    await clock.advance(1.0)
    assert await written() == (4, b"")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
