"""A fault hurts the one request that has it: nothing stays behind, its record is true, others go on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from broker.errors import (
    ClientLeft,
    ClientTooSlow,
    DigestMismatch,
    FileTypeRefused,
    HeadTooLarge,
    InvalidCredential,
    MalformedMultipart,
    MalformedRequest,
    OutcomeUnknown,
    Refusal,
    SeveralFiles,
    TooLarge,
    UnsupportedEncoding,
    UnsupportedMediaType,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.support.broker_process import Broker, running_broker
from tests.support.bystander import bystander
from tests.support.faulty_line import FaultyLine
from tests.support.left_behind import snapshot
from tests.support.raw_http import (
    FORM_TYPE,
    Connection,
    Script,
    answer,
    form,
    head,
    part,
    read_request,
    reset,
)
from tests.support.refusals import CLIENT, DROP_IN, PROXY, record_of, whole_lines
from tests.support.sandbox_control import SandboxControl

MIB = 1024 * 1024
MAX_UPLOAD_BYTES = 32 * MIB
PATIENCE_SECONDS = 2
SENT = 300_000
"""More than fits between the caller and Coze, so that some of it has arrived there."""
LARGE = b"x" * (16 * MIB)
ROUNDS = 200
MAX_GROWTH_BYTES = 16 * MIB
"""What the allocator keeps comes and goes; less than a third of what the callers sent."""


@dataclass(frozen=True)
class Scene:
    """Where a fault takes place."""

    broker: Broker
    sandbox: SandboxControl
    line: FaultyLine
    bystanders: int = 1

    def begin(self, body: bytes, path: str = PROXY, **headers: str) -> Connection:
        """An upload's head, and as much of its body as there is."""
        told = self.broker.auth() | {"Content-Type": FORM_TYPE}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = Connection(self.broker.url)
        connection.send_what_goes(head(path, [*told.items()]) + body)
        return connection

    def upload(self, content: bytes = b"a,b", path: str = PROXY) -> httpx.Response:
        """An upload that is as it should be."""
        files = {"file": ("victim.csv", content)}
        return CLIENT.post(self.broker.url + path, files=files, headers=self.broker.auth())

    def victims(self, **expected: Any) -> list[dict[str, Any]]:
        """The uploads that the sandbox saw, but for the bystander's, which was the first."""
        seen = self.sandbox.events(kind="upload")[self.bystanders :]
        return [event for event in seen if expected.items() <= event.items()]

    def wait_until_coze_has_some(self) -> None:
        self.sandbox.wait_for(lambda: any(event["body_bytes"] > 0 for event in self.victims()))


Doing = Callable[[Scene], httpx.Response | None]
"""Makes the fault; the answer, or None for a client that left without one."""


@dataclass(frozen=True)
class Fault:
    """How it is made, what it comes to, and how much of the file Coze may have then."""

    do: Doing
    refusal: type[Refusal]
    sent: str | None = None
    answer: type[Refusal] | None = None
    """What the client is told where that is not ``refusal``."""


@pytest.fixture(scope="module")
def line(session_sandbox: SandboxControl) -> Iterator[FaultyLine]:
    line = FaultyLine(session_sandbox.url)
    yield line
    line.close()


@pytest.fixture(scope="module")
def line_broker(
    line: FaultyLine, session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker at one end of the line, without much patience."""
    settings = {
        "COZE_API_BASE": line.url,
        "COZE_API_TOKEN": session_sandbox.environment["COZE_API_TOKEN"],
        "BROKER_MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
        "BROKER_HEAD_TIMEOUT_SECONDS": "1",
        "BROKER_CLIENT_IDLE_SECONDS": str(PATIENCE_SECONDS),
        "BROKER_CONNECT_TIMEOUT_SECONDS": "1",
        "BROKER_READ_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
    }
    with running_broker(tmp_path_factory.mktemp("line"), settings) as broker:
        yield broker


@pytest.fixture
def scene(line_broker: Broker, line: FaultyLine, sandbox: SandboxControl) -> Iterator[Scene]:
    """The broker, the line and the sandbox, all well; the broker has no connection to Coze yet."""
    yield Scene(line_broker, sandbox, line)
    line.mend()
    sandbox.wait_for(lambda: snapshot(line_broker)["coze_connections_idle"] == 0)


# --- the client's faults --------------------------------------------------------------------------


def leaving(leave: Callable[[Connection], object], **framing: str) -> Doing:
    """In the middle of the file, once some of it is at Coze's."""

    def do(scene: Scene) -> None:
        body = part(b"x" * SENT)
        if "Transfer_Encoding" in framing:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        connection = scene.begin(body, **framing)
        scene.wait_until_coze_has_some()
        leave(connection)
        scene.sandbox.wait_for(lambda: scene.victims(outcome="aborted"))
        connection.socket.close()

    return do


def close(connection: Connection) -> None:
    connection.socket.close()


def sending(body: bytes, path: str = PROXY, **headers: str) -> Doing:
    """All of the body, with a true length unless another is given."""
    framing = {} if "Transfer_Encoding" in headers else {"Content_Length": str(len(body))}

    def do(scene: Scene) -> httpx.Response:
        with scene.begin(body, path, **framing | headers) as connection:
            return connection.answer()

    return do


def sending_what_is_no_request(request: bytes) -> Doing:
    def do(scene: Scene) -> httpx.Response:
        with Connection(scene.broker.url) as connection:
            connection.send_what_goes(request)
            return connection.answer()

    return do


def trickle(scene: Scene) -> httpx.Response:
    """A byte now and then, until there is an answer."""
    with scene.begin(part(b"x" * SENT), Content_Length="10000000") as connection:
        answers: list[httpx.Response] = []
        reader = threading.Thread(target=lambda: answers.append(connection.answer()))
        reader.start()
        while reader.is_alive():
            connection.send_what_goes(b"x")
            reader.join(0.1)
        return answers[0]


def chunks_without_end(scene: Scene) -> httpx.Response:
    with scene.begin(b"", Transfer_Encoding="chunked") as connection:
        start, chunk = part(b"")[:-2], b"x" * MIB
        connection.send(b"%x\r\n%b\r\n" % (len(start), start))
        with contextlib.suppress(OSError):
            for _ in range(MAX_UPLOAD_BYTES // MIB + 8):
                connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        return connection.answer()


def other_bytes_than_announced(scene: Scene) -> httpx.Response:
    token = scene.broker.mint(size=LARGE_SIZE, route="proxy", sha256="0" * 64)["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    return CLIENT.post(scene.broker.url + PROXY, files={"file": ("victim.csv", LARGE)}, headers=headers)


LARGE_SIZE = len(LARGE)
TWO_FILES = form(part(b"a" * SENT), part(b"c" * SENT))
HEAD = head(PROXY, [("Content-Type", "text/csv")])[:-2]

OF_THE_CLIENT: dict[str, Fault] = {
    "closes midway": Fault(leaving(close, Content_Length="10000000"), ClientLeft, "part"),
    "closes midway, chunked": Fault(leaving(close, Transfer_Encoding="chunked"), ClientLeft, "part"),
    "resets midway": Fault(leaving(Connection.reset, Content_Length="10000000"), ClientLeft, "part"),
    "falls silent midway": Fault(sending(part(b"x" * SENT), Content_Length="999999"), ClientTooSlow, "part"),
    "falls silent before the file": Fault(sending(b"", Content_Length="999999"), ClientTooSlow),
    "trickles": Fault(trickle, ClientTooSlow, "part"),
    "is slow with its head": Fault(sending_what_is_no_request(HEAD), ClientTooSlow),
    "never ends": Fault(chunks_without_end, TooLarge, "part"),
    "says that it will send too much": Fault(sending(b"", Content_Length="99999999"), TooLarge),
    "cuts its form short": Fault(sending(part(b"x" * SENT)), MalformedMultipart, "part"),
    "sends two files": Fault(sending(TWO_FILES), SeveralFiles, "part"),
    "compresses": Fault(sending(b"\x1f\x8b" * SENT, Content_Encoding="gzip"), UnsupportedMediaType),
    "sends other bytes than announced": Fault(other_bytes_than_announced, DigestMismatch, "part"),
    "has no credential that counts, and sends on": Fault(
        sending(form(part(LARGE)), Authorization="Bearer nobody"), InvalidCredential
    ),
    "breaks off its chunks": Fault(
        sending(
            b"%x\r\n%b\r\nzz\r\n" % (len(part(b"x" * SENT)), part(b"x" * SENT)), Transfer_Encoding="chunked"
        ),
        ClientLeft,
        "part",
        MalformedRequest,
    ),
    "frames in two ways": Fault(
        sending_what_is_no_request(HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0"),
        MalformedRequest,
    ),
    "encodes the transfer": Fault(
        sending_what_is_no_request(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0"), UnsupportedEncoding
    ),
    "floods the head": Fault(
        sending_what_is_no_request(HEAD + b"X-A: " + b"x" * 100_000 + b"\r\n\r\n"), HeadTooLarge
    ),
}


# --- Coze's faults --------------------------------------------------------------------------------


def over_the_line(script: Callable[[Scene], Script], content: bytes = b"a,b") -> Doing:
    """An upload that has this in place of Coze."""

    def do(scene: Scene) -> httpx.Response:
        scene.line.breaks(script(scene))
        told = scene.upload(content)
        assert scene.line.faults == 1
        return told

    return do


def ordered(content: bytes = b"a,b", **fault: Any) -> Doing:
    """An upload that the sandbox answers like this."""

    def do(scene: Scene) -> httpx.Response:
        scene.sandbox.fail(path=DROP_IN, times=1, **fault)
        return scene.upload(content)

    return do


def never_read(scene: Scene) -> Script:
    def script(_: Any) -> None:
        scene.line.upstream.released.wait(10)

    return script


def never_answer(scene: Scene) -> Script:
    def script(connection: Any) -> None:
        read_request(connection)
        scene.line.upstream.released.wait(10)

    return script


def drip(scene: Scene) -> Script:
    """An answer that comes a byte at a time and never ends."""

    def script(connection: Any) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not scene.line.upstream.released.wait(0.1):
            connection.sendall(b" ")

    return script


def leave_after(size: int, *, hard: bool) -> Callable[[Scene], Script]:
    def script(connection: Any) -> None:
        left = size
        while left > 0:
            left -= len(connection.recv(min(left, 65536)))
        if hard:
            reset(connection)

    return lambda _: script


def close_after_the_file(_: Scene) -> Script:
    return read_request_only


def read_request_only(connection: Any) -> None:
    read_request(connection)


def stored_less(_: Scene) -> Script:
    def script(connection: Any) -> None:
        read_request(connection)
        connection.sendall(answer({"code": 0, "data": {"id": "7", "bytes": 1, "created_at": 1}}))

    return script


def nobody_there(scene: Scene) -> httpx.Response:
    with scene.line.upstream.gone():
        return scene.upload()


def black_hole(scene: Scene) -> httpx.Response:
    with scene.line.upstream.black_hole():
        return scene.upload()


OF_COZE: dict[str, Fault] = {
    "closes midway": Fault(over_the_line(leave_after(MIB, hard=False), LARGE), UpstreamAborted, "part"),
    "resets midway": Fault(over_the_line(leave_after(MIB, hard=True), LARGE), UpstreamAborted, "part"),
    "resets midway, itself": Fault(ordered(LARGE, abort_after_bytes=100_000), UpstreamAborted, "part"),
    "answers early": Fault(ordered(LARGE, status=413, code=4302, before_body=True), TooLarge, "part"),
    "answers early, in HTML": Fault(ordered(LARGE, html=True, before_body=True), UpstreamFailed, "part"),
    "never reads": Fault(over_the_line(never_read, LARGE), UpstreamTimeout, "part"),
    "never answers": Fault(over_the_line(never_answer), OutcomeUnknown, "all"),
    "drips": Fault(over_the_line(drip), OutcomeUnknown, "all"),
    "closes before it answers": Fault(over_the_line(close_after_the_file), OutcomeUnknown, "all"),
    "stores, and its answer is lost": Fault(ordered(abort_answer=True), OutcomeUnknown, "all"),
    "stores, and its answer is cut short": Fault(ordered(truncate=True), OutcomeUnknown, "all"),
    "stores less": Fault(over_the_line(stored_less), UpstreamBadAnswer, "all"),
    "answers HTML": Fault(ordered(html=True, status=502), OutcomeUnknown, "all"),
    "answers without end": Fault(ordered(oversize_bytes=5_000_000), UpstreamBadAnswer, "all"),
    "answers half": Fault(ordered(half_json=True), UpstreamBadAnswer, "all"),
    "says no with 200": Fault(ordered(code=4303), FileTypeRefused, "all"),
    "is busy": Fault(
        ordered(status=429, code=4013, headers={"Retry-After": "-99999999999"}), UpstreamBusy, "all"
    ),
    "has a fault": Fault(ordered(content=LARGE, status=500), UpstreamFailed, "all"),
    "takes no credential": Fault(ordered(status=401, code=700012006), UpstreamCredentialRefused, "all"),
    "redirects": Fault(ordered(status=307, redirect="http://evil.example/"), UpstreamBadAnswer, "all"),
    "is not there": Fault(nobody_there, UpstreamUnreachable),
    "is a black hole": Fault(black_hole, UpstreamTimeout),
}
FAULTS = {f"client {name}": fault for name, fault in OF_THE_CLIENT.items()} | {
    f"Coze {name}": fault for name, fault in OF_COZE.items()
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_stays_with_the_request_that_has_it(scene: Scene, fault: Fault) -> None:
    """Beside it an upload of some MiB goes on, and arrives whole."""
    before = len(whole_lines(scene.broker))
    with bystander(scene.broker, scene.sandbox):
        told = fault.do(scene)
        record = record_of_fault(scene, fault, told, before)
        assert_true(record, fault, told)
        scene.sandbox.wait_for(lambda: not scene.victims(outcome="open"))
        assert_agrees(record, scene.victims())


def record_of_fault(scene: Scene, fault: Fault, told: httpx.Response | None, before: int) -> dict[str, Any]:
    """The record of the request that had the fault."""
    if told is not None and fault.answer is None:
        return record_of(scene.broker, told.headers["x-request-id"])

    def found() -> list[str]:
        return [line for line in whole_lines(scene.broker)[before:] if f'"{fault.refusal.code}"' in line]

    (line,) = scene.sandbox.wait_for(found)
    record: dict[str, Any] = json.loads(line)
    return record


def assert_true(record: dict[str, Any], fault: Fault, told: httpx.Response | None) -> None:
    """The record says what the client was told, and how far it came."""
    assert (record["code"], record["status"]) == (fault.refusal.code, fault.refusal.status), record
    if told is not None:
        expected = fault.answer or fault.refusal
        assert (told.status_code, told.json()["code"]) == (expected.status, expected.code), told.text
    assert record.get("sent") == fault.sent, record
    assert "file_id" not in record


def assert_agrees(record: dict[str, Any], seen: list[dict[str, Any]]) -> None:
    """Coze saw no more than the record says, and stored nothing that it does not admit."""
    received, sent = record.get("bytes_received", 0), record.get("sent", "nothing")
    for event in seen:
        assert sent != "nothing", event
        assert (event["file_bytes"] or 0) <= received, (event, record)
        assert event["outcome"] != "stored" or record["code"] in MAY_BE_STORED, event
    if sent == "all":
        assert all(event["body_bytes"] > received for event in seen), (seen, record)


MAY_BE_STORED = (OutcomeUnknown.code, UpstreamBadAnswer.code)


OFTEN = [
    "client closes midway",
    "client breaks off its chunks",
    "client floods the head",
    "Coze resets midway, itself",
    "Coze stores, and its answer is lost",
]


@pytest.mark.parametrize("name", OFTEN)
def test_memory_does_not_grow_with_faults(scene: Scene, name: str) -> None:
    alone = replace(scene, bystanders=0)
    # Buffers grow to their size first: eight hundred rounds take what two hundred do.
    fault_again_and_again(alone, FAULTS[name], ROUNDS // 2)
    before = snapshot(scene.broker)["memory_bytes"]
    fault_again_and_again(alone, FAULTS[name], ROUNDS)
    growth = snapshot(scene.broker)["memory_bytes"] - before
    print(f"{growth / MIB:.1f} MiB in {ROUNDS} rounds")
    assert growth <= MAX_GROWTH_BYTES


def fault_again_and_again(scene: Scene, fault: Fault, rounds: int) -> None:
    for _ in range(rounds):
        scene.sandbox.heal()
        fault.do(scene)
