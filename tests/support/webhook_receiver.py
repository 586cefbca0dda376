"""A receiver of webhooks: a real HTTP server, whose paths say how it behaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Got:
    """What came in."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def ident(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """``/hang…`` answers nothing until ``release``; ``/busy…`` answers 503 until ``cure``; all else 204."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    cured: threading.Event = field(default_factory=threading.Event)

    def of(self, path: str) -> list[Got]:
        """What came in there."""
        return [one for one in self.got if one.path == path]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append(Got(self.path, headers, body))
            self.close_connection = True
            if self.path.startswith("/hang"):
                receiver.released.wait(120.0)
            busy = self.path.startswith("/busy") and not receiver.cured.is_set()
            try:
                self.send_response(503 if busy else 204)
                self.send_header("Connection", "close")
                self.end_headers()
            except OSError:
                return  # the sender has gone

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
