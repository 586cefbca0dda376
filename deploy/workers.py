"""``genfleet workers``: who serves what, and how far those are that still load."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from deploy.options import OK, JsonFlag, Url, gateway_at, print_json


class WorkerShown(Struct, frozen=True):
    """What is shown of a worker."""

    id: str
    state: str
    device: str = ""
    width: int = 1
    full_width: int = 1
    models: tuple[str, ...] = ()
    loaded: float = 1.0
    detail: str = ""
    drained: bool = False


class _Workers(Struct, frozen=True):
    data: tuple[WorkerShown, ...]


def workers(*, json: JsonFlag = False, url: Url = None) -> int:
    """List the workers: what each serves, with how many ranks, and how far one is that is still loading."""
    with gateway_at(url) as there:
        answer = there.workers()
    if json:
        print_json(answer)
        return OK
    for worker in msgspec.json.decode(answer, type=_Workers).data:
        print(line(worker))
    return OK


def line(worker: WorkerShown) -> str:
    """A worker in a line."""
    ranks = f"{worker.width} × {worker.device}"
    if worker.width != worker.full_width:
        ranks += f" (of {worker.full_width})"
    state = "drained" if worker.drained else worker.state
    if worker.loaded < 1:
        state += f" {worker.loaded:.0%}"
    said = [", ".join(worker.models), worker.detail]
    return f"{worker.id:24} {state:14} {ranks:16} {'  '.join(word for word in said if word)}".rstrip()
