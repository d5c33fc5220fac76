"""Whatever Coze does, the caller gets a clear answer that gives nothing of Coze's away."""

from __future__ import annotations

import datetime
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import (
    EmptyFile,
    FileContentMismatch,
    FileTypeRefused,
    OutcomeUnknown,
    Refusal,
    SeveralFiles,
    TooLarge,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamCredentialReplaced,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import Script, ScriptedUpstream, answer, answering, read_request, reset
from tests.support.refusals import (
    CLIENT,
    DROP_IN,
    PROXY,
    SHAPES,
    assert_no_secret,
    assert_refused,
    heal,
    record_of,
)
from tests.support.sandbox_control import SandboxControl

ORIGIN = {"Origin": PAGE_ORIGIN}
COZE_SAYS = "words of Coze's own, for nobody else"
COZE_TOKEN = "pat_" + "t0ken" * 8
SMALL = b"a,b"
LARGE = b"x" * 50_000_000


@pytest.fixture
def sandbox(session_sandbox: SandboxControl) -> SandboxControl:
    return heal(session_sandbox)


@pytest.fixture(scope="module")
def session_upstream() -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    yield upstream
    upstream.close()


@pytest.fixture
def upstream(session_upstream: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """A Coze that does what the test says."""
    session_upstream.does(lambda _: None)
    yield session_upstream
    session_upstream.released.set()


@pytest.fixture(scope="module")
def impatient_broker(
    session_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker in front of ``upstream`` that waits a second for it, and has one connection to it."""
    settings = {
        "COZE_API_BASE": session_upstream.url,
        "COZE_API_TOKEN": COZE_TOKEN,
        "BROKER_READ_TIMEOUT_SECONDS": "1",
        "BROKER_CONNECT_TIMEOUT_SECONDS": "1",
        "BROKER_MAX_UPSTREAM_CONNECTIONS": "1",
    }
    with running_broker(tmp_path_factory.mktemp("impatient"), settings) as broker:
        yield broker
        assert_no_secret(broker.log.read_text())


@pytest.fixture(scope="module", autouse=True)
def no_secret_in_the_log(session_broker: Broker) -> Iterator[None]:
    yield
    assert_no_secret(session_broker.log.read_text())


def upload(broker: Broker, path: str = PROXY, content: bytes = SMALL) -> httpx.Response:
    files = {"file": ("a.csv", content)}
    return CLIENT.post(broker.url + path, files=files, headers=broker.auth() | ORIGIN)


def assert_answered(
    broker: Broker, response: httpx.Response, refusal: type[Refusal], path: str = PROXY
) -> None:
    """Refused so, and not a word of Coze's in it."""
    assert_refused(broker, response, refusal, path)
    assert COZE_SAYS not in response.text
    assert "127.0.0.1" not in response.text
    wants_wait = refusal is UpstreamBusy
    assert ("retry-after" in response.headers) is wants_wait


# --- Coze says no -------------------------------------------------------------------------------

CODES: dict[int | str, type[Refusal]] = {
    4000: FileContentMismatch,
    4008: UpstreamBusy,
    4009: UpstreamBusy,
    4013: UpstreamBusy,
    4028: UpstreamRefused,
    4100: UpstreamCredentialRefused,
    4101: UpstreamCredentialRefused,
    4102: UpstreamRefused,
    4200: UpstreamRefused,
    4300: EmptyFile,
    4301: SeveralFiles,
    4302: TooLarge,
    4303: FileTypeRefused,
    4304: FileContentMismatch,
    5000: UpstreamFailed,
    700012006: UpstreamCredentialRefused,
    987654321: UpstreamRefused,
    "4302": TooLarge,
    "nonsense": UpstreamBadAnswer,
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("code", CODES)
def test_a_code_with_status_200(broker: Broker, sandbox: SandboxControl, path: str, code: int | str) -> None:
    """Coze answers 200 to what it refuses; the code in the body is what counts."""
    sandbox.fail(path=DROP_IN, code=code, msg=COZE_SAYS)
    assert_answered(broker, upload(broker, path), CODES[code], path)


STATUSES: dict[str, tuple[dict[str, Any], type[Refusal]]] = {
    "401 and its code": ({"status": 401, "code": 700012006}, UpstreamCredentialRefused),
    "403 and an unknown code": ({"status": 403, "code": 1}, UpstreamCredentialRefused),
    "413": ({"status": 413, "code": 1}, TooLarge),
    "413, HTML": ({"status": 413, "html": True}, TooLarge),
    "429": ({"status": 429, "code": 4013}, UpstreamBusy),
    "429, HTML": ({"status": 429, "html": True}, UpstreamBusy),
    "429 and a code that says little": ({"status": 429, "code": 5000}, UpstreamBusy),
    "503 and a code that says little": ({"status": 503, "code": 5000}, UpstreamBusy),
    "500": ({"status": 500}, UpstreamFailed),
    "502, HTML": ({"status": 502, "html": True}, OutcomeUnknown),
    "504, HTML": ({"status": 504, "html": True}, OutcomeUnknown),
    "404 and the code of an unknown path": ({"status": 404, "code": 4000}, UpstreamRefused),
    "503": ({"status": 503, "html": True}, UpstreamBusy),
    "400 and code 0": ({"status": 400, "code": 0}, UpstreamBadAnswer),
    "500 and code 0": ({"status": 500, "code": 0}, OutcomeUnknown),
    "200, HTML": ({"status": 200, "html": True}, UpstreamBadAnswer),
    "200, code 0 and no file": ({"status": 200, "code": 0}, UpstreamBadAnswer),
    "404, HTML": ({"status": 404, "html": True}, UpstreamRefused),
    "405, HTML": ({"status": 405, "html": True}, UpstreamBadAnswer),
    "half JSON": ({"half_json": True}, UpstreamBadAnswer),
    "five megabytes": ({"oversize_bytes": 5_000_000}, UpstreamBadAnswer),
    "cut short": ({"truncate": True}, OutcomeUnknown),
    "reset after the file": ({"abort_answer": True}, OutcomeUnknown),
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(("fault", "refusal"), STATUSES.values(), ids=STATUSES)
def test_an_answer_that_is_no_yes(
    broker: Broker, sandbox: SandboxControl, path: str, fault: dict[str, Any], refusal: type[Refusal]
) -> None:
    sandbox.fail(path=DROP_IN, msg=COZE_SAYS, **fault)
    assert_answered(broker, upload(broker, path), refusal, path)


RETRY_AFTER = {
    "7": "7",
    "0": "1",
    "-5": "2",
    "99999999": "60",
    "1e400": "2",
    "inf": "2",
    "nan": "2",
    "soon": "2",
    "": "2",
    "Thu, 01 Jan 1970 00:00:00 GMT": "1",
    "Thu, 01 Jan 9999 00:00:00 GMT": "60",
    "Thu, 99 Jan 2026 00:00:00 GMT": "2",
}


@pytest.mark.parametrize(("value", "expected"), RETRY_AFTER.items())
@pytest.mark.parametrize(
    "fault", [{"status": 429, "code": 4013}, {"status": 503, "html": True}], ids=["429", "503"]
)
def test_retry_after_is_brought_within_bounds(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any], value: str, expected: str
) -> None:
    sandbox.fail(path=DROP_IN, headers={"Retry-After": value}, **fault)
    response = upload(broker)
    assert_answered(broker, response, UpstreamBusy)
    assert response.headers["retry-after"] == expected


def test_retry_after_may_be_a_date(broker: Broker, sandbox: SandboxControl) -> None:
    date = email.utils.formatdate(time.time() + 20, usegmt=True)
    sandbox.fail(path=DROP_IN, code=4013, headers={"Retry-After": date})
    assert 10 <= int(upload(broker).headers["retry-after"]) <= 20


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_never_followed(
    broker: Broker, sandbox: SandboxControl, upstream: ScriptedUpstream, path: str, status: int
) -> None:
    """Its target would get the file and the broker's credential."""
    sandbox.fail(path=DROP_IN, status=status, redirect=f"{upstream.url}/v1/files/upload")
    assert_answered(broker, upload(broker, path), UpstreamBadAnswer, path)
    assert upstream.connections == 0


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    ("fault", "refusal"),
    [
        ({"status": 413, "code": 4302}, TooLarge),
        ({"status": 401, "code": 4101}, UpstreamCredentialRefused),
        ({"code": 4303}, FileTypeRefused),
        ({"html": True}, UpstreamFailed),
        ({"code": 0}, UpstreamBadAnswer),
    ],
    ids=["413", "401", "a code", "HTML", "yes, but to what?"],
)
def test_an_answer_before_the_body_is_read_stops_the_upload(
    broker: Broker, sandbox: SandboxControl, path: str, fault: dict[str, Any], refusal: type[Refusal]
) -> None:
    sandbox.fail(path=DROP_IN, before_body=True, msg=COZE_SAYS, **fault)
    response = upload(broker, path, LARGE)
    assert_answered(broker, response, refusal, path)
    record = record_of(broker, response.headers["x-request-id"])
    assert record.get("bytes_received", 0) < len(LARGE)


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000])
def test_a_reset_midway_may_be_tried_again(broker: Broker, sandbox: SandboxControl, after_bytes: int) -> None:
    sandbox.fail(path=DROP_IN, abort_after_bytes=after_bytes, times=1)
    assert_answered(broker, upload(broker, content=LARGE), UpstreamAborted)
    assert sandbox.events(outcome="stored") == []
    assert upload(broker).status_code == 200


# --- Coze is broken -----------------------------------------------------------------------------


def stored(**changes: Any) -> dict[str, Any]:
    """A yes of Coze's to ``SMALL``."""
    data = {"id": "7000000000000000001", "bytes": len(SMALL), "created_at": 1, "file_name": "a.csv"}
    return {"code": 0, "msg": COZE_SAYS, "data": data | changes}


UNUSABLE: dict[str, Any] = {
    "fewer bytes": stored(bytes=2),
    "more bytes": stored(bytes=4),
    "bytes that are none": stored(bytes="many"),
    "no bytes": stored(bytes=None),
    "endless bytes": answer(b'{"code": 0, "data": {"id": "7", "bytes": Infinity}}'),
    "an endless time": answer(b'{"code": 0, "data": {"id": "7", "bytes": 3, "created_at": Infinity}}'),
    "an id that is a number": stored(id=7),
    "an empty id": stored(id=""),
    "no id": stored(id=None),
    "no data": {"code": 0},
    "data that is a list": {"code": 0, "data": [1]},
    "a code that is true": {"code": True, "data": {}},
    "no code": {"data": {"id": "7", "bytes": 3}},
    "a list": [],
    "null": None,
    "nothing": answer(b""),
    "no UTF-8": answer(b'{"code": 0, "msg": "\xff"}'),
    "a nest without end": answer(b"[" * 60_000),
    "a number without end": answer(b'{"code": %s}' % (b"9" * 10_000)),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize(
    ("body", "name"), [(body, name) for name, body in UNUSABLE.items()], ids=list(UNUSABLE)
)
def test_a_yes_that_cannot_be_believed(
    impatient_broker: Broker, upstream: ScriptedUpstream, body: Any, name: str
) -> None:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(body if isinstance(body, bytes) else answer(body))

    upstream.does(script)
    refusal = OutcomeUnknown if name == "no HTTP" else UpstreamBadAnswer
    assert_answered(impatient_broker, upload(impatient_broker), refusal)


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("logid", ["x" * 5000, "\u65e5\u672c", "a b"])
def test_a_log_id_that_no_header_can_hold(
    impatient_broker: Broker, upstream: ScriptedUpstream, path: str, logid: str
) -> None:
    """Coze's log id goes into a header of ours: one that can't stand there is left out."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        content = answer({"code": 5000}, headers=["X-Tt-Logid: *"]).replace(b"*", logid.encode())
        connection.sendall(content)

    upstream.does(script)
    response = upload(impatient_broker, path)
    assert_answered(impatient_broker, response, UpstreamFailed, path)
    assert logid not in response.text


def test_coze_studio_s_answer_is_understood(impatient_broker: Broker, upstream: ScriptedUpstream) -> None:
    """It writes ``CreatedAt``."""
    upstream.does(answering(stored() | {"data": {"id": "7", "bytes": 3, "CreatedAt": 5}}))
    assert upload(impatient_broker).json()["created_at"] == 5


def never_read(upstream: ScriptedUpstream) -> Script:
    def script(connection: socket.socket) -> None:
        upstream.released.wait(10)

    return script


def read_and_say_nothing(upstream: ScriptedUpstream) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        upstream.released.wait(10)

    return script


def read_and_close(_: ScriptedUpstream) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)

    return script


def read_and_reset(_: ScriptedUpstream) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        reset(connection)

    return script


def half_a_head(_: ScriptedUpstream) -> Script:
    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")

    return script


def drip(upstream: ScriptedUpstream) -> Script:
    """An answer that comes a byte at a time and never ends."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not upstream.released.wait(0.1):
            connection.sendall(b" ")

    return script


def close_after(size: int, *, hard: bool) -> Any:
    def script(connection: socket.socket) -> None:
        left = size
        while left > 0:
            left -= len(connection.recv(min(left, 65536)))
        if hard:
            reset(connection)

    return lambda _: script


TROUBLES: dict[str, tuple[Any, bytes, type[Refusal]]] = {
    "never reads": (never_read, LARGE, UpstreamTimeout),
    "never answers": (read_and_say_nothing, SMALL, OutcomeUnknown),
    "closes before it answers": (read_and_close, SMALL, OutcomeUnknown),
    "resets before it answers": (read_and_reset, SMALL, OutcomeUnknown),
    "breaks off in its head": (half_a_head, SMALL, OutcomeUnknown),
    "drips": (drip, SMALL, OutcomeUnknown),
    "closes midway": (close_after(1_000_000, hard=False), LARGE, UpstreamAborted),
    "resets midway": (close_after(1_000_000, hard=True), LARGE, UpstreamAborted),
    "resets at once": (close_after(1, hard=True), LARGE, UpstreamAborted),
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(("trouble", "content", "refusal"), TROUBLES.values(), ids=TROUBLES)
def test_trouble_on_the_line(
    impatient_broker: Broker,
    upstream: ScriptedUpstream,
    *,
    path: str,
    trouble: Any,
    content: bytes,
    refusal: type[Refusal],
) -> None:
    """What may be tried again is told from what Coze may have stored; the one slot is free afterwards."""
    upstream.does(trouble(upstream))
    assert_answered(impatient_broker, upload(impatient_broker, path, content), refusal, path)
    upstream.does(answering(stored()))
    assert upload(impatient_broker, path).status_code == 200


@pytest.mark.parametrize("path", SHAPES)
def test_nobody_listens(impatient_broker: Broker, upstream: ScriptedUpstream, path: str) -> None:
    with upstream.gone():
        assert_answered(impatient_broker, upload(impatient_broker, path), UpstreamUnreachable, path)


@pytest.mark.parametrize("path", SHAPES)
def test_a_black_hole(impatient_broker: Broker, upstream: ScriptedUpstream, path: str) -> None:
    with upstream.black_hole():
        assert_answered(impatient_broker, upload(impatient_broker, path), UpstreamTimeout, path)
    upstream.does(answering(stored()))
    assert upload(impatient_broker, path).status_code == 200


def test_tls_that_never_comes(tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream) -> None:
    """A plain server behind an ``https`` address, silent or answering: no handshake, no file."""
    settings = {
        "COZE_API_BASE": upstream.url.replace("http:", "https:"),
        "COZE_API_TOKEN": COZE_TOKEN,
        "BROKER_CONNECT_TIMEOUT_SECONDS": "1",
    }
    with running_broker(tmp_path_factory.mktemp("tls"), settings) as broker:
        upstream.does(never_read(upstream))
        assert_answered(broker, upload(broker), UpstreamTimeout)
        upstream.does(lambda connection: connection.sendall(answer(stored())))
        assert_answered(broker, upload(broker), UpstreamUnreachable)


def test_a_certificate_that_is_not_trusted(
    tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream
) -> None:
    """Nobody vouches for it, and it ended long ago: not a byte is sent, and no setting would change that."""
    folder = tmp_path_factory.mktemp("certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(write_certificate(folder))
    received: list[bytes] = []

    def script(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            received.append(encrypted.recv(65536))

    upstream.does(script)
    settings = {"COZE_API_BASE": upstream.url.replace("http:", "https:"), "COZE_API_TOKEN": COZE_TOKEN}
    with running_broker(folder, settings) as broker:
        response = upload(broker)
        assert_answered(broker, response, UpstreamUnreachable)
        record = record_of(broker, response.headers["x-request-id"])
        assert "certificate" in record["log"].lower()
        assert "sent" not in record
    assert received == []


def write_certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that it signed itself and that is over."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    began = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, began, began + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(kind, form, serialization.NoEncryption()) + certificate.public_bytes(kind)
    )
    return file


def test_a_name_that_nobody_knows(tmp_path_factory: pytest.TempPathFactory) -> None:
    """RFC 6761 §6.4 sees to it that there is no such name."""
    settings = {"COZE_API_BASE": "https://coze.invalid", "COZE_API_TOKEN": COZE_TOKEN}
    with running_broker(tmp_path_factory.mktemp("name"), settings) as broker:
        response = upload(broker)
        assert_refused(broker, response, UpstreamUnreachable)
        assert "coze.invalid" not in response.text


def test_a_credential_that_coze_no_longer_takes_is_replaced_once(
    broker: Broker, sandbox: SandboxControl
) -> None:
    """Revoked before its time: a large upload that finds out fails, those that come then share a new one."""
    assert upload(broker).status_code == 200
    before = len(sandbox.events(kind="token"))
    time.sleep(1)  # within a second of the last replacement there is none
    sandbox.fail(path=DROP_IN, status=401, code=700012006, times=1)
    assert_answered(broker, upload(broker, content=LARGE), UpstreamCredentialReplaced)
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: upload(broker).status_code, range(10)))
    assert answers == [200] * 10
    assert len(sandbox.events(kind="token")) == before + 1


@pytest.mark.parametrize("path", SHAPES)
def test_as_many_bytes_are_promised_as_come(
    impatient_broker: Broker, upstream: ScriptedUpstream, path: str
) -> None:
    """Counted at the socket; fields after the file and a missing final CR LF are filled up."""
    seen: list[tuple[int, int]] = []

    def script(connection: socket.socket) -> None:
        request = read_request(connection)
        connection.settimeout(0.2)
        try:
            more = len(connection.recv(65536))
        except TimeoutError:
            more = 0
        seen.append((int(request.headers["content-length"]), len(request.body) + more))
        connection.sendall(answer(stored()))

    upstream.does(script)
    assert upload(impatient_broker, path).status_code == 200
    ((promised, came),) = seen
    assert promised == came


def test_uploads_wait_for_a_slot_in_turn(impatient_broker: Broker, upstream: ScriptedUpstream) -> None:
    """One connection is open at most, and everybody gets an answer."""
    together, most, lock = 0, 0, threading.Lock()

    def script(connection: socket.socket) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        read_request(connection)
        time.sleep(0.05)
        with lock:
            together -= 1
        connection.sendall(answer(stored()))

    upstream.does(script)
    statuses: list[int] = []
    callers = [
        threading.Thread(target=lambda: statuses.append(upload(impatient_broker).status_code))
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (statuses, most) == ([200] * 8, 1)
