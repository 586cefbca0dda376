"""``python -m workers.hub``: what an agent runs to have a pool's checkpoint pulled, so that neither the network nor the
disk is in the way of its leases.

Each line on stdout is a JSON object: ``{"fraction", "what"}`` at most four times a second, then ``{"folder"}`` or
``{"error"}``. Exit status 0 or 1.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import httpx
import msgspec

from shared.errors import GenfleetError
from shared.settings import load
from workers.hub import repositories
from workers.hub.hubs import hub
from workers.hub.pull import is_complete, pull

_EVERY_S = 0.25


def main(argv: list[str] | None = None) -> int:
    """Entry point; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers.hub")
    parser.add_argument("name")
    parser.add_argument("--revision", default="")
    arguments = parser.parse_args(argv)
    try:
        settings = load()
        source = settings.models_hub
        repository, folder = repositories.find(arguments.name, source)
        target = Path(settings.models_dir).expanduser().absolute() / folder
        if not is_complete(target, arguments.revision):
            work = pull(
                hub(source, settings.models_mirror),
                repository,
                target,
                revision=arguments.revision,
                token=settings.models_token,
                on_progress=_Teller(),
            )
            asyncio.run(work)
    except (GenfleetError, httpx.HTTPError, OSError) as error:
        _say({"error": str(error) or type(error).__name__})
        return 1
    _say({"folder": str(target)})
    return 0


class _Teller:
    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            _say({"fraction": round(done / max(1, total), 4), "what": what})


def _say(told: dict[str, object]) -> None:
    sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
