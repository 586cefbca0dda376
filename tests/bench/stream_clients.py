"""Many clients of event streams in one process, as cheap as they can be made: ``python -m tests.bench.stream_clients
PORT CLIENTS KEY JOB…`` opens that many streams over the jobs in turn, and then answers each line on its input with one
JSON line: how many streams are open, how many heartbeats and progress events came since the last line, and how long a
sample of the events was on its way, in seconds, sorted.

A progress event's ``step`` is the microsecond of the monotonic clock at which it was published, cut to 31 bits.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

_STEP = b'"step":'
_TURN = 2**31
#: Of so many events one is timed.
_EACH = 7


class _Seen:
    open = 0
    beats = 0
    events = 0
    late: list[float] = []


class _Stream(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self._request = request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)
        _Seen.open += 1

    def connection_lost(self, error: Exception | None) -> None:
        _Seen.open -= 1

    def data_received(self, data: bytes) -> None:
        at = data.rfind(_STEP)
        if at < 0:
            _Seen.beats += data.count(b": alive")
            return
        _Seen.events += data.count(b"event: progress")
        if _Seen.events % _EACH == 0:
            end = data.find(b",", at)
            if end > 0:
                now = time.monotonic_ns() // 1000 % _TURN
                _Seen.late.append((now - int(data[at + len(_STEP) : end])) % _TURN / 1e6)


async def main() -> None:
    """See the module."""
    port, clients, key, jobs = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    requests = [
        f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        for job in jobs
    ]
    gate = asyncio.Semaphore(64)

    async def open_one(number: int) -> None:
        async with gate:
            request = requests[number % len(requests)]
            await loop.create_connection(lambda: _Stream(request), "127.0.0.1", port)

    await asyncio.gather(*(open_one(number) for number in range(clients)))
    while await lines.readline():
        late = sorted(_Seen.late)
        answer = {"open": _Seen.open, "beats": _Seen.beats, "events": _Seen.events, "late": late}
        _Seen.beats, _Seen.events, _Seen.late = 0, 0, []
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
