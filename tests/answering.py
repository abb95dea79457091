"""A real HTTP server on this machine whose answers a test writes, for what a real vLLM server cannot be asked to do."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], dict[str, str]] | None
"""status, content, perhaps headers; None: the connection is closed without a word"""


@contextmanager
def answering(post: Callable[[dict[str, Any]], Reply], *, max_model_len: int) -> Iterator[tuple[str, list[Any]]]:
    """The URL of a server of the model `toy` and, as it grows, what was posted to it."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "toy", "max_model_len": max_model_len}]})

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            reply = post(asked[-1])
            if reply is None:
                self.close_connection = True
            else:
                self.answer(*reply)

        def answer(self, status: int, content: dict[str, Any], headers: Mapping[str, str] = {}) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
