"""A Hub with one dataset, org/prefs, into which somebody pushes: as much of its API as `datasets` asks for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

BEFORE, AFTER = "0" * 40, "1" * 40  # commits; the push comes right after somebody has asked for the newest
_ROWS = {BEFORE: b'{"prompt": "before"}\n', AFTER: b'{"prompt": "after"}\n'}
_FILE = "data.jsonl"
_API, _FILES = "/api/datasets/org/prefs", "/datasets/org/prefs/resolve/"


class _Hub(ThreadingHTTPServer):
    newest = BEFORE


class _Handler(BaseHTTPRequestHandler):
    server: _Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(_FILES):
            revision, _, name = path.removeprefix(_FILES).partition("/")
            commit = self._commit(revision)
            self._answer(_ROWS[commit] if name == _FILE else None, commit)
            return
        what, _, revision = path.removeprefix(_API).strip("/").partition("/")
        commit = self._commit(revision)
        if not path.startswith(_API) or commit not in _ROWS:
            self._answer(None)
            return
        file = {"type": "file", "path": _FILE, "oid": commit, "size": len(_ROWS[commit])}
        info = {"id": "org/prefs", "sha": commit, "siblings": [{"rfilename": _FILE}], "tags": []}
        self._answer(json.dumps([file] if what == "tree" else info).encode())
        self.server.newest = AFTER

    def do_HEAD(self) -> None:
        self.do_GET()

    def _commit(self, revision: str) -> str:
        return self.server.newest if revision in ("", "main") else revision

    def _answer(self, body: bytes | None, commit: str = "") -> None:
        self.send_response(404 if body is None else 200)
        self.send_header("content-length", str(len(body or b"")))
        if body is None:
            self.send_header("x-error-code", "EntryNotFound")
        if commit:
            self.send_header("x-repo-commit", commit)
            self.send_header("etag", f'"{commit}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def hub() -> Iterator[str]:
    """Its address."""
    with _Hub(("127.0.0.1", 0), _Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
