"""Grants: signed URLs of a gateway's ``/files/<key>`` by which a worker without the artifact store's credentials reads
its job's inputs and writes its files, for stores that sign no URLs themselves (a folder).

A grant is for one method, one key, at most so many bytes, until one moment: a signature over these four, by a key that
scheduler and gateways derive from the deployment's secret. Expiry goes by the wall clocks of the scheduler that signs
and the gateway that checks, as with S3's own; a grant lives longer than its job may run, so that minutes between the
two do no harm.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from urllib.parse import urlencode

from shared.secrets import derive, equal

_USE = "file-grants/1"
#: What an agent is told instead of a store.
BY_GRANTS = "grants"


class GrantSigner:
    """Signs grants and knows its own.

    Args:
        secret: of the deployment.
        now: seconds since 1970.
    """

    def __init__(self, secret: str, now: Callable[[], float]) -> None:
        self._key = derive(secret, _USE)
        self.now = now

    def query(self, method: str, key: str, expires: int, max_bytes: int = 0) -> str:
        """The query of a grant's URL.

        Args:
            expires: seconds since 1970.
            max_bytes: of what may be written.
        """
        said = {"expires": expires, "max_bytes": max_bytes}
        return urlencode({**said, "signature": self._signature(method, key, str(expires), str(max_bytes))})

    def is_good(self, method: str, key: str, expires: str, max_bytes: str, signature: str) -> bool:
        """Whether that signature was made here for exactly this. Whether its time is over is another question."""
        return equal(self._signature(method, key, expires, max_bytes), signature)

    def _signature(self, method: str, key: str, expires: str, max_bytes: str) -> str:
        said = "\n".join((method, key, expires, max_bytes)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._key, said, "sha256")).rstrip(b"=").decode()


def output_names(n: int) -> tuple[str, ...]:
    """The names that the engine may give to the files of a job with so many outputs."""
    ends = ("mp4", "png", "bin", "thumbnail.jpg", "spritesheet.jpg")
    return tuple(f"{index}.{end}" for index in range(n) for end in ends)
