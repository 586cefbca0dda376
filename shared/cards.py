"""Which of several workers' cards of one model is the one that counts.

Each worker may write only its own, so one that is lied about cannot be written over. Of the cards of workers that are
there, the one that was written first stands: nobody who comes later, an upgraded worker or a hostile one, changes what
a model promises while those before still serve it; an upgrade counts once the last of them has it. Where none of the
workers is there, the newest card is what was last known. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shared.messages import ModelCard
from shared.topology import model_of


class Cards:
    """What the bucket ``models`` holds, told in the order of its revisions.

    Args:
        is_there: whether the worker of that name is.
    """

    def __init__(self, is_there: Callable[[str], bool]) -> None:
        self._is_there = is_there
        #: By model and worker, the card that was written first coming first.
        self._by_model: dict[str, dict[str, ModelCard]] = {}

    def take(self, key: str, card: ModelCard | None) -> str:
        """What was written under that key; None for a deletion. The model's name. A card under another model's key is
        no card."""
        worker, model = model_of(key)
        written = self._by_model.setdefault(model, {})
        written.pop(worker, None)
        if card is not None and card.name == model:
            written[worker] = card
        if not written:
            del self._by_model[model]
        return model

    def clear(self) -> None:
        """The bucket was made anew."""
        self._by_model.clear()

    def get(self, model: str) -> ModelCard | None:
        """The card that counts; None if there is none."""
        written = self._by_model.get(model)
        if not written:
            return None
        there = next((card for worker, card in written.items() if self._is_there(worker)), None)
        return there or next(reversed(written.values()))

    def spare(self) -> Iterator[tuple[str, str]]:
        """Workers that are not there with the models of which others have a card, or a later one."""
        for model, written in self._by_model.items():
            absent = [worker for worker in written if not self._is_there(worker)]
            if len(absent) == len(written):
                absent.pop()
            for worker in absent:
                yield worker, model
