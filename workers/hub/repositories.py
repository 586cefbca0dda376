"""Which repository of which hub holds the checkpoint of a model, and where checkpoints lie on this machine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

from shared.errors import GenfleetError
from shared.settings import Settings

HubName = Literal["huggingface", "modelscope", "modelers"]
HUBS: tuple[HubName, ...] = get_args(HubName)

_FILE = Path(__file__).with_name("repositories.toml")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class UnknownRepository(GenfleetError):
    """The name is neither a model that genfleet knows a repository of, nor OWNER/NAME."""


class Repository(Struct, frozen=True, forbid_unknown_fields=True):
    """Where one model's checkpoint comes from."""

    folder: str
    huggingface: str | None = None
    modelscope: str | None = None
    modelers: str | None = None

    def at(self, hub: HubName) -> str | None:
        """Its name at that hub."""
        match hub:
            case "huggingface":
                return self.huggingface
            case "modelscope":
                return self.modelscope
            case "modelers":
                return self.modelers


def known() -> dict[str, Repository]:
    """By the name of the model."""
    return msgspec.convert(tomllib.loads(_FILE.read_text(encoding="utf-8")), dict[str, Repository])


def find(name: str, hub: HubName) -> tuple[str, str]:
    """The repository's name at that hub, and the name of the folder for it. ``name`` is a model's or OWNER/NAME.

    Raises:
        UnknownRepository: it is neither, or the hub is not known to have that model.
    """
    model = known().get(name)
    if model is not None:
        repository = model.at(hub)
        if repository is None:
            has = ", ".join(other for other in HUBS if model.at(other))
            raise UnknownRepository(f"{name}: not known to be at {hub}, but at {has}; name the repository: OWNER/NAME")
        return repository, model.folder
    if not _REPOSITORY.fullmatch(name) or ".." in name:
        raise UnknownRepository(f"{name}: neither OWNER/NAME nor one of {', '.join(sorted(known()))}")
    return name, name.partition("/")[2]


def search_path(settings: Settings, environ: Mapping[str, str]) -> list[Path]:
    """Folders that checkpoints are looked for in: those of ``MODEL_CKPT_DIR``, then where ``models pull`` puts them."""
    places = [Path(place).expanduser() for place in environ.get("MODEL_CKPT_DIR", "").split(":") if place]
    pulled = Path(settings.models_dir).expanduser().absolute()
    return places if pulled in places else [*places, pulled]
