"""An S3 server for tests: moto's, behind a guard that checks what moto does not, the signature and the lifetime of
presigned URLs (AWS Signature Version 4, "Authenticating Requests: Using Query Parameters")."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote

import httpx

from shared.s3 import S3Options

KEY, SECRET, REGION = "test-key", "test-secret", "eu-test-1"


class S3Server:
    """The server.

    Attributes:
        url: its endpoint.
        ahead_s: how far its clock is ahead of the machine's.
        broken: it answers 503 to everything.
        presigned: method and path of every presigned request that it served.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.url = ""
        self.ahead_s = 0.0
        self.broken = False
        self.presigned: list[tuple[str, str]] = []
        self._application = application

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        if self.broken:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if "X-Amz-Signature" in query:
            if not self._is_good(environ, query):
                start("403 Forbidden", [("Content-Length", "0")])
                return [b""]
            self.presigned.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        elif "X-Amz-" not in str(query) and "HTTP_AUTHORIZATION" not in environ:
            start("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return self._application(environ, start)

    def _is_good(self, environ: dict[str, Any], query: dict[str, str]) -> bool:
        given = query.pop("X-Amz-Signature")
        signed_at = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if time.time() + self.ahead_s > signed_at + int(query["X-Amz-Expires"]):
            return False
        listed = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in sorted(query.items()))
        request = "\n".join(
            (
                environ["REQUEST_METHOD"],
                quote(environ["PATH_INFO"], safe="/"),
                listed,
                f"host:{environ['HTTP_HOST']}\n",
                "host",
                "UNSIGNED-PAYLOAD",
            )
        )
        scope = query["X-Amz-Credential"].split("/", 1)[1]
        said = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        key = f"AWS4{SECRET}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.compare_digest(hmac.digest(key, said.encode(), "sha256").hex(), given)

    @property
    def options(self) -> S3Options:
        """How it is reached."""
        return S3Options(endpoint=self.url, region=REGION, access_key=KEY, secret_key=SECRET, allow_http=True)

    def environ(self, location: str) -> dict[str, str]:
        """The variables of a service that keeps its files there."""
        return {
            "GENFLEET_ARTIFACTS": location,
            "GENFLEET_S3_ENDPOINT": self.url,
            "GENFLEET_S3_REGION": REGION,
            "GENFLEET_S3_ACCESS_KEY": KEY,
            "GENFLEET_S3_SECRET_KEY": SECRET,
            "GENFLEET_S3_ALLOW_HTTP": "1",
        }

    def location(self) -> str:
        """A bucket of its own, with a prefix."""
        bucket = f"b{uuid.uuid4().hex}"
        assert self.ask("PUT", f"/{bucket}").status_code == 200
        return f"s3://{bucket}/fleet/files"

    def unfinished(self, location: str) -> list[str]:
        """Keys of the multipart uploads that were begun and not ended."""
        return re.findall("<Key>(.*?)</Key>", self.ask("GET", f"/{location.split('/')[2]}?uploads").text)

    def ask(self, method: str, path: str, content: bytes = b"") -> httpx.Response:
        """A request as its administrator."""
        with httpx.Client(trust_env=False) as client:
            return client.request(method, self.url + path, headers={"Authorization": "test"}, content=content)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server for as long as the block lasts."""
    from moto.server import create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    serving = S3Server(create_backend_app("s3"))
    server = make_server("127.0.0.1", 0, serving, threaded=True)
    serving.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield serving
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
