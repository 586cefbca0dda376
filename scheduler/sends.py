"""The shell's voice: what is said to one start of one worker. An assignment is a request, whose answer the core is
told; a cancel is an order that is kept for the worker, and a nudge to look at it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from scheduler.commands import SendAssign, SendCancel
from scheduler.events import Answer, AssignAnswered, Event, NoAnswer, NoListener
from scheduler.grants import Granting
from scheduler.metrics import Metrics
from scheduler.records import Revision
from scheduler.watch import Watch
from shared.bus import Bus
from shared.clock import Clock
from shared.errors import ArtifactError, BucketFull, BusUnavailable, InvalidKey, NoResponders, SettingsError
from shared.messages import Accepted, Assign, AssignReply, CancelOrder, CannotServe, State, encode
from shared.settings import Settings
from shared.telemetry import about, log
from shared.topology import ORDERS, assign_subject, cancel_key, nudge_subject

_LOG = log(__name__)
_replies: msgspec.json.Decoder[AssignReply] = msgspec.json.Decoder(AssignReply)


class Sends:
    """Carries out ``SendAssign`` and ``SendCancel``.

    Args:
        leads: whether this process may act now.
        feed: takes the events.
    """

    def __init__(
        self,
        bus: Bus,
        settings: Settings,
        clock: Clock,
        watch: Watch,
        granting: Granting,
        metrics: Metrics,
        leads: Callable[[], bool],
        feed: Callable[[Event], None],
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._clock = clock
        self._orders = bus.bucket(ORDERS.name)
        self._watch = watch
        self._granting = granting
        self._metrics = metrics
        self._leads = leads
        self._feed = feed

    def _now(self) -> float:
        return self._clock.monotonic()

    async def send(self, command: SendAssign) -> None:
        """Ask the worker to take the job, and tell the core what it answered."""
        if not self._leads():
            self._feed(AssignAnswered(now=self._now(), job=command.job, epoch=command.epoch, answer=NoAnswer()))
            return
        kept = await self._watch.at(command.job, command.revision)
        answer: Answer = NoAnswer()
        if kept is not None:
            with about(command.job, command.epoch):
                answer = await self._ask(command, kept)
                if not isinstance(answer, Accepted):
                    _LOG.info("not_accepted", worker=command.worker, answer=type(answer).__name__)
        if command.decided is not None and isinstance(answer, Accepted):
            self._metrics.assign.observe(self._now() - command.decided)
        self._feed(AssignAnswered(now=self._now(), job=command.job, epoch=command.epoch, answer=answer))

    async def _ask(self, command: SendAssign, kept: Revision) -> Answer:
        try:
            record = kept.record()
            files = None
            if self._watch.needs_grants(command.worker, command.incarnation):
                files = await self._granting.of(command.job, command.epoch, record.request, record.run_timeout_s)
            message = Assign(
                job=command.job,
                epoch=command.epoch,
                worker=command.worker,
                incarnation=command.incarnation,
                request=record.request,
                run_timeout_s=record.run_timeout_s,
                tenant=record.tenant,
                files=files,
            )
            subject = assign_subject(command.worker, command.incarnation)
            return _replies.decode(await self._bus.request(subject, encode(message), self._settings.assign_timeout_s))
        except NoResponders:
            return NoListener()
        except (BusUnavailable, InvalidKey):
            return NoAnswer()
        except (SettingsError, ArtifactError) as error:
            _LOG.error("no_files_granted", worker=command.worker, error=str(error))
            return CannotServe(message=str(error)[:500])
        except msgspec.MsgspecError as error:
            _LOG.error("neither_a_record_nor_a_reply", worker=command.worker, error=str(error))
            return NoAnswer()

    async def order(self, command: SendCancel) -> None:
        """See to it that the worker has the order to stop the job, unless it runs there rightly."""
        try:
            seen = await self._watch.look(command.job)
        except msgspec.MsgspecError:
            return
        if seen is not None:
            here = (seen.epoch, seen.worker, seen.incarnation) == (command.epoch, command.worker, command.incarnation)
            if seen.epoch < command.epoch or (here and seen.state in (State.ASSIGNED, State.RUNNING)):
                return
        key = cancel_key(command.worker, command.incarnation, command.job, command.epoch)
        cancelled = seen is not None and seen.epoch == command.epoch and seen.state is State.CANCELLING
        order = encode(CancelOrder(job=command.job, epoch=command.epoch, superseded=not cancelled))
        try:
            await self._watch.answered(lambda: self._orders.put(key, order))
            await self._bus.publish(nudge_subject(command.worker, command.incarnation), order)
        except (BusUnavailable, BucketFull, InvalidKey) as error:
            # The core asks again for as long as it matters.
            _LOG.warning("order_not_sent", job=command.job, epoch=command.epoch, error=type(error).__name__)
