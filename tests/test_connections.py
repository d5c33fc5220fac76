"""What is no proper HTTP, or comes too slowly, ends with an answer that can be read and found again."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.left_behind import snapshot
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n1,2\n"


@pytest.fixture(scope="module")
def hasty(session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker without much patience."""
    patience = {"BROKER_HEAD_TIMEOUT_SECONDS": "1", "BROKER_CLIENT_IDLE_SECONDS": "1"}
    with running_broker(tmp_path_factory.mktemp("hasty"), session_sandbox.environment, **patience) as broker:
        yield broker


def connected(broker: Broker) -> socket.socket:
    host, port = broker.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), 10)


def exchange(broker: Broker, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send these bytes; status, headers and body of all that comes back until the connection is closed."""
    with connected(broker) as connection:
        connection.sendall(request)
        return parsed(connection.makefile("rb").read())


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


def post(*headers: str, path: str = "/proxy/upload") -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: x", f"Origin: {PAGE_ORIGIN}", *headers, "", ""]
    ).encode()


NOT_HTTP = {
    "noise": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "malformed_request"),
    "two lengths": (post("Content-Length: 1", "Content-Length: 2") + b"x", 400, "malformed_request"),
    "a length and chunks": (
        post("Content-Length: 1", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400, "malformed_request",
    ),
    "a negative length": (post("Content-Length: -1"), 400, "malformed_request"),
    "a length with a sign": (post("Content-Length: +5") + b"12345", 400, "malformed_request"),
    "a hexadecimal length": (post("Content-Length: 0x10"), 400, "malformed_request"),
    "another encoding": (post("Transfer-Encoding: gzip, chunked") + b"0", 501, "unsupported_encoding"),
    "chunks with an offer to upgrade": (
        post("Transfer-Encoding: chunked", "Connection: Upgrade", "Upgrade: h2c") + b"1\r\nx\r\n0\r\n\r\n",
        501,
        "unsupported_encoding",
    ),
    "a hidden encoding": (post("Transfer-Encoding: xchunked") + b"0\r\n\r\n", 501, "unsupported_encoding"),
    "a blank before the colon": (post("Content-Length : 1") + b"x", 400, "malformed_request"),
    "a folded header": (post("X-A: 1\r\n 2"), 400, "malformed_request"),
    "a control character": (post("X-A: \x00"), 400, "malformed_request"),
    "one header of 100 KB": (post("X-A: " + "x" * 100_000), 431, "head_too_large"),
    "many headers": (post(*(f"X-{n}: 1" for n in range(200))), 431, "head_too_large"),
    "64 KB in many headers": (post(*(f"X-{n}: {'x' * 1000}" for n in range(80))), 431, "head_too_large"),
    "a long address": (post(path="/" + "x" * 100_000), 431, "head_too_large"),
    "an unknown method": (b"BREW /token HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request"),
}  # fmt: skip


@pytest.mark.parametrize(("request_bytes", "status", "code"), NOT_HTTP.values(), ids=NOT_HTTP)
def test_what_is_no_proper_http_is_refused(
    broker: Broker, request_bytes: bytes, status: int, code: str
) -> None:
    got, headers, body = exchange(broker, request_bytes)
    problem = json.loads(body)
    assert (got, problem["status"], problem["code"]) == (status, status, code)
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"] == problem["request_id"]
    assert broker.record(problem["request_id"])["code"] == code


def test_cozes_clients_can_read_such_a_refusal(broker: Broker) -> None:
    """A credential of a megabyte, on one of Coze's paths."""
    request = post("Authorization: Bearer " + "x" * 1_000_000, path="/v1/files/upload")
    status, headers, body = exchange(broker, request)
    answer = json.loads(body)
    assert (status, answer["code"], headers["content-type"]) == (431, 4000, "application/json")
    assert answer["detail"]["logid"] == headers["x-tt-logid"] == headers["x-request-id"]


def test_a_page_can_read_such_a_refusal(broker: Broker) -> None:
    _, headers, _ = exchange(broker, post("Content-Type: text/csv", "Transfer-Encoding: gzip, chunked"))
    assert headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert "X-Request-Id" in headers["access-control-expose-headers"]


def test_a_head_without_end_is_cut_off_early(broker: Broker) -> None:
    """One header that never ends: the parser would hold all of it."""
    sent = 0
    with connected(broker) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        try:
            while sent < 50_000_000:
                sent += connection.send(b"x" * 65_536)
        except OSError:
            pass
    assert sent < 20_000_000


@pytest.mark.parametrize("start", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: 1"])
def test_a_head_that_does_not_come_is_not_waited_for(hasty: Broker, start: bytes) -> None:
    status, _, body = exchange(hasty, start)
    assert (status, json.loads(body)["code"]) == (408, "client_too_slow")


def test_a_connection_that_is_kept_may_rest(hasty: Broker) -> None:
    """The limit is for a head that has begun, not for the pause between requests."""
    with httpx.Client(base_url=hasty.url) as client:
        before = client.get("/health").extensions["network_stream"].get_extra_info("client_addr")
        time.sleep(1.5)
        after = client.get("/health").extensions["network_stream"].get_extra_info("client_addr")
    assert before == after, "the second request needed a connection of its own"


@pytest.mark.parametrize(("begun", "outcomes"), [(b"", []), (b"x" * 4096, ["aborted"])], ids=["head", "rest"])
def test_a_trickle_is_stopped(
    hasty: Broker, sandbox: SandboxControl, begun: bytes, outcomes: list[str]
) -> None:
    """A byte now and then is never idle for long, and holds a place that others need: at Coze, once the
    file's head was looked at.
    """
    head = post(
        f"Authorization: Bearer {hasty.secret_key}",
        "Content-Type: text/csv",
        'Content-Disposition: attachment; filename="a.csv"',
        "Content-Length: 1000000",
    )
    with connected(hasty) as connection:
        connection.sendall(head + begun)
        answers = _read_in_thread(connection)
        for _ in range(100):
            if answers:
                break
            connection.sendall(b"x")
            time.sleep(0.1)
    status, _, body = parsed(answers[0])
    assert (status, json.loads(body)["code"]) == (408, "client_too_slow")
    sandbox.wait_for(lambda: [event["outcome"] for event in sandbox.events(kind="upload")] == outcomes)


def _read_in_thread(connection: socket.socket) -> list[bytes]:
    """The answer, once it is whole: its head and its body may come one after the other."""
    answers: list[bytes] = []

    def read() -> None:
        answer = b""
        while not answer.endswith(b"}") and (part := connection.recv(65_536)):
            answer += part
        answers.append(answer)

    threading.Thread(target=read, daemon=True).start()
    return answers


@pytest.mark.parametrize(
    "trailer",
    [
        "Authorization: Bearer {key}",
        'Content-Disposition: attachment; filename="b.csv"',
        f"Origin: {PAGE_ORIGIN}",
    ],
)
def test_a_trailer_is_no_header(broker: Broker, sandbox: SandboxControl, trailer: str) -> None:
    """In one packet with the rest, or after it: what comes behind the body changes nothing."""
    head = (
        b"POST /proxy/upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/csv\r\n"
    )
    head += b"Connection: close\r\n"
    if "Authorization" not in trailer:
        head += f"Authorization: Bearer {broker.secret_key}\r\n".encode()
    tail = f"0\r\n{trailer.format(key=broker.secret_key)}\r\n\r\n".encode()
    status, _, body = exchange(broker, head + b"\r\n8\r\n" + CSV + b"\r\n" + tail)
    answer = json.loads(body)
    if "Authorization" in trailer:
        assert (status, answer["code"]) == (401, "missing_credential")
    else:
        assert (status, answer["file_name"]) == (200, "upload.csv")
        assert "origin" not in broker.record(answer["request_id"])


def test_a_broken_chunk_ends_the_upload(broker: Broker, sandbox: SandboxControl, folder: Path) -> None:
    head = post(
        f"Authorization: Bearer {broker.secret_key}",
        "Content-Type: text/csv",
        'Content-Disposition: attachment; filename="a.csv"',
        "Transfer-Encoding: chunked",
    )
    with connected(broker) as connection:
        content = CSV * 20_000  # more than is read before Coze hears of a file
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(content), content))
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        connection.sendall(b"zz\r\n")
        status, _, body = parsed(connection.makefile("rb").read())
    assert (status, json.loads(body)["code"]) == (400, "malformed_request")
    sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert sandbox.events(kind="upload", outcome="stored") == []
    broker.last_record("/proxy/upload", code="client_left")


# --- what follows an upload on its connection ----------------------------------------------------


def bare_upload(broker: Broker, content: bytes, *headers: str, length: int | None = None) -> bytes:
    """An upload's bytes; ``length`` is what it says that it has."""
    return (
        post(
            f"Authorization: Bearer {broker.secret_key}",
            "Content-Type: text/csv",
            'Content-Disposition: attachment; filename="a.csv"',
            f"Content-Length: {len(content) if length is None else length}",
            *headers,
        )
        + content
    )


def answers_until_closed(connection: socket.socket) -> list[tuple[int, dict[str, Any]]]:
    """Status and JSON of every answer, up to the connection's end."""
    answers = []
    with connection.makefile("rb") as stream:
        while line := stream.readline():
            status, length = int(line.split()[1]), 0
            while header := stream.readline().strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            answers.append((status, json.loads(stream.read(length))))
    return answers


MORE: dict[str, tuple[bytes, float]] = {
    "noise": (b"\x16\x03\x01 more than was promised\r\n\r\n", 0),
    "noise while Coze takes its time": (b"\x16\x03\x01 more than was promised\r\n\r\n", 1.5),
    "more of the file": (b"3,4\n" * 50, 0),
    "half a request": (b"POST /proxy/upload HTTP/1.1\r\nHost: x\r\n", 0),
    "half a request while Coze takes its time": (b"\r\nGET /he", 1.5),
    "a head that is too large": (b"GET / HTTP/1.1\r\nX-A: " + b"x" * 100_000, 0),
}
"""What comes behind an upload, and how many seconds Coze takes for its answer."""


@pytest.mark.parametrize(("more", "delay_seconds"), MORE.values(), ids=MORE)
def test_what_follows_an_upload_is_no_part_of_it(
    hasty: Broker, sandbox: SandboxControl, more: bytes, delay_seconds: float
) -> None:
    """A length that is too small: Coze gets just that, the caller its answer, what follows a refusal."""
    if delay_seconds:
        sandbox.fail(path="/v1/files/upload", delay_seconds=delay_seconds)
    with connected(hasty) as connection:
        connection.sendall(bare_upload(hasty, CSV) + more)
        first, second = answers_until_closed(connection)
    assert (first[0], first[1]["bytes"]) == (200, len(CSV))
    assert second[0] in (400, 408, 431)
    (stored,) = sandbox.events(kind="upload", outcome="stored")
    assert stored["file_bytes"] == len(CSV)
    assert hasty.record(first[1]["request_id"])["file_id"] == first[1]["file_id"]
    assert hasty.record(second[1]["request_id"])["code"] == second[1]["code"]


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload", "/token"])
def test_a_second_request_has_no_credential_but_its_own(
    broker: Broker, sandbox: SandboxControl, path: str
) -> None:
    """Sent in one packet with an upload, before that has its answer."""
    second = post("Content-Type: text/csv", "Content-Length: 4", "Connection: close", path=path) + b"1,2\n"
    with connected(broker) as connection:
        connection.sendall(bare_upload(broker, CSV) + second)
        first, refused = answers_until_closed(connection)
    assert (first[0], refused[0]) == (200, 401)
    assert len(sandbox.events(kind="upload")) == 1
    refused_id = refused[1].get("request_id") or refused[1]["detail"]["logid"]
    assert "key_id" not in broker.record(refused_id)


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"code": 4303}, 415),
        ({"status": 403, "code": 4101}, 502),
        ({"before_body": True, "status": 413, "code": 4302}, 413),
    ],
    ids=["refused", "failed", "refused early"],
)
def test_an_upload_that_failed_ends_its_connection(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any], status: int
) -> None:
    """What stands behind it is not looked at: who was wrong about one may be wrong about where it ends."""
    sandbox.fail(path="/v1/files/upload", times=1, **fault)
    with connected(broker) as connection:
        connection.sendall(bare_upload(broker, CSV) * 2)
        answers = answers_until_closed(connection)
    assert [answer[0] for answer in answers] == [status]
    assert len(sandbox.events(kind="upload")) == 1


# --- a client that does not read ------------------------------------------------------------------


def test_an_answer_that_is_not_read_holds_no_slot(
    session_sandbox: SandboxControl, sandbox: SandboxControl, folder: Path
) -> None:
    one = {"BROKER_MAX_UPSTREAM_CONNECTIONS": "1", "BROKER_POOL_WAIT_SECONDS": "5"}
    with running_broker(folder, session_sandbox.environment, **one) as broker, connected(broker) as mute:
        mute.sendall(bare_upload(broker, CSV))
        sandbox.wait_for(lambda: sandbox.events(outcome="stored"))
        assert exchange(broker, bare_upload(broker, CSV, "Connection: close"))[0] == 200
        assert broker.process.poll() is None


@pytest.mark.parametrize("more", [True, False], ids=["asks on", "asks for the connection's end"])
def test_a_client_that_never_reads_is_left(hasty: Broker, more: bool) -> None:
    """It asks for large files, and takes of the answers only what fits on the way."""
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n%b\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = hasty.url.removeprefix("http://").split(":")
        connection.settimeout(10)
        connection.connect((host, int(port)))
        connection.sendall(request % b"" * 1000 + (b"" if more else request % b"Connection: close\r\n"))
        give_up = time.monotonic() + 10
        while snapshot(hasty)["client_connections"] and time.monotonic() < give_up:
            time.sleep(0.05)
        assert snapshot(hasty)["client_connections"] == 0


def test_a_client_that_reads_slowly_gets_all(hasty: Broker) -> None:
    """Longer than the limit, but never without taking something."""
    whole = httpx.get(f"{hasty.url}/openapi.json").content
    with connected(hasty) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        started, answer = time.monotonic(), b""
        while part := connection.recv(len(whole) // 20):
            answer += part
            time.sleep(0.1)
    assert time.monotonic() - started > 1.5
    assert answer.endswith(whole)
