"""A job that came by another service's API names its webhook as one of the native API does."""

from __future__ import annotations

import pytest

from tests.support.clock import settle
from tests.support.webhooks import SETTINGS, URL, World


@pytest.mark.parametrize(
    ("path", "body", "form"),
    [
        ("/v1/videos", {"prompt": "a lighthouse"}, False),
        ("/v1/videos", {"prompt": "a lighthouse"}, True),
        ("/v1/jobs", {"prompt": "a lighthouse"}, True),
    ],
)
async def test_its_end_is_told(world: World, path: str, body: dict[str, str], form: bool) -> None:
    async with world.gateway(settings=SETTINGS) as gw:
        whole = {**body, "webhook_url": URL}
        parts = {name: (None, value) for name, value in whole.items()}
        answer = await (gw.client.post(path, files=parts) if form else gw.client.post(path, json=whole))
        assert answer.status_code in (200, 202), answer.text
        job = str(answer.json()["id"])
        await world.fleet.complete(job)
        await settle()
        assert world.receivers.ids() == [f"msg_{job}"]


async def test_an_address_that_is_not_gone_to_is_refused(world: World) -> None:
    """Row 23 of the faults."""
    async with world.gateway(settings=SETTINGS) as gw:
        answer = await gw.client.post("/v1/videos", json={"prompt": "a", "webhook_url": "http://127.0.0.1/"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "webhook_url"
