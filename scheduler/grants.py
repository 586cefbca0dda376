"""What an assignment grants to a worker that cannot reach the artifact store: a URL for each input of the job, to read,
and one for each file that the epoch may have, to write.

A bucket signs them itself. For a folder they lead to a gateway (``shared.grants``). They live as long as the job may
run, and an hour more: for what may go before its time begins to count (loading a model), and for clocks that differ.
"""

from __future__ import annotations

from shared.artifacts import Artifacts
from shared.clock import Clock
from shared.errors import SettingsError
from shared.grants import GrantSigner, output_names
from shared.messages import FileGrants, JobRequest
from shared.s3 import LONGEST_S
from shared.settings import Settings
from shared.topology import output_key

SLACK_S = 3600.0


class Granting:
    """Signs grants.

    Args:
        artifacts: the store; None: of this scheduler no files are asked.
    """

    def __init__(self, settings: Settings, artifacts: Artifacts | None, clock: Clock) -> None:
        self._artifacts = artifacts
        self._max_bytes = settings.max_output_bytes
        self._url = (settings.files_url or settings.public_url or settings.url).rstrip("/")
        self._signer = GrantSigner(settings.secret, clock.wall) if settings.secret else None

    async def of(self, job: str, epoch: int, request: JobRequest, run_timeout_s: float) -> FileGrants:
        """What this attempt may read and write.

        Raises:
            SettingsError: nothing can be signed; says what is missing.
            ArtifactError: the store does not sign now.
        """
        if self._artifacts is None:
            raise SettingsError("this scheduler has no artifact store")
        seconds = min(run_timeout_s + SLACK_S, LONGEST_S)
        reads = sorted({given.key for given in request.inputs().values() if given.key})
        names = output_names(request.n)
        writes = [output_key(job, epoch, name) for name in names]
        if self._artifacts.signs:
            read_urls = await self._artifacts.sign("GET", reads, seconds) if reads else []
            write_urls = await self._artifacts.sign("PUT", writes, seconds)
        elif self._signer is not None:
            expires = int(self._signer.now() + seconds)
            read_urls = [f"{self._url}/files/{key}?{self._signer.query('GET', key, expires)}" for key in reads]
            write_urls = [
                f"{self._url}/files/{key}?{self._signer.query('PUT', key, expires, self._max_bytes)}" for key in writes
            ]
        else:
            raise SettingsError("workers keep files by grants, and GENFLEET_SECRET, which signs them, is not set here")
        return FileGrants(
            reads=dict(zip(reads, read_urls, strict=True)),
            writes=dict(zip(names, write_urls, strict=True)),
            max_bytes=self._max_bytes,
            seconds=seconds,
        )
