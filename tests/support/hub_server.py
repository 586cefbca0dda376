"""A local HTTP server that answers as Hugging Face, ModelScope and Modelers do, with faults on request: large files are
redirected to a CDN (the same server by another name), and connections break off in the middle.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "owner/model"


class HubServer:
    """A context manager.

    Attributes:
        files: the repository's content by path; those of ``large`` bytes and more are in LFS.
        cut: by path, after how many bytes the next answer breaks off; each cut happens once.
        lies: by path, what is sent in place of the content, once.
        missing: paths that are listed and not there.
        ignores_range: as some mirrors do.
        token: if set, the token that must be shown.
        requests: (path with query, Range header or "", Authorization or "", Host) of each.
    """

    def __init__(self, files: dict[str, bytes], *, large: int = 1000) -> None:
        self.files, self.large = files, large
        self.cut: dict[str, int] = {}
        self.lies: dict[str, bytes] = {}
        self.missing: set[str] = set()
        self.ignores_range = False
        self.token = ""
        self.failures = 0
        self.most_at_once = self._now = 0
        self.requests: list[tuple[str, str, str, str]] = []
        self._lock = threading.Lock()
        room = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                room._entered()
                try:
                    room._answer(self)
                finally:
                    room._left()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cdn = f"http://localhost:{self.port}"

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _entered(self) -> None:
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)

    def _left(self) -> None:
        with self._lock:
            self._now -= 1

    def fetched(self) -> list[tuple[str, str]]:
        """Paths of files and the Range of each, in the order of the answers with content."""
        found = []
        for path, ranged, _, _ in self.requests:
            if path.startswith("/cdn/"):
                found.append((unquote(path.removeprefix("/cdn/")), ranged))
        return found

    # --- answers -----------------------------------------------------------------------------------------------------

    def _answer(self, to: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(to.path)
        headers = to.headers
        with self._lock:
            self.requests.append(
                (to.path, headers.get("Range", ""), headers.get("Authorization", ""), headers.get("Host", ""))
            )
            if self.failures:
                self.failures -= 1
                return self._say(to, 503, {})
        if parts.path.startswith("/cdn/"):
            return self._content(to, unquote(parts.path.removeprefix("/cdn/")))
        if self.token and headers.get("Authorization") != f"Bearer {self.token}":
            return self._say(to, 401, {"error": "who are you"})
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        for pattern, answer in (
            (rf"/api/models/{REPOSITORY}/revision/([^/]+)", self._huggingface),
            (rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", self._redirect),
            (rf"/api/v1/models/{REPOSITORY}/repo/files", self._modelscope),
            (rf"/api/v1/models/{REPOSITORY}/repo", self._modelscope_file),
            (rf"/api/v1/file/{REPOSITORY}", self._modelers),
            (rf"/api/v1/file/{REPOSITORY}/([^/]+)/media/(.+)", self._redirect),
        ):
            found = re.fullmatch(pattern, parts.path)
            if found:
                return answer(to, query, *found.groups())
        self._say(to, 404, {"error": "no such repository"})

    def _huggingface(self, to: BaseHTTPRequestHandler, query: dict[str, str], revision: str) -> None:
        if revision not in ("main", COMMIT):
            return self._say(to, 404, {"error": "Invalid rev id"})
        siblings: list[dict[str, Any]] = []
        for path, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": path}
            if query.get("blobs") == "true":
                entry |= {"size": len(content), "blobId": git_name(content)}
                if len(content) >= self.large:
                    entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 135}
            siblings.append(entry)
        self._say(to, 200, {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings})

    def _modelscope(self, to: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        if query["Revision"] not in ("master", "v1"):
            return self._say(to, 404, {"Code": 10010205001, "Message": "record not found", "Success": False})
        folders = {path.rpartition("/")[0] for path in self.files if "/" in path}
        entries = [{"Path": folder, "Name": folder, "Type": "tree", "Size": 0, "Sha256": ""} for folder in folders]
        entries += [
            {"Path": path, "Name": path, "Type": "blob", "Size": len(content), "Sha256": sha256(content), "IsLFS": True}
            for path, content in self.files.items()
        ]
        self._say(to, 200, {"Code": 200, "Success": True, "Data": {"Files": entries}})

    def _modelscope_file(self, to: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        assert query["Revision"] in ("master", "v1")
        self._redirect(to, query, query["Revision"], query["FilePath"])

    def _modelers(self, to: BaseHTTPRequestHandler, query: dict[str, str]) -> None:
        if query["ref"] not in ("main", COMMIT):
            return self._say(to, 404, {"code": "revision_not_found", "msg": "no such revision"})
        folder = query.get("path", "")
        tree: dict[str, dict[str, Any]] = {}
        for path, content in self.files.items():
            inner = path.removeprefix(folder + "/") if folder else path
            if folder and not path.startswith(folder + "/"):
                continue
            if "/" in inner:
                place = (folder + "/" if folder else "") + inner.partition("/")[0]
                tree[place] = {"type": "dir", "path": place, "name": inner.partition("/")[0]}
            else:
                lfs = len(content) >= self.large
                etag = sha256(content) if lfs else git_name(content)
                tree[path] = {"type": "file", "path": path, "size": len(content), "etag": etag, "is_lfs": lfs}
        last = {"commit": {"commit_sha": COMMIT, "message": "x", "created": "2025-01-01T00:00:00Z"}}
        self._say(to, 200, {"code": "", "msg": "", "data": {"tree": list(tree.values()), "last_commit": last}})

    def _redirect(self, to: BaseHTTPRequestHandler, _query: dict[str, str], revision: str, path: str) -> None:
        path = unquote(path)
        if path not in self.files or path in self.missing:
            return self._say(to, 404, {"error": f"no {path} at {revision}"})
        to.send_response(302)
        to.send_header("Location", f"{self.cdn}/cdn/{path}")
        to.send_header("Content-Length", "0")
        to.end_headers()

    def _content(self, to: BaseHTTPRequestHandler, path: str) -> None:
        content = self.lies.pop(path, self.files[path])
        found = re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range", ""))
        start = int(found[1]) if found and not self.ignores_range else 0
        if start and start >= len(content):
            return self._say(to, 416, {})
        body = content[start:]
        to.send_response(206 if start else 200)
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        cut = self.cut.pop(path, None)
        if cut is not None:
            to.wfile.write(body[:cut])
            to.wfile.flush()
            to.close_connection = True
            return
        to.wfile.write(body)

    def _say(self, to: BaseHTTPRequestHandler, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        to.send_response(status)
        to.send_header("Content-Length", str(len(content)))
        to.end_headers()
        to.wfile.write(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
