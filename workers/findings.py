"""What the engine finds out about checkpoints and devices without loading one, as one process prints it
(``workers.engine.inspection``) and another reads it (the command line): one JSON object."""

from __future__ import annotations

from msgspec import Struct

from shared.messages import ModelCard


class PartFound(Struct, frozen=True, kw_only=True):
    """One part of a checkpoint; ``size`` and ``dtypes`` in bytes."""

    model_class: str
    tensors: int
    size: int
    dtypes: dict[str, int]


class Verdict(Struct, frozen=True, kw_only=True):
    """What is to be said of one checkpoint; it is fine if there are no problems."""

    path: str
    problems: tuple[str, ...]
    layout: str = ""
    pipeline: str = ""
    parts: dict[str, PartFound] = {}
    card: ModelCard | None = None

    @property
    def size(self) -> int:
        """Bytes of weights."""
        return sum(part.size for part in self.parts.values())


class Known(Struct, frozen=True, kw_only=True):
    """A model of the catalogue; ``found`` is its checkpoint's folder, if it is on this machine."""

    name: str
    title: str
    folder: str
    found: str | None
    card: ModelCard


class DevicesFound(Struct, frozen=True, kw_only=True):
    """The devices that a pool with ``device = "auto"`` would use; ``memory`` in bytes, of the first; ``problem``: why
    they cannot be used, if they cannot."""

    kind: str
    name: str
    count: int
    memory: int = 0
    problem: str = ""


class Verdicts(Struct, frozen=True):
    """What ``verify`` prints."""

    checkpoints: list[Verdict]


class Catalogue(Struct, frozen=True):
    """What ``list`` prints."""

    models: list[Known]
