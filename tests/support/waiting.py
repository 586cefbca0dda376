"""Why a job waits, as its clients read it."""

from __future__ import annotations

from typing import Any

from tests.support.gateway import GatewayUnderTest


async def why(gw: GatewayUnderTest, job: object) -> tuple[object, object]:
    queue: Any = (await gw.view(str(job)))["queue"]
    return queue["why"], queue["message"]
