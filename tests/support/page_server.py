"""An app of somebody's own origin: its pages, its back end that mints; and a bad line to the broker."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.broker_process import Broker

PAGES = Path(__file__).parent.parent / "pages"
HELPER = Path(__file__).parent.parent.parent / "web" / "static" / "upload-to-coze.js"
UPLOAD = b"POST /proxy/upload "
OTHER_REQUESTS = (b"GET ", b"OPTIONS ", b"POST ")
CHUNK_BYTES = 65_536
CLOSE_SECONDS = 5.0


@dataclass
class PageServer:
    """An app's server: its page, a copy of the helper, and ``POST /upload-token``."""

    origin: str
    broker: Broker | None = None
    """Who mints for it."""
    asks_otherwise: dict[str, Any] = field(default_factory=dict)
    """What its back end asks a token for, whatever the page said."""
    same_token: dict[str, Any] | None = None
    """A token that it hands out again and again."""
    minted: list[dict[str, Any]] = field(default_factory=list)

    def forget(self) -> None:
        """Behave again."""
        self.asks_otherwise, self.same_token, self.minted = {}, None, []

    def mint(self, asked: dict[str, Any]) -> dict[str, Any]:
        """With the secret key, for the page's origin: a token of the page's own."""
        assert self.broker is not None
        token = self.same_token or self.broker.mint(origin=self.origin, **{**asked, **self.asks_otherwise})
        self.minted.append(token)
        return token


@contextmanager
def serving_pages() -> Iterator[PageServer]:
    """An app on a loopback port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/upload-to-coze.js":
                self._answer("text/javascript", HELPER.read_bytes())
            elif path == "/embed.html":
                self._answer("text/html; charset=utf-8", (PAGES / "embed.html").read_bytes())
            else:
                self._answer("text/plain", b"", status=204)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer("application/json", json.dumps(app.mint(asked)).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def _answer(self, content_type: str, content: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    app = PageServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield app
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Relay:
    """Carries bytes between pages and a broker, and resets the connections of uploads when it is told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.target = ("127.0.0.1", 0)
        self.behave()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def behave(self) -> None:
        """From now on only carry, and count."""
        self.uploads = 0
        self.keeps_alive = True
        """Whether a connection carries more than one request."""
        self._breaks_left, self._break_after, self._swallows = 0, 0, 0

    def break_uploads(self, times: int, after_bytes: int) -> None:
        """Reset the next ``times`` uploads after so many bytes of their requests."""
        self._breaks_left, self._break_after = times, after_bytes

    def swallow_answer(self, times: int = 1) -> None:
        """Let the next uploads pass whole, and reset their connections when the answer comes."""
        self._swallows = times

    def close(self) -> None:
        # A thread that waits in accept() keeps the port open; shutting down wakes it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                page, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(page,), daemon=True))
                self._threads[-1].start()

    def _serve(self, page: socket.socket) -> None:
        with page, contextlib.suppress(OSError), socket.create_connection(self.target) as broker:
            line = _Line(page, broker)
            back = threading.Thread(target=line.ended_by_errors, args=(self._to_page,), daemon=True)
            back.start()
            line.ended_by_errors(self._to_broker)
            back.join()

    def _to_broker(self, line: _Line) -> None:
        while data := line.page.recv(CHUNK_BYTES):
            self._note(line, data)
            line.broker.sendall(data)
            if line.is_doomed and line.upload_bytes >= self._break_after:
                line.reset()
                return
        line.broker.shutdown(socket.SHUT_WR)

    def _to_page(self, line: _Line) -> None:
        while data := line.broker.recv(CHUNK_BYTES):
            if self._swallows and line.upload_bytes:
                self._swallows -= 1
                line.reset()
                return
            if not self.keeps_alive:
                data = data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
            line.page.sendall(data)
        line.page.shutdown(socket.SHUT_WR)

    def _note(self, line: _Line, data: bytes) -> None:
        if UPLOAD in data:
            self.uploads += 1
            line.is_doomed = self._breaks_left > 0
            self._breaks_left -= line.is_doomed
            line.upload_bytes = len(data)
        elif data.startswith(OTHER_REQUESTS):
            line.upload_bytes = 0
        elif line.upload_bytes:
            line.upload_bytes += len(data)


@dataclass
class _Line:
    """One connection of a page's, and the one that the relay made for it."""

    page: socket.socket
    broker: socket.socket
    upload_bytes: int = 0
    is_doomed: bool = False

    def reset(self) -> None:
        """Closing is the server's business; with a linger time of zero that is a reset."""
        for end in (self.page, self.broker):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wake()

    def wake(self) -> None:
        """End what either thread waits for."""
        for end in (self.page, self.broker):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)

    def ended_by_errors(self, carry: Callable[[_Line], None]) -> None:
        try:
            carry(self)
        except OSError:
            self.wake()
