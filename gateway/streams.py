"""From one follower to many event streams.

A client costs one ``Subscriber``: a cursor into the record's own transition log, and one slot each for the latest
progress, queue position and preview. Nothing is queued per client, so one that reads slowly holds no memory: it gets
fewer progress events, and every transition, because those are read from the log when it is ready for them. Events are
encoded once per job, not per client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Set
from dataclasses import dataclass, field

from gateway.auth import Caller
from gateway.schema.jobs import QueueView
from gateway.views import preview_event, progress_event, queue_event, transition_event
from shared.messages import TERMINAL, JobRecord, Progress, State

HEARTBEAT = b": alive\n\n"
#: Clients wait that many milliseconds before they connect again.
_RETRY = b"retry: 1000\n\n"
_DELETED = b"event: deleted\ndata: {}\n\n"
#: The last of a stream whose client may read no more.
OVER = b": what you came with has ended\n\n"


@dataclass(eq=False, slots=True)
class Subscriber:
    """One client: ``next_index`` is the transition it is owed next, ``caller`` who it is; None: ourselves."""

    next_index: int
    caller: Caller | None = None
    ended: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    progress: bytes | None = None
    queue: bytes | None = None
    preview: bytes | None = None
    heartbeat: bool = False


@dataclass(frozen=True, slots=True)
class Now:
    """A job as it is at this moment; ``progress`` and ``queue`` only where they say something."""

    record: JobRecord
    progress: Progress | None
    queue: QueueView | None
    #: Of its present attempt; the latest that has a picture.
    preview: Progress | None = None


class Feed:
    """The events of one job for all clients that watch it; exists while there are any."""

    def __init__(self, record: JobRecord) -> None:
        self.record = record
        self.deleted = False
        self.subscribers: set[Subscriber] = set()
        self._encoded: dict[int, bytes] = {}
        self._last_queue: bytes | None = None

    def changed(self, record: JobRecord) -> None:
        """The record has a new revision."""
        self.record = record
        for subscriber in self.subscribers:
            subscriber.wake.set()

    def gone(self) -> None:
        """The record was deleted."""
        self.deleted = True
        for subscriber in self.subscribers:
            subscriber.wake.set()

    def progressed(self, progress: Progress) -> None:
        """A worker said how far it is."""
        event = progress_event(progress, self.record.request.n)
        for subscriber in self.subscribers:
            subscriber.progress = event
            subscriber.wake.set()

    def previewed(self, progress: Progress) -> None:
        """There is a new picture of it."""
        event = preview_event(progress)
        for subscriber in self.subscribers:
            subscriber.preview = event
            subscriber.wake.set()

    def queued(self, queue: QueueView) -> None:
        """The job's place in the queue; sent on only if it changed."""
        event = queue_event(queue)
        if event == self._last_queue:
            return
        self._last_queue = event
        for subscriber in self.subscribers:
            subscriber.queue = event
            subscriber.wake.set()

    def owed(self, subscriber: Subscriber) -> bytes:
        """The transitions that the subscriber has not had yet, encoded; empty if there are none."""
        parts = []
        for entry in self.record.transitions:
            if entry.index >= subscriber.next_index:
                event = self._encoded.get(entry.index)
                if event is None:
                    event = self._encoded[entry.index] = transition_event(self.record, entry)
                parts.append(event)
                subscriber.next_index = entry.index + 1
        return b"".join(parts)


class Streams:
    """All event streams of this process.

    Attributes:
        over: whether what that caller came with has ended; asked at every heartbeat.
    """

    def __init__(self) -> None:
        self.over: Callable[[Caller], bool] = lambda _: False
        self.feeds: dict[str, Feed] = {}
        self.clients = 0
        self._closing = False

    def feed(self, job: str) -> Feed | None:
        """The job's feed, if anyone watches it."""
        return self.feeds.get(job)

    @property
    def closing(self) -> bool:
        """Whether this process ends; nothing can be waited for any more."""
        return self._closing

    def beat(self) -> None:
        """Every client gets a sign of life that has had nothing else, or its end, if what it came with is over."""
        for feed in self.feeds.values():
            for subscriber in feed.subscribers:
                subscriber.heartbeat = True
                subscriber.ended |= subscriber.caller is not None and self.over(subscriber.caller)
                subscriber.wake.set()

    def close(self) -> None:
        """End every stream, and new ones at once; clients will resume elsewhere."""
        self._closing = True
        for feed in self.feeds.values():
            for subscriber in feed.subscribers:
                subscriber.wake.set()

    def end(self, those: Set[str]) -> None:
        """Those keys and sessions are good no longer: end what was begun with them. Looks at every stream, once for
        all that are told of together."""
        for feed in self.feeds.values():
            for subscriber in feed.subscribers:
                caller = subscriber.caller
                if caller is not None and (caller.by in those or caller.session in those):
                    subscriber.ended = True
                    subscriber.wake.set()

    async def events(
        self, job: str, look: Callable[[], Now | None], next_index: int, caller: Caller | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The job's events from transition ``next_index`` on, to the terminal one, or to ``OVER``.

        Args:
            caller: who reads them, for as long as what it came with is good.
            look: the job's present state, None if it is gone. Asked when the stream begins to flow, which is later
                than the request was answered: what happened in between must not be missed.
        """
        yield _RETRY
        now = look()
        if now is None:
            yield _DELETED
            return
        feed = self.feeds.get(job)
        if feed is None:
            feed = self.feeds[job] = Feed(now.record)
        subscriber = Subscriber(next_index, caller)
        if now.progress is not None:
            subscriber.progress = progress_event(now.progress, now.record.request.n)
        subscriber.queue = None if now.queue is None else queue_event(now.queue)
        subscriber.preview = None if now.preview is None else preview_event(now.preview)
        feed.subscribers.add(subscriber)
        self.clients += 1
        try:
            while not (self._closing or subscriber.ended):
                # The record first: no progress is told after the end, and none of an attempt before its assignment.
                record = feed.record
                events = feed.owed(subscriber)
                if record.state in TERMINAL or feed.deleted:
                    yield events if record.state in TERMINAL else events + _DELETED
                    return
                if subscriber.queue is not None and record.state is State.QUEUED:
                    events += subscriber.queue
                if subscriber.progress is not None:
                    events += subscriber.progress
                if subscriber.preview is not None:
                    events += subscriber.preview
                if not events and subscriber.heartbeat:
                    events = HEARTBEAT
                subscriber.queue = subscriber.progress = subscriber.preview = None
                subscriber.heartbeat = False
                if events:
                    yield events
                else:
                    await subscriber.wake.wait()
                subscriber.wake.clear()
            if subscriber.ended:
                yield OVER
        finally:
            self.clients -= 1
            feed.subscribers.discard(subscriber)
            if not feed.subscribers and self.feeds.get(job) is feed:
                del self.feeds[job]
