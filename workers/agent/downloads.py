"""A job's inputs on their way to its group: those named by URL are fetched, under a guard, when the job runs; and all
become frames before the group sees them, in a child that is nobody's (``shared.intake``)."""

from __future__ import annotations

import os
from pathlib import Path

from shared import guarded_http, inputs
from shared.clock import Clock
from shared.errors import GenfleetError
from shared.guarded_http import GuardedHttp, Policy
from shared.intake import Intake, Rejected
from shared.messages import JobRequest
from shared.settings import Settings
from shared.telemetry import log

#: Seconds between tries at a server that cannot be reached; then the input is given up.
RETRY_S = (1.0, 4.0)

_log = log(__name__)


class BadInput(GenfleetError):
    """An input of the job is not in the store or cannot be had from its URL, or is not what it should be."""


class Downloads:
    """Fetches, as the settings allow, and has decoded."""

    def __init__(self, http: GuardedHttp, clock: Clock, intake: Intake) -> None:
        self._http, self._clock, self._intake = http, clock, intake

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
        return cls(GuardedHttp(policy), clock, Intake())

    async def fetch(self, url: str, field: str, path: Path) -> None:
        """Write what lies at the URL to ``path``. Whether it is of use, ``decode`` finds out.

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

    async def decode(self, request: JobRequest, field: str, path: Path) -> Path:
        """Replace the input by a file of its frames (``shared.decoding.Shape``), where it lies.

        Raises:
            BadInput: it cannot be decoded; names the field.
            IntakeDown: nothing can be decoded here.
        """
        frames = path.with_name(f"{field}.frames")
        try:
            kind = inputs.kind_of(field)
            await self._intake.make(path, frames, field, kind.allowed, inputs.make(field, request))
        except Rejected as error:
            raise BadInput(f"{field}: {error}") from error
        os.unlink(path)
        return frames

    async def close(self) -> None:
        """End the process that decodes."""
        await self._intake.close()

    async def _once(self, url: str, path: Path) -> None:
        with path.open("wb") as file:
            await self._http.fetch(url, file)
