"""An event loop on which a run is a pure function of its seed.

Time is made up: it stands still while anything can go on, then jumps to the next timer. Each simulated process has a
lane of its own; within a lane callbacks run in order, as in a real loop, and the seed draws whose lane goes next, so
that processes interleave as they might. A paused process's lane stands still; what a killed one still unwinds runs
apart, without a draw, so that its leftovers cannot change what follows.

Threads run inline, Unix sockets in memory. Tasks and futures hash by a serial number, because asyncio keeps them in
sets whose order would otherwise be that of addresses.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


class Lane:
    """One process's share of the loop: what it has to do next.

    Attributes:
        paused: it stands still.
        dead: only its unwinding is left.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self.dead = False
        self.handles: deque[asyncio.Handle] = deque()


#: Whose code runs. Tasks inherit it.
LANE: ContextVar[Lane | None] = ContextVar("lane", default=None)


class Deadlock(AssertionError):
    """Nothing can go on and no timer is set."""


class _Ready:
    """What the base loop takes for its deque of ready handles."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def append(self, handle: asyncio.Handle) -> None:
        self._loop.enqueue(handle)

    def clear(self) -> None:
        self._loop.forget_all()

    def __len__(self) -> int:
        return 0


class _Task(asyncio.Task[T]):
    def __init__(self, serial: int, coro: Coroutine[Any, Any, T], loop: SimLoop, name: str | None, context: Context):
        self._serial = serial
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._serial


class _Future(asyncio.Future[T]):
    def __init__(self, serial: int, loop: SimLoop) -> None:
        self._serial = serial
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.BaseEventLoop):
    """See the module's text.

    Args:
        seed: draws which lane goes next.

    Attributes:
        surprises: exceptions that reached the loop itself.
    """

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.surprises: list[str] = []
        self._random = Random(seed).random
        self._time = 0.0
        self._serial = 0
        self._rest = Lane("")
        self._active: list[Lane] = []
        self._dying: deque[asyncio.Handle] = deque()
        self._tasks: dict[Lane, list[_Task[Any]]] = {}
        self._servers: dict[str, Server] = {}
        self._ready = _Ready(self)
        self.set_exception_handler(lambda _, context: self._surprise(context))

    def time(self) -> float:
        return self._time

    # --- lanes -------------------------------------------------------------------------------------------------------

    def enqueue(self, handle: asyncio.Handle) -> None:
        """The handle is ready: to the end of its process's lane."""
        lane = handle._context.get(LANE) or self._rest  # type: ignore[attr-defined]
        if lane.dead:
            self._dying.append(handle)
            return
        lane.handles.append(handle)
        if len(lane.handles) == 1 and not lane.paused:
            self._active.append(lane)

    def forget_all(self) -> None:
        """Drop everything that is ready."""
        for lane in self._active:
            lane.handles.clear()
        self._active.clear()
        self._dying.clear()

    def pause(self, lane: Lane) -> None:
        """Stop a process in its tracks."""
        if not lane.paused and not lane.dead:
            lane.paused = True
            if lane in self._active:
                self._active.remove(lane)

    def resume(self, lane: Lane) -> None:
        """Let it go on."""
        if lane.paused:
            lane.paused = False
            if lane.handles:
                self._active.append(lane)

    def kill(self, lane: Lane) -> None:
        """End a process: none of its tasks goes on but to unwind."""
        if lane.dead:
            return
        if lane in self._active:
            self._active.remove(lane)
        lane.dead, lane.paused = True, False
        self._dying.extend(lane.handles)
        lane.handles.clear()
        self._dying.appendleft(asyncio.Handle(self._cancel_all, (lane,), self, Context()))

    def _cancel_all(self, lane: Lane) -> None:
        for task in self._tasks.pop(lane, []):
            if not task.done():
                task.cancel()

    def _run_once(self) -> None:
        while not self._dying and not self._active:
            while self._scheduled and self._scheduled[0]._cancelled:  # type: ignore[attr-defined]
                heapq.heappop(self._scheduled)._scheduled = False  # type: ignore[attr-defined]
            if not self._scheduled:  # type: ignore[attr-defined]
                raise Deadlock("nothing can go on")
            self._time = max(self._time, self._scheduled[0]._when)  # type: ignore[attr-defined]
            self._wake()
        self._next()._run()

    def _wake(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._when <= self._time:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                self.enqueue(handle)

    def _next(self) -> asyncio.Handle:
        while True:
            if self._dying:
                handle = self._dying.popleft()
            elif self._active:
                active = self._active
                at = int(self._random() * len(active)) if len(active) > 1 else 0
                lane = active[at]
                handle = lane.handles.popleft()
                if not lane.handles:
                    active[at] = active[-1]
                    active.pop()
            else:
                return asyncio.Handle(lambda: None, (), self, Context())
            if not handle._cancelled:
                return handle

    def _surprise(self, context: dict[str, Any]) -> None:
        self.surprises.append(f"{context.get('message')}: {context.get('exception')!r}")

    # --- what the base class asks for --------------------------------------------------------------------------------

    def _write_to_self(self) -> None:
        pass

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        self._serial += 1
        given = copy_context() if context is None else context
        task = _Task(self._serial, coro, self, name, given)
        lane = given.get(LANE)
        if lane is not None:
            if lane.dead:
                task.cancel()
            else:
                tasks = self._tasks.setdefault(lane, [])
                tasks.append(task)
                if len(tasks) > 256:
                    self._tasks[lane] = [known for known in tasks if not known.done()]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        self._serial += 1
        return _Future(self._serial, self)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_soon(run)
        return future

    # --- Unix sockets ------------------------------------------------------------------------------------------------

    async def create_unix_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: Any = None, *, start_serving: bool = True
    ) -> Server:
        Path(path).touch()  # noqa: ASYNC240 - in memory there is nothing to wait for
        server = Server(self._servers, str(path), protocol_factory, start_serving)
        return server

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.Protocol], path: Any = None
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        server = self._servers.get(str(path))
        if server is None:
            raise ConnectionRefusedError(str(path))
        mine, theirs = protocol_factory(), server.factory()
        here = Transport(self, mine, copy_context())
        there = Transport(self, theirs, server.context)  # type: ignore[arg-type]
        here.peer, there.peer = there, here
        self.call_soon(theirs.connection_made, there, context=server.context)
        mine.connection_made(here)
        return here, mine


class Server:
    """A Unix socket that is listened on, in memory."""

    def __init__(
        self, servers: dict[str, Server], path: str, factory: Callable[[], asyncio.BaseProtocol], serving: bool
    ) -> None:
        self.factory = factory
        self.context = copy_context()
        self._servers = servers
        self._path = path
        if serving:
            servers[path] = self

    async def start_serving(self) -> None:
        """Take connections from now on."""
        self._servers[self._path] = self

    def close(self) -> None:
        """Take no more."""
        self._servers.pop(self._path, None)

    async def wait_closed(self) -> None:
        """It is closed at once."""


class Transport(asyncio.Transport):
    """One end of a connection in memory. What is written arrives in order, in the other process's lane."""

    def __init__(self, loop: SimLoop, protocol: asyncio.Protocol, context: Context) -> None:
        super().__init__()
        self.peer: Transport | None = None
        self.context = context
        self._loop = loop
        self._protocol = protocol
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing and self.peer is not None:
            self._loop.call_soon(self.peer.deliver, bytes(data), context=self.peer.context)

    def deliver(self, data: bytes) -> None:
        """Bytes arrive."""
        if not self._closing:
            self._protocol.data_received(data)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._protocol.connection_lost, None, context=self.context)
        if self.peer is not None:
            self._loop.call_soon(self.peer.hang_up, context=self.peer.context)

    def hang_up(self) -> None:
        """The other end has closed."""
        if not self._closing:
            self._protocol.eof_received()
            self.close()

    abort = close

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol
