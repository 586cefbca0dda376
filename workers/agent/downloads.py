"""Inputs that a job names by URL: fetched when it runs, under a guard, and looked at before any decoder sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shared import guarded_http, media
from shared.clock import Clock
from shared.errors import GenfleetError, InvalidRequest
from shared.guarded_http import GuardedHttp, Policy
from shared.settings import Settings
from shared.telemetry import log

#: Seconds between tries at a server that cannot be reached; then the input is given up.
RETRY_S = (1.0, 4.0)

_log = log(__name__)


class BadInput(GenfleetError):
    """An input of the job is not in the store or cannot be had from its URL, or is not what it should be."""


class Downloads:
    """Fetches, as the settings allow."""

    def __init__(self, http: GuardedHttp, clock: Clock) -> None:
        self._http, self._clock = http, clock

    @classmethod
    def of(cls, settings: Settings, clock: Clock) -> Downloads:
        """Raises:
        SettingsError: ``private_networks`` is not a list of networks.
        """
        policy = Policy(
            private=guarded_http.networks(settings.private_networks),
            total_s=settings.fetch_timeout_s,
            max_bytes=settings.fetch_max_bytes,
        )
        return cls(GuardedHttp(policy), clock)

    async def fetch(self, url: str, field: str, path: Path) -> None:
        """Write what lies at the URL to ``path``.

        Raises:
            BadInput: after the last try, or at once where another would not help; names the field.
        """
        waits = iter((*RETRY_S, None))
        while True:
            try:
                await self._once(url, path)
                break
            except guarded_http.Refused as error:
                raise BadInput(f"{field}: refused: {error}") from error
            except guarded_http.Unreachable as error:
                wait = next(waits)
                if wait is None:
                    raise BadInput(f"{field}: could not be fetched: {error}") from error
                _log.info("input_not_reached", field=field, error=str(error), retry_s=wait)
                await self._clock.sleep(wait)
        try:
            await asyncio.to_thread(_look, path, field)
        except InvalidRequest as error:
            raise BadInput(f"{field}: {error}") from error

    async def _once(self, url: str, path: Path) -> None:
        with path.open("wb") as file:
            await self._http.fetch(url, file)


def _look(path: Path, field: str) -> None:
    allowed = {"video": media.VIDEOS, "mask": media.IMAGES | media.VIDEOS}.get(field, media.IMAGES)
    with path.open("rb") as file:
        media.inspect(file, field, allowed)
