"""S3 and what speaks its protocol (MinIO, Huawei's OBS, Alibaba's OSS, Tencent's COS, …): how a bucket is reached, by
the settings or by the usual ``AWS_…`` variables, and within which bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import obstore
from msgspec import Struct
from obstore.store import LocalStore, S3Store

from shared.errors import ArtifactError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

#: Presigned URLs are refused by S3 beyond this (AWS Signature Version 4, query parameters).
LONGEST_S = 7 * 86_400
_TRIES = 5
_CONNECT_S = 5.0
#: Bytes of a part of a multipart upload, and parts that are on their way at once.
_PART = 8 * 1024 * 1024
_PARTS = 4


class S3Options(Struct, frozen=True, kw_only=True):
    """How a bucket is reached. What is empty comes from ``AWS_…`` variables, or from the machine's own role.

    Attributes:
        endpoint: ``https://host[:port]``; empty: AWS of the region.
        public_endpoint: the same as clients reach it, for signed URLs; empty: as ``endpoint``.
        path_style: the bucket is the path's beginning, and not the host's.
        ca: certificates in PEM to trust besides the system's.
        timeout_s: a server that is silent for so long is asked again, for up to twice as long.
    """

    endpoint: str = ""
    public_endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    path_style: bool = True
    allow_http: bool = False
    ca: str = ""
    timeout_s: float = 30.0


def open_bucket(location: str, options: S3Options, *, public: bool = False) -> S3Store:
    """The bucket and prefix of ``s3://bucket/prefix``; ``public``: as clients reach it, only to sign URLs with.

    Raises:
        ArtifactError: the location or an option cannot be right.
    """
    parts = urlsplit(location)
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if parts.scheme != "s3" or not bucket:
        raise ArtifactError(f"{location}: not s3://bucket/prefix")
    if bool(options.access_key) != bool(options.secret_key):
        raise ArtifactError("an S3 access key goes with a secret key: one of the two is missing")
    config: S3Config = {"virtual_hosted_style_request": not options.path_style}
    endpoint = options.public_endpoint if public and options.public_endpoint else options.endpoint
    if endpoint:
        config["endpoint"] = _endpoint(endpoint, bucket, options)
    if options.region:
        config["region"] = options.region
    if options.access_key:
        config["access_key_id"], config["secret_access_key"] = options.access_key, options.secret_key
    if options.session_token:
        config["session_token"] = options.session_token
    client: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(_CONNECT_S, options.timeout_s)),
        "read_timeout": timedelta(seconds=options.timeout_s),
        # Of one request with all its bytes; no request carries more than a piece of a file.
        "timeout": timedelta(seconds=4 * options.timeout_s),
    }
    if options.allow_http:
        client["allow_http"] = True
    if options.ca:
        client["root_certificate"] = options.ca
    retry: RetryConfig = {"max_retries": _TRIES, "retry_timeout": timedelta(seconds=2 * options.timeout_s)}
    return S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=retry)


async def put_in_parts(
    store: LocalStore | S3Store, key: str, chunks: AsyncIterator[bytes], said: dict[str, str]
) -> None:
    """Write the key in parts. A cancelled call would leave them behind, unseen and paid for: only a source that fails
    ends them, so that is what a cancel becomes."""
    cancelled = asyncio.get_running_loop().create_future()

    async def until_cancelled() -> AsyncIterator[bytes]:
        while True:
            taking = asyncio.ensure_future(anext(chunks, None))
            try:
                await asyncio.wait((taking, cancelled), return_when=asyncio.FIRST_COMPLETED)
                if cancelled.done():
                    raise OSError("the upload was cancelled")
                chunk = await taking
            finally:
                taking.cancel()
            if chunk is None:
                return
            yield chunk

    putting = asyncio.ensure_future(
        obstore.put_async(store, key, until_cancelled(), attributes=said, chunk_size=_PART, max_concurrency=_PARTS)
    )
    try:
        await asyncio.shield(putting)
    except asyncio.CancelledError:
        cancelled.set_result(None)
        await asyncio.gather(putting, return_exceptions=True)
        raise


def attributes(key: str, media_type: str) -> dict[str, str]:
    """What S3 is to say of a file when it hands it out by a signed URL, which asks nobody here."""
    said = {"Content-Type": media_type}
    job, _, name = key.rpartition("/")
    if not key.startswith("inputs/"):
        said["Content-Disposition"] = f'inline; filename="{job.partition("/")[0]}-{name}"'
    return said


def base_of(endpoint: str, bucket: str, path_style: bool) -> str:
    """Where a bucket answers: its keys follow after a slash."""
    parts = urlsplit(endpoint)
    host, path = parts.netloc, parts.path.rstrip("/")
    if path_style:
        path = f"{path}/{bucket}"
    else:
        host = f"{bucket}.{host}"
    return urlunsplit((parts.scheme, host, path, "", ""))


def _endpoint(endpoint: str, bucket: str, options: S3Options) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query:
        raise ArtifactError(f"{endpoint}: an S3 endpoint is https://host[:port]")
    if parts.scheme == "http" and not options.allow_http:
        raise ArtifactError(f"{endpoint}: not without TLS, unless GENFLEET_S3_ALLOW_HTTP says so")
    host = parts.netloc if options.path_style else f"{bucket}.{parts.netloc}"
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
