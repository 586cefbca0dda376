"""Which models a group can serve, which is loaded, and how long loading each took.

A pool of one model serves what its group says. A pool of several has the names of its file; a model that could not be
loaded rests, ever longer, and is not offered meanwhile.
"""

from __future__ import annotations

from shared.clock import Clock
from shared.messages import Layout, ModelCard
from workers.agent.launches import BACKOFF_S, REPAIR_S
from workers.link import Ready


class Models:
    """The models of one pool's group.

    Args:
        names: of the pool's models, if it has several.

    Attributes:
        wanted: the model that the group has, or is launched with; ``""`` in a pool of one.
        load_s: by model, the seconds from the last launch with it until it was ready.
        acceleration: what the loaded model said of its attention kernel and what else is on.
    """

    def __init__(self, names: tuple[str, ...], clock: Clock) -> None:
        self._names = names
        self._clock = clock
        self.wanted = names[0] if names else ""
        self.load_s: dict[str, float] = {}
        self.acceleration = ""
        self._loaded: tuple[str, ...] = ()
        self._before = self.wanted
        self._launched = 0.0
        self._cards: dict[str, ModelCard] = {}
        self._layouts: dict[str, tuple[Layout, ...]] = {}
        #: Of models that could not be loaded: how often in a row, until when they rest, and why.
        self._rests: dict[str, tuple[int, float, str]] = {}

    # --- what is there -------------------------------------------------------------------------------------------

    @property
    def cards(self) -> tuple[ModelCard, ...]:
        """Of what can be served now or after a swap, the loaded model's first."""
        now = self._clock.monotonic()
        offered = {name: card for name, card in self._cards.items() if now >= self._rest(name)[1]}
        first = [offered.pop(name) for name in self._loaded if name in offered]
        return (*first, *offered.values())

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of what is loaded, or will be when a swap is done."""
        return (self.wanted,) if self._names else self._loaded

    @property
    def detail(self) -> str:
        """What cannot be loaded, and why."""
        now = self._clock.monotonic()
        return "; ".join(f"{name}: {why}" for name, (_, until, why) in self._rests.items() if now < until)

    def layouts(self, model: str = "") -> tuple[Layout, ...]:
        """Layouts in which that model runs, by default the loaded one's; none if it was never loaded."""
        name = model or (self.loaded[0] if self.loaded else "")
        return self._layouts.get(name, ())

    def has(self, model: str) -> bool:
        """Whether the group need not be launched anew for that model."""
        return not self._names or model == self.wanted

    def serves(self, model: str) -> bool:
        """Whether it can be had."""
        return any(card.name == model for card in self.cards)

    def _rest(self, name: str) -> tuple[int, float, str]:
        return self._rests.get(name, (0, 0.0, ""))

    # --- what happens --------------------------------------------------------------------------------------------

    def want(self, model: str) -> None:
        """The next launch is to be with that model."""
        self._before, self.wanted = self.wanted, model

    def launch(self) -> str:
        """The group is being launched: with which model."""
        self._launched = self._clock.monotonic()
        return self.wanted

    def ready(self, frame: Ready) -> None:
        """It came up."""
        self._loaded = tuple(card.name for card in frame.cards)
        self.acceleration = frame.acceleration
        took_s = round(self._clock.monotonic() - self._launched, 3)
        if not self._names:
            self._cards = {}
        for card in frame.cards:
            self._cards[card.name] = card
            self._layouts[card.name] = frame.layouts
            self.load_s[card.name] = took_s
            self._rests.pop(card.name, None)
        for card in frame.others:
            # What a model said of itself when it was loaded is better than what was said for it.
            if card.name not in self.load_s:
                self._cards[card.name] = card

    def failed(self, why: str, *, unloadable: bool) -> bool:
        """The launch with the wanted model did not come up: it rests, for long if somebody must repair its checkpoint.
        Whether there is another to launch with."""
        if not self._names:
            return False
        now, failed = self._clock.monotonic(), self.wanted
        times = self._rest(failed)[0] + 1
        pauses = REPAIR_S if unloadable else BACKOFF_S[1:]
        self._rests[failed] = (times, now + pauses[min(times, len(pauses)) - 1], why)
        able = [name for name in (self._before, *self._names) if now >= self._rest(name)[1]]
        if not able:
            return False
        self._before = self.wanted = able[0]
        return True
