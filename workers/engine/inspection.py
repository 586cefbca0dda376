"""What can be said of checkpoints without loading one: ``python -m workers.engine.inspection list | verify PATH… |
devices``, which the command line runs, because only the engine knows its models and devices. Prints one JSON object.

``verify`` compares every file with what the model needs: the index with the shards, the header with the length, each
tensor's name and shape with the class that it is for. No weights are read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from workers.engine import catalog, checkpoint, devices
from workers.engine.checkpoint import WITH_TENSORS, Checkpoint
from workers.engine.errors import CannotLoad
from workers.findings import Catalogue, DevicesFound, Known, PartFound, Verdict, Verdicts


def devices_found() -> DevicesFound:
    """The devices of this machine, after the first was opened."""
    kind = devices.detect()
    name = devices.hardware_name(kind)
    try:
        import torch

        opened = devices.open_device(kind)
        memory = opened.memory()
        count = (os.cpu_count() or 1) if kind == "cpu" else torch.accelerator.device_count()
        return DevicesFound(kind=kind, name=name, count=count, memory=memory.total if memory else 0)
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return DevicesFound(kind=kind, name=name, count=0, problem=first)


def known() -> list[Known]:
    """Every model of the catalogue."""
    return [_known(name) for name in catalog.names()]


def _known(name: str) -> Known:
    entry = catalog.entry(name)
    try:
        found = str(catalog.locate(name)[0])
    except CannotLoad:
        found = None
    return Known(name=name, title=entry.card.title, folder=entry.folder, found=found, card=entry.card)


def verify(model: str) -> Verdict:
    """Everything that is wrong with a checkpoint, by its folder or by its name in the catalogue."""
    try:
        folder, _ = catalog.locate(model)
    except CannotLoad as error:
        return Verdict(path=model, problems=(str(error),))
    if not folder.is_dir():
        return Verdict(path=str(folder), problems=(f"{folder}: missing: no such folder",))
    problems: list[str] = []

    def tried(look: Callable[..., Any], *about: Any) -> Any:
        try:
            return look(*about)
        except CannotLoad as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None

    found = tried(checkpoint.read, folder)
    for file in sorted((*folder.rglob("*.safetensors"), *folder.rglob("*.pth"))):
        tried(_look_into, file)
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        for shard in tried(checkpoint.weight_files, index.parent) or ():
            tried(checkpoint.header, shard)
    parts: dict[str, PartFound] = {}
    if found is not None:
        for name in WITH_TENSORS:
            if name in found.parts:
                part = tried(_part, found, name)
                if part is not None:
                    parts[name] = part
        tried(_open_tokenizer, found)
    return Verdict(
        path=str(folder),
        problems=tuple(problems),
        layout=found.layout if found else "",
        pipeline=found.pipeline if found else "",
        parts=parts,
        card=tried(catalog.derive, found) if found else None,
    )


def _look_into(file: Path) -> None:
    from workers.engine import pickled

    (pickled.header if file.suffix == ".pth" else checkpoint.header)(file)


def _part(found: Checkpoint, name: str) -> PartFound:
    from workers.engine import loading, parts, reading

    part = parts.of(found, name)
    reading.check(loading.build(found, name, part), part)
    stored = set(part.tensors.values())
    dtypes: dict[str, int] = {}
    for tensor in stored:
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.size
    return PartFound(
        model_class=found.parts[name],
        tensors=len(stored),
        size=sum(dtypes.values()),
        dtypes=dict(sorted(dtypes.items())),
    )


def _open_tokenizer(found: Checkpoint) -> None:
    from workers.engine import loading

    loading.tokenizer(found)


def main(argv: list[str] | None = None) -> int:
    """Entry point; gives the exit status: 1 if a checkpoint has a problem."""
    parser = argparse.ArgumentParser(prog="python -m workers.engine.inspection")
    deeds = parser.add_subparsers(dest="deed", required=True)
    deeds.add_parser("list")
    deeds.add_parser("devices")
    deeds.add_parser("verify").add_argument("models", nargs="+")
    arguments = parser.parse_args(argv)
    status = 0
    match arguments.deed:
        case "list":
            told: Catalogue | DevicesFound | Verdicts = Catalogue(models=known())
        case "devices":
            told = devices_found()
        case _:
            verdicts = [verify(model) for model in arguments.models]
            told, status = Verdicts(checkpoints=verdicts), int(any(verdict.problems for verdict in verdicts))
    print(msgspec.json.encode(told).decode())
    return status


if __name__ == "__main__":
    sys.exit(main())
