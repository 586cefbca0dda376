"""What the shell reads and writes beside jobs: the bucket ``control`` (what operators want, quarantines), the bucket
``usage`` (device-seconds by tenant, written every few seconds by the leader, read at the start), and models' cards."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from scheduler.commands import WriteQuarantine
from scheduler.events import ControlSeen, Event, ModelSeen, UsageSeen
from scheduler.shares import Shares
from shared.bus import Bus, Entry
from shared.cards import Cards
from shared.clock import Clock
from shared.errors import BucketFull, BusUnavailable, InvalidKey
from shared.fit import largest_volume
from shared.messages import Control, ModelCard, TenantUsage, decode, encode
from shared.telemetry import log, unquoted
from shared.topology import CONTROL, MODELS, USAGE, model_key, quarantine_control

#: How long a worker's cards are kept that is gone, if another has the model too.
CARD_KEPT_S = 86_400.0
#: How much of the tenants' use may be forgotten when the leader is killed.
SAVE_EVERY_S = 5.0

_LOG = log(__name__)
_controls: msgspec.json.Decoder[Control] = msgspec.json.Decoder(Control)


class Ledger:
    """Tells the core of ``control``, ``usage`` and ``models``, and writes to the first two for it.

    Args:
        shares: the core's, to be written down.
        leads: whether this process may write.
        age: seconds since an entry was written.
        feed: takes the events.
        is_there: whether the worker of that name lives.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        shares: Shares,
        leads: Callable[[], bool],
        age: Callable[[Entry], float],
        feed: Callable[[Event], None],
        is_there: Callable[[str], bool],
    ) -> None:
        self._control = bus.bucket(CONTROL.name)
        self._usage = bus.bucket(USAGE.name)
        self._clock = clock
        self._shares = shares
        self._leads = leads
        self._feed = feed
        self._age = age
        self._cards = Cards(is_there)
        #: Since when workers are not there that have cards left.
        self._absent: dict[str, float] = {}
        self._models = bus.bucket(MODELS.name)
        #: The newest revision that was seen of each key, by bucket.
        self._seen: dict[str, dict[str, int]] = {}

    def made_anew(self, bucket: str) -> None:
        """That bucket begins again."""
        self._seen.pop(bucket, None)
        if bucket == MODELS.name:
            self._cards.clear()

    def _is_news(self, bucket: str, entry: Entry) -> bool:
        """What is brought once more must not undo what came after it."""
        seen = self._seen.setdefault(bucket, {})
        news = entry.revision > seen.get(entry.key, 0)
        if news:
            seen[entry.key] = entry.revision
        return news

    def see_control(self, entry: Entry, live: bool) -> None:
        """An operator's wish or a quarantine."""
        if entry.value is None or not self._is_news(CONTROL.name, entry):
            return
        try:
            control = _controls.decode(entry.value)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_control", key=entry.key, error=unquoted(error))
            return
        self._feed(ControlSeen(now=self._clock.monotonic(), control=control))

    def see_model(self, entry: Entry, live: bool) -> None:
        """A model's card, or that it is withdrawn."""
        if not self._is_news(MODELS.name, entry):
            return
        card = None
        if entry.value is not None:
            try:
                card = decode(entry.value, ModelCard)
            except msgspec.MsgspecError as error:
                _LOG.error("not_a_card", key=entry.key, error=unquoted(error))
                return
        model = self._cards.take(entry.key, card)
        now, counts = self._clock.monotonic(), self._cards.get(model)
        if counts is None:
            self._feed(ModelSeen(now=now, model=model, footprints=(), largest=0))
        else:
            self._feed(ModelSeen(now=now, model=model, footprints=counts.footprints, largest=largest_volume(counts)))

    async def clear_cards(self) -> None:
        """Remove cards of workers that have been gone for long, but for the last that is known of each model: workers
        whose names never come back must not fill the bucket."""
        now = self._clock.monotonic()
        spare = list(self._cards.spare())
        gone = {worker for worker, _ in spare}
        self._absent = {worker: self._absent.get(worker, now) for worker in gone}
        for worker, model in spare:
            if now - self._absent[worker] < CARD_KEPT_S:
                continue
            key = model_key(worker, model).removeprefix(".")  # an older worker gave no name
            try:
                await self._models.delete(key)
                await self._models.purge(key)
            except (BusUnavailable, BucketFull, InvalidKey) as error:
                _LOG.warning("card_not_removed", key=key, error=type(error).__name__)

    def see_usage(self, entry: Entry, live: bool) -> None:
        """What a tenant had used, as an earlier leader wrote it."""
        if entry.value is None or live:
            return
        try:
            usage = decode(entry.value, TenantUsage)
        except msgspec.MsgspecError as error:
            _LOG.error("not_a_usage", key=entry.key, error=unquoted(error))
            return
        self._feed(UsageSeen(now=self._clock.monotonic(), usage=usage, since_s=self._age(entry)))

    async def run(self) -> None:
        """Write down what the tenants use, while this process leads."""
        while True:
            await self._clock.sleep(SAVE_EVERY_S)
            if not self._leads():
                continue
            await self.clear_cards()
            for usage in self._shares.unsaved(self._clock.monotonic()):
                try:
                    await self._usage.put(usage.tenant, encode(replace(usage, at=self._clock.wall())))
                except (BusUnavailable, BucketFull, InvalidKey) as error:
                    _LOG.warning("usage_not_saved", tenant=usage.tenant, error=type(error).__name__)
                    continue
                self._shares.saved(usage)

    async def write(self, command: WriteQuarantine) -> None:
        """Make a quarantine, or its end, known and durable."""
        quarantine = replace(command.quarantine, at=self._clock.wall())
        _LOG.warning(
            "worker_quarantined" if quarantine.failures else "worker_trusted_again",
            worker=quarantine.worker,
            failures=quarantine.failures,
            reason=quarantine.reason,
            rest_s=quarantine.rest_s,
        )
        try:
            await self._control.put(quarantine_control(quarantine.worker), encode(quarantine))
        except (BusUnavailable, BucketFull, InvalidKey) as error:
            # The core goes by it all the same; only a restart or an operator would not know.
            _LOG.warning("quarantine_not_written", worker=quarantine.worker, error=type(error).__name__)
