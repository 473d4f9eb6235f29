"""A model hub with one repository, as far as `huggingface_hub` needs it to download a snapshot."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION, SHA = "v1", "a" * 40


class Hub(ThreadingHTTPServer):
    """A server of the files in `folder`, as repository org/tiny at REVISION.

    Clients have to send `token`. `downloaded` lists the names of the files that were asked for.
    """

    def __init__(self, folder: Path, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.files = {p.name: p.read_bytes() for p in folder.iterdir()}
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path, files = self.path.partition("?")[0], self.server.files
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._send(401)
        elif path == f"/api/models/org/tiny/revision/{REVISION}":
            siblings = [{"rfilename": name} for name in files]
            self._send(200, json.dumps({"_id": "1", "id": "org/tiny", "sha": SHA, "siblings": siblings}).encode())
        elif path.startswith(f"/api/models/org/tiny/tree/{SHA}"):
            tree = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            self._send(200, json.dumps(tree).encode())
        elif (name := path.removeprefix(f"/org/tiny/resolve/{SHA}/")) in files:
            if self.command == "GET":
                self.server.downloaded.append(name)
            self._send(200, files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"', X_Repo_Commit=SHA)
        else:
            self._send(404)

    do_HEAD = do_GET


@contextmanager
def serve(folder: Path, token: str) -> Iterator[Hub]:
    """Run the hub on a free port of this machine."""
    hub = Hub(folder, token)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(5)
