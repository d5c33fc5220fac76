"""SIGTERM: what runs may finish within its grace, what does not is told so, and nothing new begins."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.broker_process import Broker, running_broker
from tests.support.sandbox_control import SandboxControl

PIECE = b"a,b\n" * 1024
PIECES = 40
ENDED_BY_SIGTERM = (0, -signal.SIGTERM)
SMALL = {"file": ("a.csv", b"1")}


class SlowUpload:
    """An upload that sends a piece whenever it is told to, and keeps what was answered."""

    def __init__(self, broker: Broker) -> None:
        host, port = broker.url.removeprefix("http://").split(":")
        self.connection = socket.create_connection((host, int(port)), timeout=20)
        self.connection.sendall(
            b"POST /proxy/upload HTTP/1.1\r\nHost: broker\r\nContent-Type: text/csv\r\n"
            b'Content-Disposition: attachment; filename="slow.csv"\r\n'
            + f"Authorization: Bearer {broker.secret_key}\r\n".encode()
            + f"Content-Length: {len(PIECE) * PIECES}\r\n\r\n".encode()
        )

    def send(self, pieces: int) -> None:
        for _ in range(pieces):
            self.connection.sendall(PIECE)

    def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """The whole answer, after which the connection is closed: status, headers, body."""
        head, body = b"", b""
        while b"\r\n\r\n" not in head:
            head += self._received()
        head, _, body = head.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._received()
        self.connection.close()
        return int(first.split()[1]), headers, json.loads(body)

    def _received(self) -> bytes:
        part = self.connection.recv(65_536)
        assert part, "the connection was closed without a whole answer"
        return part


@contextmanager
def broker_with_an_upload(
    folder: Path, sandbox: SandboxControl, **settings: str
) -> Iterator[tuple[Broker, SlowUpload]]:
    """A broker of this test's own, in the middle of an upload that has reached Coze."""
    with running_broker(folder, sandbox.environment, **settings) as broker:
        upload = SlowUpload(broker)
        upload.send(PIECES // 2)
        sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="open"))
        yield broker, upload
        upload.connection.close()


def wait_until_refusing(broker: Broker) -> None:
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        try:
            httpx.get(f"{broker.url}/health")
        except httpx.HTTPError:
            return
        time.sleep(0.02)
    raise AssertionError("it still takes new connections")


def test_a_running_upload_is_finished_first(folder: Path, sandbox: SandboxControl) -> None:
    with broker_with_an_upload(folder, sandbox) as (broker, upload):
        broker.process.terminate()
        wait_until_refusing(broker)
        assert broker.process.poll() is None
        upload.send(PIECES - PIECES // 2)
        status, _, body = upload.answer()
        assert broker.process.wait(10) in ENDED_BY_SIGTERM
    assert status == 200
    stored = sandbox.file(body["file_id"])
    assert stored["sha256"] == hashlib.sha256(PIECE * PIECES).hexdigest()
    assert len(sandbox.events(kind="upload", outcome="stored")) == 1


@pytest.mark.parametrize("client", ["still sends", "waits in silence"])
def test_after_its_grace_an_upload_is_told_that_it_was_stopped(
    folder: Path, sandbox: SandboxControl, client: str
) -> None:
    """The client reads why, and Coze has stored nothing."""
    with broker_with_an_upload(folder, sandbox, BROKER_SHUTDOWN_GRACE_SECONDS="1") as (broker, upload):
        ended = threading.Event()

        def go_on() -> None:
            while client == "still sends" and not ended.wait(0.01):
                with contextlib.suppress(OSError):  # the answer was read and the connection closed
                    upload.connection.sendall(b"a,b\n")

        sender = threading.Thread(target=go_on)
        sender.start()
        started = time.monotonic()
        broker.process.terminate()
        try:
            status, headers, body = upload.answer()
        finally:
            ended.set()
            sender.join()
        assert broker.process.wait(10) in ENDED_BY_SIGTERM
        seconds = time.monotonic() - started
        assert 1 <= seconds < 8
    assert (status, body["code"], body["retryable"]) == (503, "shutting_down", True)
    assert headers["connection"] == "close"
    sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert sandbox.events(kind="upload", outcome="stored") == []
    record = broker.last_record("/proxy/upload", code="shutting_down")
    assert record["status"] == 503


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_connections_do_not_hold_it_up(
    folder: Path, sandbox: SandboxControl, number: signal.Signals
) -> None:
    with running_broker(folder, sandbox.environment) as broker, httpx.Client(base_url=broker.url) as client:
        answer = client.post("/proxy/upload", files=SMALL, headers=broker.auth())
        assert answer.status_code == 200
        started = time.monotonic()
        broker.process.send_signal(number)
        assert broker.process.wait(10) in (0, -number, 128 + number)
        assert time.monotonic() - started < 3
        said = broker.log.read_text()
        assert '"level": "error"' not in said
        assert "Traceback" not in said


def test_a_file_that_coze_may_have_is_not_asked_for_again(folder: Path, sandbox: SandboxControl) -> None:
    """Stopped while Coze's answer was awaited: who sends it again may store it twice."""
    sandbox.fail(path="/v1/files/upload", delay_seconds=4)
    with (
        running_broker(folder, sandbox.environment, BROKER_SHUTDOWN_GRACE_SECONDS="1") as broker,
        ThreadPoolExecutor(1) as thread,
    ):
        answer = thread.submit(
            httpx.post, f"{broker.url}/proxy/upload", files=SMALL, headers=broker.auth(), timeout=20
        )
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        time.sleep(0.5)
        broker.process.send_signal(signal.SIGTERM)
        response = answer.result()
    assert (response.status_code, response.json()["code"]) == (504, "outcome_unknown")
    assert response.json()["retryable"] is False
    sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="stored"))
