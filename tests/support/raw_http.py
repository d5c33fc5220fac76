"""HTTP by hand, for what no well-behaved client sends and no well-behaved server answers."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

BOUNDARY = "boundary-of-the-tests"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
TIMEOUT_SECONDS = 15.0


def part(content: bytes, name: str = "file", file_name: bytes | None = b"data.csv", *more: bytes) -> bytes:
    """One part of a form, with the boundary before it."""
    disposition = b'Content-Disposition: form-data; name="%b"' % name.encode()
    if file_name is not None:
        disposition += b'; filename="%b"' % file_name
    head = b"".join(line + b"\r\n" for line in (disposition, *more))
    return b"--%b\r\n%b\r\n%b\r\n" % (BOUNDARY.encode(), head, content)


def form(*parts: bytes, end: bytes = b"\r\n") -> bytes:
    """A whole form; ``end`` is what follows its last boundary."""
    return b"".join(parts) + b"--%b--" % BOUNDARY.encode() + end


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in chunked encoding (RFC 9112 §7.1), with its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def head(path: str, headers: Iterable[tuple[str, str | bytes]], method: str = "POST") -> bytes:
    """A request's first line and headers."""
    lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: broker.test"]
    for name, value in headers:
        lines.append(name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()))
    return b"\r\n".join([*lines, b"", b""])


class Connection:
    """One connection of a client's."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_what_goes(self, data: bytes) -> None:
        """Send without reading; that the other side stops taking it is no failure of the test's."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def reset(self) -> None:
        """Leave with RST, as a process that is killed does."""
        reset(self.socket)

    def answer(self) -> httpx.Response:
        """Read one answer, as far as its Content-Length says."""
        with self.socket.makefile("rb") as stream:
            status = int(stream.readline().split()[1])
            headers = []
            while line := stream.readline().strip():
                name, _, value = line.partition(b":")
                headers.append((name.lower(), value.strip()))
            length = int(dict(headers).get(b"content-length", b"0"))
            return httpx.Response(status, headers=headers, content=stream.read(length))


def reset(connection: socket.socket) -> None:
    """Close with RST: that is what closing with a linger time of zero does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class Received:
    """A request as a scripted upstream saw it."""

    head: bytes = b""
    body: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


Script = Callable[[socket.socket], None]


@dataclass
class ScriptedUpstream:
    """A Coze that does with each connection what ``script`` says, in a thread of its own."""

    script: Script = lambda _: None
    url: str = ""
    connections: int = 0
    released: threading.Event = field(default_factory=threading.Event)
    """Set at the end of a test: whoever waits for nothing may stop."""

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._address = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self._address[1]}"
        self._start()

    def does(self, script: Script) -> None:
        """From now on do this."""
        self.script, self.connections = script, 0
        self.released.clear()

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Nobody listens at its address."""
        self.close()
        try:
            yield
        finally:
            self._listener = socket.create_server(self._address, backlog=16)
            self._start()

    @contextlib.contextmanager
    def black_hole(self) -> Iterator[None]:
        """Whoever connects gets no answer to the SYN: its queue of connections is full."""
        self.close()
        with socket.create_server(self._address, backlog=0) as full, contextlib.ExitStack() as stack:
            for _ in range(3):
                filling = stack.enter_context(socket.socket())
                filling.setblocking(False)
                filling.connect_ex(full.getsockname())
            yield
        self._listener = socket.create_server(self._address, backlog=16)
        self._start()

    def close(self) -> None:
        self.released.set()
        # A thread that waits in accept() keeps the port open; shutting down wakes it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(TIMEOUT_SECONDS)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT_SECONDS)
            self.script(connection)


def read_request(connection: socket.socket) -> Received:
    """A request, whole: as many bytes as its head promises, or up to the end of its chunks."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    received = Received(head)
    length = received.headers.get("content-length")
    while len(body) < int(length) if length is not None else not body.endswith(b"0\r\n\r\n"):
        body += _some(connection)
    received.body = body
    return received


def answering(body: Any, status: str = "200 OK", headers: Iterable[str] = ()) -> Script:
    """Read a request to its end, give this answer, close."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer(body, status, headers))

    return script


def answer(body: Any, status: str = "200 OK", headers: Iterable[str] = ()) -> bytes:
    """An answer's bytes; ``body`` as it is when it is bytes, as JSON otherwise."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers)
    return "\r\n".join([*lines, "", ""]).encode() + content


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the broker closed the connection")
    return data
