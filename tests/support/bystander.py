"""An upload that has nothing to do with what goes wrong around it."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.support.broker_process import Broker
from tests.support.faulty_line import SPARED
from tests.support.sandbox_control import SandboxControl

PIECE_BYTES = 65_536
PIECES_PER_SECOND = 50
LEAST_PIECES = 40


class Bystander:
    """Sends a piece every now and then until it is told to come to its end."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._enough = threading.Event()
        self._digest = hashlib.sha256()
        self._size = 0
        self._answer: httpx.Response | Exception | None = None
        self._thread = threading.Thread(target=self._upload, daemon=True)
        self._thread.start()

    def finish(self) -> dict[str, Any]:
        """Send the rest. What it was answered, which must be all that it sent."""
        self._enough.set()
        self._thread.join(60)
        assert isinstance(self._answer, httpx.Response), f"the bystander was hurt: {self._answer!r}"
        assert self._answer.status_code == 200, self._answer.text
        told: dict[str, Any] = self._answer.json()
        assert (told["bytes"], told["sha256"]) == (self._size, self._digest.hexdigest())
        return told

    def _upload(self) -> None:
        name = f'attachment; filename="{SPARED.decode()}.csv"'
        headers = self._broker.auth() | {"Content-Type": "text/csv", "Content-Disposition": name}
        try:
            self._answer = httpx.post(
                f"{self._broker.url}/proxy/upload", content=self._pieces(), headers=headers, timeout=30
            )
        except Exception as error:
            self._answer = error

    def _pieces(self) -> Iterator[bytes]:
        for number in itertools.count():
            if number >= LEAST_PIECES and self._enough.is_set():
                return
            piece = b"%020d,bystander\n" % number * (PIECE_BYTES // 31)
            self._digest.update(piece)
            self._size += len(piece)
            yield piece
            self._enough.wait(1 / PIECES_PER_SECOND)


@contextmanager
def bystander(broker: Broker, sandbox: SandboxControl) -> Iterator[None]:
    """While the block runs an upload runs beside it, which must reach Coze untouched.

    It is the first of the sandbox's uploads since it was healed.
    """
    upload = Bystander(broker)
    sandbox.wait_for(lambda: any(event["body_bytes"] > 0 for event in sandbox.events(kind="upload")))
    yield
    told = upload.finish()
    stored = sandbox.file(told["file_id"])
    assert (stored["bytes"], stored["sha256"]) == (told["bytes"], told["sha256"])
