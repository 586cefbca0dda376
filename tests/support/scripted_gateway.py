"""A gateway that says what a test tells it to: a real HTTP server with one queue of answers per route."""

from __future__ import annotations

import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What is sent: with ``cut`` the connection ends in the middle of the body, ``drop`` gives no answer at all;
    ``after`` is called once it is sent."""

    status: int = 200
    body: bytes = b""
    media_type: str = "application/json"
    cut: bool = False
    drop: bool = False
    after: Callable[[], None] | None = None


def view(status: int = 200, **values: object) -> Answer:
    """JSON."""
    return Answer(status=status, body=json.dumps(values).encode())


def problem(status: int, detail: str, *errors: tuple[str, str]) -> Answer:
    """RFC 9457 details."""
    fields = [{"field": name, "message": message} for name, message in errors]
    body = {"type": "about:blank", "title": "No", "status": status, "detail": detail, "errors": fields}
    return Answer(status=status, body=json.dumps(body).encode(), media_type="application/problem+json")


def stream(
    *events: tuple[str, dict[str, object]], cut: bool = False, after: Callable[[], None] | None = None
) -> Answer:
    """Server-sent events, with comments between them as a real gateway sends."""
    parts = [": connected\n\n"]
    for name, data in events:
        number = f"id: {data['index']}\n" if name == "transition" else ""
        parts.append(f"event: {name}\n{number}data: {json.dumps(data)}\n\n: heartbeat\n\n")
    return Answer(body="".join(parts).encode(), media_type="text/event-stream", cut=cut, after=after)


@dataclass
class ScriptedGateway:
    """Answers by ``"METHOD /path"``, each used once, the last one for ever; what was asked, in order."""

    url: str = ""
    answers: dict[str, deque[Answer]] = field(default_factory=lambda: defaultdict(deque))
    asked: list[Asked] = field(default_factory=list)

    def on(self, route: str, *answers: Answer) -> None:
        """Add answers to a route."""
        self.answers[route].extend(answers)

    def of(self, route: str) -> list[Asked]:
        """What came in on that route."""
        return [one for one in self.asked if f"{one.method} {one.path}" == route]


@contextmanager
def serving() -> Iterator[ScriptedGateway]:
    """A scripted gateway on a free port."""
    script = ScriptedGateway()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            script.asked.append(Asked(self.command, parts.path, parts.query, headers, body))
            queue = script.answers[f"{self.command} {parts.path}"]
            answer = problem(404, "not in the script")
            if queue:
                answer = queue.popleft() if len(queue) > 1 else queue[0]
            self.close_connection = True
            if not answer.drop:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.media_type)
                self.send_header("Connection", "close")
                if answer.media_type != "text/event-stream" or answer.cut:
                    self.send_header("Content-Length", str(len(answer.body) + (1 if answer.cut else 0)))
                self.end_headers()
                self.wfile.write(answer.body)
                self.wfile.flush()
            if answer.after is not None:
                answer.after()

        do_GET = _answer
        do_POST = _answer
        do_PUT = _answer
        do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
