"""The client leaves midway, or says nothing more: Coze gets no file, and nobody else notices."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import ClientLeft, ClientTooSlow
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import FORM_TYPE, Connection, ScriptedUpstream, form, head, part
from tests.support.refusals import PROXY, SHAPES, assert_no_secret, assert_refused, whole_lines
from tests.support.sandbox_control import SandboxControl

SENT = 300_000
"""More than fits between the caller and Coze, so that some of it has arrived there."""

Leaving = Callable[[Connection], None]


@pytest.fixture(scope="module")
def narrow_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker with one connection to Coze, that waits one second for a caller."""
    settings = {"BROKER_MAX_UPSTREAM_CONNECTIONS": "1", "BROKER_CLIENT_IDLE_SECONDS": "1"}
    folder = tmp_path_factory.mktemp("narrow")
    with running_broker(folder, session_sandbox.environment, **settings) as broker:
        yield broker
        assert_no_secret(broker.log.read_text())


def begin_upload(broker: Broker, path: str, framing: dict[str, str], body: bytes) -> Connection:
    headers = broker.auth() | {"Origin": PAGE_ORIGIN, "Content-Type": FORM_TYPE} | framing
    connection = Connection(broker.url)
    connection.send(head(path, [*headers.items()]) + body)
    return connection


def upload_whole(broker: Broker, content: bytes = b"a,b") -> None:
    digest = hashlib.sha256(content).hexdigest()
    answer = httpx.post(
        broker.url + PROXY, files={"file": ("a.csv", content)}, headers=broker.auth(), timeout=30
    )
    assert (answer.status_code, answer.json().get("sha256")) == (200, digest), answer.text


def records_of_leaving(broker: Broker, after_line: int) -> list[dict[str, Any]]:
    """The records of clients that left, once there is one."""
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        lines = [json.loads(line) for line in whole_lines(broker)[after_line:]]
        if found := [line for line in lines if line.get("code") == ClientLeft.code]:
            return found
        time.sleep(0.02)
    raise AssertionError("no client left")


def half_close(connection: Connection) -> None:
    connection.socket.shutdown(socket.SHUT_WR)


def close(connection: Connection) -> None:
    connection.socket.close()


LEAVING: dict[str, Leaving] = {"FIN": close, "half-close": half_close, "RST": Connection.reset}
FRAMING = {
    "with length": ({"Content-Length": "10000000"}, part(b"")[:-2] + b"x" * SENT),
    "chunked": (
        {"Transfer-Encoding": "chunked"},
        b"%x\r\n%b\r\n%x\r\n%b\r\n" % (len(part(b"")) - 2, part(b"")[:-2], SENT, b"x" * SENT),
    ),
    "chunked, in mid-chunk": (
        {"Transfer-Encoding": "chunked"},
        b"%x\r\n%b\r\nffffff\r\n%b" % (len(part(b"")) - 2, part(b"")[:-2], b"x" * SENT),
    ),
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(("framing", "body"), FRAMING.values(), ids=FRAMING)
@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
def test_a_client_that_leaves_midway(
    narrow_broker: Broker,
    sandbox: SandboxControl,
    *,
    path: str,
    framing: dict[str, str],
    body: bytes,
    leave: Leaving,
) -> None:
    """Coze's connection is broken off, the record says how far it got, and the one slot is free again."""
    before = len(whole_lines(narrow_broker))
    connection = begin_upload(narrow_broker, path, framing, body)
    sandbox.wait_for(lambda: any(event["body_bytes"] > 0 for event in sandbox.events(kind="upload")))
    leave(connection)
    (event,) = sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert (event["file_id"], event["status"]) == (None, None)
    (record,) = records_of_leaving(narrow_broker, before)
    assert record["path"] == path
    assert 0 < record["bytes_received"] <= SENT
    assert record["status"] == ClientLeft.status
    upload_whole(narrow_broker)
    assert len(sandbox.events(outcome="stored")) == 1
    connection.socket.close()


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
@pytest.mark.parametrize(
    "body", [b"", part(b"")[:40], part(b"x" * 4000)], ids=["nothing", "half a header", "half a file's head"]
)
def test_a_client_that_leaves_before_its_file(
    narrow_broker: Broker, sandbox: SandboxControl, body: bytes, leave: Leaving
) -> None:
    """Coze never hears of it."""
    before = len(whole_lines(narrow_broker))
    connection = begin_upload(narrow_broker, PROXY, {"Content-Length": "100000"}, body)
    leave(connection)
    assert len(records_of_leaving(narrow_broker, before)) == 1
    assert sandbox.events(kind="upload") == []
    connection.socket.close()


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    "body", [b"", part(b"")[:40], part(b"x" * SENT)], ids=["nothing", "half a header", "half a file"]
)
def test_a_client_that_falls_silent_is_told_so(
    narrow_broker: Broker, sandbox: SandboxControl, path: str, body: bytes
) -> None:
    with begin_upload(narrow_broker, path, {"Content-Length": "10000000"}, body) as connection:
        answer = connection.answer()
    assert_refused(narrow_broker, answer, ClientTooSlow, path)
    upload_whole(narrow_broker)
    assert len(sandbox.events(outcome="stored")) == 1


def test_others_do_not_notice(broker: Broker, sandbox: SandboxControl) -> None:
    """Twenty clients leave while one sends 20 MB; its file arrives equal to the byte."""
    content = secrets.token_bytes(10_000_000).hex().encode()
    bystander = threading.Thread(target=upload_whole, args=(broker, content))
    bystander.start()
    for number in range(20):
        body = part(b"x" * SENT)
        connection = begin_upload(broker, PROXY, {"Content-Length": "10000000"}, body)
        (Connection.reset if number % 2 else close)(connection)
    bystander.join()
    (stored,) = sandbox.events(outcome="stored")
    assert stored["file_bytes"] == 20_000_000
    sandbox.wait_for(lambda: sandbox.events(outcome="open") == [])
    assert len(sandbox.events(outcome="stored")) == 1


# --- leaving while Coze stalls ------------------------------------------------------------------------


@pytest.fixture
def stalled_broker(folder: Path) -> Iterator[Broker]:
    """A broker in front of a Coze that takes connections and reads nothing."""
    upstream = ScriptedUpstream(lambda _: None)

    def read_nothing(_: socket.socket) -> None:
        upstream.released.wait(30)

    upstream.does(read_nothing)
    settings = {"COZE_API_BASE": upstream.url, "COZE_API_TOKEN": "pat_of_the_tests"}
    with running_broker(folder, settings) as broker:
        yield broker
    upstream.released.set()
    upstream.close()


def send_until_nobody_takes_more(connection: Connection, most_bytes: int = 1 << 30) -> int:
    """How much went out before everything between the caller and Coze was full."""
    connection.socket.settimeout(0.5)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most_bytes:
            sent += connection.socket.send(b"x" * min(65536, most_bytes - sent))
    return sent


@pytest.mark.parametrize("leave", [close, half_close, Connection.reset], ids=["FIN", "half-close", "RST"])
def test_a_client_that_leaves_while_coze_stalls_is_noticed(stalled_broker: Broker, leave: Leaving) -> None:
    """Nothing is read from it then, so nothing tells of its leaving: the broker looks."""
    begin = ("/proxy/upload", {"Content-Length": "500000000"}, part(b"")[:-2])
    full = begin_upload(stalled_broker, *begin)
    taken = send_until_nobody_takes_more(full)
    connection = begin_upload(stalled_broker, *begin)
    # An end that waits behind bytes for which there is no room can't be seen by anybody; a reset can.
    send_until_nobody_takes_more(connection, 1 << 30 if leave is Connection.reset else taken // 4)
    before = time.monotonic()
    leave(connection)
    record = stalled_broker.last_record("/proxy/upload", seconds=10, code=ClientLeft.code)
    assert (record["status"], record["sent"]) == (ClientLeft.status, "part")
    assert time.monotonic() - before < 5, "the alarm of Coze's own limit rings after a minute"
    full.reset()
    connection.socket.close()


def test_a_client_that_leaves_while_its_small_file_waits_is_noticed(
    narrow_broker: Broker, sandbox: SandboxControl
) -> None:
    """Its file is all here; Coze is not sent what nobody asks for any more."""
    body = form(part(b"a,b"))
    with begin_upload(narrow_broker, PROXY, {"Content-Length": "10000000"}, part(b"x" * SENT)):
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        before = len(whole_lines(narrow_broker))
        with begin_upload(narrow_broker, PROXY, {"Content-Length": str(len(body))}, body):
            time.sleep(0.2)
        (record,) = records_of_leaving(narrow_broker, before)
        assert record["log"] == "while slot was waited for"
        assert "sent" not in record


def test_the_last_piece_of_a_file_is_never_too_slow(narrow_broker: Broker, sandbox: SandboxControl) -> None:
    """It is shorter than the others, so that the second in which it comes looks slower than the client is."""
    pieces = [b"x" * 550, b"x" * 550, b"x" * 550, b"x" * 60]
    headers = {
        "Content-Type": "text/csv",
        "Content-Disposition": 'attachment; filename="a.csv"',
        "Content-Length": str(sum(map(len, pieces))),
    }
    with Connection(narrow_broker.url) as connection:
        connection.send(head(PROXY, [*(narrow_broker.auth() | headers).items()]))
        for piece in pieces:
            time.sleep(0.52)
            connection.send(piece)
        answer = connection.answer()
    assert (answer.status_code, answer.json().get("bytes")) == (200, 1710), answer.text
