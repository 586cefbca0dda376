"""Multipart uploads whose process died: their parts are in no list, and a bucket keeps and charges them for ever.

obstore has no call for them, so these two requests (ListMultipartUploads, AbortMultipartUpload of the S3 API) are
signed here (AWS Signature Version 4, by query parameters), with the settings' credentials or those of the ``AWS_…``
variables. Where credentials come from a machine's role there are none to sign with: a lifecycle rule of the bucket does
it there.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

from msgspec import Struct

from shared.errors import ArtifactError
from shared.s3 import S3Options, base_of

_ROUNDS = 100
_EXPIRES_S = 300


class Unfinished(Struct, frozen=True):
    """An upload: of which key of the bucket, its id, and when it began (seconds since 1970)."""

    key: str
    upload: str
    began: float


class Uploads:
    """The uploads below one location.

    Args:
        location: ``s3://bucket/prefix``.
    """

    def __init__(self, location: str, options: S3Options, environ: Mapping[str, str] = os.environ) -> None:
        parts = urlsplit(location)
        self._prefix = parts.path.strip("/")
        self._timeout_s = options.timeout_s
        self._ca = options.ca
        named = (environ.get(f"AWS_ENDPOINT_URL{end}", "") for end in ("_S3", ""))
        self._region = options.region or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        endpoint = options.endpoint or next(filter(None, named), "") or f"https://s3.{self._region}.amazonaws.com"
        self._base = base_of(endpoint, parts.netloc, options.path_style)
        self._key, self._secret = options.access_key, options.secret_key
        self._token = options.session_token
        if not self._key:
            self._key = environ.get("AWS_ACCESS_KEY_ID", "")
            self._secret = environ.get("AWS_SECRET_ACCESS_KEY", "")
            self._token = environ.get("AWS_SESSION_TOKEN", "")

    @property
    def can_ask(self) -> bool:
        """Whether there are credentials to sign with."""
        return bool(self._key and self._secret)

    async def abort(self, before: float) -> int:
        """End those that began before that moment; how many.

        Raises:
            ArtifactError: the store does not answer, or does not let us.
        """
        aborted = 0
        async for found in self._all():
            if found.began < before:
                await self._ask("DELETE", found.key, {"uploadId": found.upload})
                aborted += 1
        return aborted

    async def _all(self) -> AsyncIterator[Unfinished]:
        query = {"uploads": "", "prefix": f"{self._prefix}/" if self._prefix else ""}
        for _ in range(_ROUNDS):
            try:
                page = ElementTree.fromstring(await self._ask("GET", "", query))
                for found in page.iterfind("{*}Upload"):
                    began = datetime.fromisoformat(found.findtext("{*}Initiated", "")).timestamp()
                    yield Unfinished(found.findtext("{*}Key", ""), found.findtext("{*}UploadId", ""), began)
            except (ElementTree.ParseError, ValueError) as error:
                raise ArtifactError(f"the list of unfinished uploads cannot be read: {error}") from error
            if page.findtext("{*}IsTruncated") != "true":
                return
            query |= {
                "key-marker": page.findtext("{*}NextKeyMarker", ""),
                "upload-id-marker": page.findtext("{*}NextUploadIdMarker", ""),
            }

    async def _ask(self, method: str, key: str, query: dict[str, str]) -> bytes:
        import httpx  # once in hours

        verify: ssl.SSLContext | bool = True
        if self._ca:
            verify = ssl.create_default_context()
            verify.load_verify_locations(cadata=self._ca)
        url = self._signed(method, key, query)
        try:
            async with httpx.AsyncClient(timeout=self._timeout_s, verify=verify) as client:
                answer = await client.request(method, url)
        except httpx.HTTPError as error:
            raise ArtifactError(f"unfinished uploads: {type(error).__name__}: {error}") from error
        if not answer.is_success and not (method == "DELETE" and answer.status_code == 404):
            raise ArtifactError(f"unfinished uploads: {method} answered {answer.status_code}")
        return answer.content

    def _signed(self, method: str, key: str, query: dict[str, str]) -> str:
        parts = urlsplit(self._base)
        path = quote(f"{parts.path}/{key}" if key else parts.path or "/", safe="/")
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        said = {
            **query,
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{self._key}/{scope}",
            "X-Amz-Date": now,
            "X-Amz-Expires": str(_EXPIRES_S),
            "X-Amz-SignedHeaders": "host",
        }
        if self._token:
            said["X-Amz-Security-Token"] = self._token
        listed = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(said.items()))
        request = "\n".join((method, path, listed, f"host:{parts.netloc}\n", "host", "UNSIGNED-PAYLOAD"))
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        secret = f"AWS4{self._secret}".encode()
        for part in scope.split("/"):
            secret = hmac.digest(secret, part.encode(), "sha256")
        signature = hmac.digest(secret, text.encode(), "sha256").hex()
        return f"{parts.scheme}://{parts.netloc}{path}?{listed}&X-Amz-Signature={signature}"
