"""Several jobs that one request makes: all of them, or, if one cannot be made, none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from gateway import ids
from gateway.parts import Gateway
from gateway.problems import Problem
from shared.messages import JobRecord
from shared.telemetry import log

_LOG = log(__name__)


class Together:
    """The jobs of one request.

    Attributes:
        made: those that there are by now.
    """

    def __init__(self, gateway: Gateway, tenant: str) -> None:
        self._gateway = gateway
        self._tenant = tenant
        self.made: list[JobRecord] = []
        #: Those that an earlier request under the same key had not made already: only they are taken back.
        self._begun: list[str] = []

    async def make(self, key: str | None, submit: Callable[[str], Awaitable[JobRecord]]) -> None:
        """Make one more.

        Args:
            key: of this job.
            submit: makes it, given its id.
        """
        job = self._gateway.submissions.fresh() if key is None else ids.derived(self._tenant, key)
        if key is None or not await self._exists(job):
            self._begun.append(job)
        self.made.append(await submit(job))

    async def _exists(self, job: str) -> bool:
        try:
            await self._gateway.live.find(job, self._tenant)
        except Problem:
            return False
        return True

    async def take_back(self) -> None:
        """None of these jobs is there any more, whoever does not wait for it; of the last it is unknown whether it was
        made."""
        taking = asyncio.ensure_future(cancel_all(self._gateway, self._tenant, self._begun))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            await asyncio.wait((taking,))
            raise


@asynccontextmanager
async def all_or_none(gateway: Gateway, tenant: str) -> AsyncIterator[Together]:
    """Inside, jobs are made. Whatever is raised there leaves none of them."""
    together = Together(gateway, tenant)
    try:
        yield together
    except BaseException:  # a client that goes away too
        await together.take_back()
        raise


async def cancel_all(gateway: Gateway, tenant: str, jobs: list[str]) -> None:
    """Cancel those of these jobs that there are and that have not ended; what goes wrong is logged."""
    for job in jobs:
        try:
            await gateway.changes.cancel(job, tenant)
        except Exception as error:
            if not (isinstance(error, Problem) and error.status in (404, 410)):
                _LOG.error("a job that nobody waits for is left", job=job, error=type(error).__name__)
