"""Input files on their way in: decoded once to see that they can be (in a child, see ``shared.intake``), and kept once
for each tenant and content.

What was checked is remembered by its hash, so that nothing is decoded twice here; what was stored lately by this
gateway is not stored again, so that a second upload of the same bytes writes nothing. The leader's sweep removes inputs
that nothing refers to a day after their last write: well before that they are written again.
"""

from __future__ import annotations

import re
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from gateway.problems import Problem, invalid
from gateway.uploads import Upload
from shared.artifacts import Artifacts
from shared.clock import Clock
from shared.decoding import Limits
from shared.errors import ArtifactNotFound
from shared.intake import Busy, Intake, IntakeDown, Rejected, TooSlow
from shared.media import IMAGES, VIDEOS, inspect
from shared.settings import Settings
from shared.telemetry import log
from shared.topology import input_key

#: Of one check at submit. What takes longer is the worker's to find out, or nobody's.
LIMITS = Limits(cpu_s=15, wall_s=30.0)
#: How long a check waits for its turn.
WAIT_S = 15.0
#: A file is written again if its last write is longer ago: half of what the sweep waits.
FRESH_S = 12 * 3600.0
_REMEMBERED = 20_000
_RETRY_AFTER_S = 2
_SHA256 = re.compile(r"[0-9a-f]{64}")

_log = log(__name__)
T = TypeVar("T")


class Found(Struct, frozen=True, kw_only=True):
    """A file that is kept, and when this gateway last wrote it, on the monotonic clock."""

    media_type: str
    size: int
    width: int
    height: int
    at: float = float("-inf")


class InputFiles:
    """The inputs of all tenants, as one gateway sees them."""

    def __init__(self, artifacts: Artifacts, settings: Settings, clock: Clock, decoder: Intake | None = None) -> None:
        """
        Args:
            decoder: instead of a new one.
        """
        self._artifacts = artifacts
        self._clock = clock
        self._decoder = (decoder or Intake(limits=LIMITS)) if settings.check_inputs else None
        self._sound: OrderedDict[str, None] = OrderedDict()
        self._known: OrderedDict[str, Found] = OrderedDict()

    async def start(self) -> None:
        """Have the decoding process running, so that the first upload need not wait for it."""
        if self._decoder is not None:
            try:
                await self._decoder.start()
            except IntakeDown as error:
                _log.error("intake_down", error=str(error))

    async def close(self) -> None:
        """End the decoding process."""
        if self._decoder is not None:
            await self._decoder.close()

    async def check(self, uploads: Mapping[str, Upload]) -> None:
        """See that each of these files, by field, can be decoded.

        Raises:
            Problem: 422, one cannot, naming the field; 503, it is not known now.
        """
        for field, upload in uploads.items():
            if self._decoder is None or upload.sha256 in self._sound:
                continue
            try:
                await self._decoder.check(upload.path, field, IMAGES | VIDEOS, WAIT_S)
            except (TooSlow, Busy, IntakeDown) as error:
                _log.warning("input_not_checked", field=field, error=str(error))
                text = f"{field}: the file could not be checked now; try again"
                raise Problem(503, text, retry_after_s=_RETRY_AFTER_S) from error
            except Rejected as error:
                raise invalid(field, str(error)) from error
            _remember(self._sound, upload.sha256, None)

    async def store(self, tenant: str, upload: Upload) -> None:
        """Put the file where the tenant's inputs lie, if it is not there; the same content is the same file."""
        key = input_key(tenant, upload.sha256)
        known = self._known.get(key)
        if known is None or not await self._is_fresh(key, known):
            await self._artifacts.put_file(key, upload.path)
            known = Found(
                media_type=upload.media_type, size=upload.size, width=upload.width, height=upload.height, at=self._now()
            )
            _remember(self._known, key, known)

    async def find(self, tenant: str, sha256: str) -> Found | None:
        """The tenant's file with that hash, if it is kept.

        Raises:
            InvalidRequest: what is kept is no picture or clip.
        """
        if not _SHA256.fullmatch(sha256):
            return None
        key = input_key(tenant, sha256)
        try:
            stored = await self._artifacts.stat(key)
            known = self._known.get(key)
            if known is None or known.size != stored.size:
                known = await self._inspected(key, stored.size)
                _remember(self._known, key, known)
        except ArtifactNotFound:
            return None
        return known

    async def touch(self, key: str) -> None:
        """Have a stored file count as just written, because a job is about to refer to it: the sweep may come before
        the job's record does.

        Raises:
            ArtifactNotFound: it is gone.
        """
        known = self._known.get(key)
        if known is None or not await self._is_fresh(key, known):
            await self._artifacts.put(key, self._artifacts.read(key))
            if known is not None:
                _remember(self._known, key, replace(known, at=self._now()))

    def _now(self) -> float:
        return self._clock.monotonic()

    async def _is_fresh(self, key: str, known: Found) -> bool:
        if self._now() - known.at > FRESH_S:
            return False
        try:
            return (await self._artifacts.stat(key)).size == known.size
        except ArtifactNotFound:
            return False

    async def _inspected(self, key: str, size: int) -> Found:
        with tempfile.TemporaryFile(prefix="genfleet-input-") as file:
            async for chunk in self._artifacts.read(key):
                file.write(chunk)
            media = inspect(file, "")
        return Found(media_type=media.media_type, size=size, width=media.width, height=media.height)


def _remember(kept: OrderedDict[str, T], key: str, value: T) -> None:
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > _REMEMBERED:
        kept.popitem(last=False)
