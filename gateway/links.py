"""URLs of a job's files that work without a key, for a time: in a ``<video>`` tag, a message, another service.

From a bucket they are the store's own presigned URLs. From a folder this gateway serves them itself, under ``/media``:
who asked for the link, which file and until when are in the URL, and a signature over all of it
(``shared.secrets.derive(secret, "media-links/1")``). Nothing is kept: a link dies with its time, with the secret, or
with its job. Expiry goes by the wall clock, which replicas of one gateway must share to some seconds.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from urllib.parse import quote, urlencode

from msgspec import Struct

from gateway.problems import Problem, not_found
from shared.artifacts import Artifacts
from shared.messages import DEFAULT_TENANT, JobRecord, Output
from shared.pictures import Variant, suffix_of
from shared.s3 import LONGEST_S
from shared.secrets import derive, equal

_USE = "media-links/1"


class Linked(Struct, frozen=True):
    """What a good link is for."""

    tenant: str
    job: str
    index: int
    variant: Variant


class Links:
    """Makes links and knows its own.

    Args:
        secret: of the deployment, the same on every replica.
        base_url: where clients reach the gateway, without a slash at its end.
        now: seconds since 1970.
    """

    def __init__(self, artifacts: Artifacts, secret: str, base_url: str, now: Callable[[], float]) -> None:
        self._artifacts = artifacts
        self._key = derive(secret, _USE)
        self._base_url = base_url
        self.now = now

    async def url(self, record: JobRecord, index: int, *, ttl_s: float, variant: Variant = "output") -> str:
        """The absolute URL of that file of a job, good for so many seconds, a week at most.

        Raises:
            Problem: 404; the job has no such file.
            ArtifactError: the store cannot sign.
        """
        if index >= len(record.outputs):
            raise not_found(f"no such output; the job is {record.state} and has {len(record.outputs)}")
        made = record.outputs[index]
        key = key_of(made, variant)
        ttl_s = min(max(ttl_s, 1.0), LONGEST_S)
        if self._artifacts.signs:
            (url,) = await self._artifacts.sign("GET", [key], ttl_s)
            return url
        path = f"/media/{record.id}/{name_of(made, index, variant)}"
        said: dict[str, str | int] = {"expires": int(self.now() + ttl_s)}
        if record.tenant != DEFAULT_TENANT:
            said["tenant"] = record.tenant
        said["signature"] = self._signature(path, record.tenant, str(said["expires"]))
        return f"{self._base_url}{path}?{urlencode(said, quote_via=quote)}"

    def check(self, path: str, tenant: str, expires: str, signature: str) -> Linked:
        """What the link is for.

        Raises:
            Problem: 403; it was not made here, or its time is over.
        """
        if not equal(self._signature(path, tenant, expires), signature):
            raise Problem(403, "this link is not valid")
        if self.now() >= int(expires):
            raise Problem(403, "this link has expired")
        _, _, job, name = path.split("/")
        index, _, rest = name.partition(".")
        word = rest.partition(".")[0]
        variant: Variant = "thumbnail" if word == "thumbnail" else "spritesheet" if word == "spritesheet" else "output"
        return Linked(tenant, job, int(index), variant)

    def _signature(self, path: str, tenant: str, expires: str) -> str:
        said = "\n".join((path, tenant, expires)).encode()
        return base64.urlsafe_b64encode(hmac.digest(self._key, said, "sha256")).rstrip(b"=").decode()


def key_of(made: Output, variant: Variant) -> str:
    """Where that file of an output lies.

    Raises:
        Problem: 404; it has no such picture.
    """
    key = made.key if variant == "output" else made.thumbnail if variant == "thumbnail" else made.spritesheet
    if not key:
        raise not_found(f"that output has no {variant}")
    return key


def name_of(made: Output, index: int, variant: Variant) -> str:
    """The file's name for those who save it, without the job's: ``0.mp4``, ``0.thumbnail.jpg``."""
    if variant == "output":
        return f"{index}.{suffix_of(made.media_type)}"
    return f"{index}.{variant}.{key_of(made, variant).rpartition('.')[2]}"
