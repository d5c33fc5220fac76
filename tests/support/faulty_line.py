"""The line from a broker to the sandbox Coze, which breaks for one upload and holds for all others."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.support.raw_http import Script, ScriptedUpstream

SPARED = b"bystander"
"""An upload whose file has this in its name gets through, whatever is wrong with the line."""
PEEKED_BYTES = 8192


class FaultyLine:
    """Listens where the broker looks for Coze, and passes everything on to ``sandbox_url``.

    While there is a ``fault``, it gets the uploads instead, save for those of ``SPARED``.
    """

    def __init__(self, sandbox_url: str) -> None:
        self.upstream = ScriptedUpstream(self._serve)
        self.url = self.upstream.url
        self.fault: Script | None = None
        self.faults = 0
        """How many uploads the fault had."""
        self._sandbox = sandbox_url.removeprefix("http://").split(":")
        self._open: set[socket.socket] = set()

    def breaks(self, fault: Script) -> None:
        """From now on every upload gets this."""
        self.upstream.released.clear()
        self.fault, self.faults = fault, 0

    def mend(self) -> None:
        """No fault any more; and what is connected has to connect again."""
        self.upstream.released.set()
        self.fault = None
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Connect nobody any more."""
        self.mend()
        self.upstream.close()

    def _serve(self, connection: socket.socket) -> None:
        begin = _peek(connection)
        if self.fault is not None and b"/v1/files/upload" in begin and SPARED not in begin:
            self.faults += 1
            self.fault(connection)
        elif begin:
            self._pass_on(connection)

    def _pass_on(self, broker: socket.socket) -> None:
        host, port = self._sandbox
        with socket.create_connection((host, int(port))) as sandbox:
            broker.settimeout(None)
            self._open.add(broker)
            back = threading.Thread(target=_copy, args=(sandbox, broker), daemon=True)
            back.start()
            _copy(broker, sandbox)
            back.join()
            self._open.discard(broker)


def _peek(connection: socket.socket) -> bytes:
    """A request's head, and of an upload the file's name, left where they are."""
    while True:
        begin = connection.recv(PEEKED_BYTES, socket.MSG_PEEK)
        is_upload = b"/v1/files/upload" in begin
        if not begin or (b"filename=" in begin if is_upload else b"\r\n\r\n" in begin):
            return begin
        time.sleep(0.005)


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes, and its end."""
    with contextlib.suppress(OSError):
        while data := source.recv(262_144):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
