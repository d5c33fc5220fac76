"""Bad input: always a clear answer, nothing reaches Coze, no secret in the log."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from broker.auth.signing_keys import load
from broker.errors import (
    BadFileName,
    EmptyFile,
    ExpiredCredential,
    InvalidCredential,
    MalformedMultipart,
    MalformedRequest,
    MissingCredential,
    MissingFile,
    OriginNotAllowed,
    Refusal,
    SeveralFiles,
    TokenUsed,
    TooLarge,
    TypeNotGranted,
    UnsupportedMediaType,
    WrongScope,
)
from tests.support import needs
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import BOUNDARY, FORM_TYPE, Connection, chunked, form, head, part
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
FILES = {"file": ("data.csv", b"a,b", "text/csv")}
LIMIT = 200_000


@pytest.fixture(scope="module", autouse=True)
def no_secret_in_the_log(session_broker: Broker) -> Iterator[None]:
    yield
    assert_no_secret(session_broker.log.read_text())


@pytest.fixture(scope="module")
def small_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that takes files of up to ``LIMIT`` bytes."""
    folder = tmp_path_factory.mktemp("small")
    limit = {"BROKER_MAX_UPLOAD_BYTES": str(LIMIT)}
    with running_broker(folder, session_sandbox.environment, **limit) as broker:
        yield broker


@pytest.fixture
def sandbox(session_sandbox: SandboxControl) -> SandboxControl:
    return heal(session_sandbox)


@pytest.fixture(scope="module", autouse=True)
def early_token(session_broker: Broker) -> tuple[str, float]:
    """A token for one second, minted before the first test; and when that was."""
    return session_broker.mint(size=3, route="proxy", ttl_seconds=1)["access_token"], time.monotonic()


@pytest.fixture
def accepted() -> None:
    """For a test of what is odd but sound, and so is stored."""


@pytest.fixture(autouse=True)
def nothing_stored(sandbox: SandboxControl, request: pytest.FixtureRequest) -> Iterator[None]:
    """Of what is refused, Coze has nothing."""
    yield
    if "accepted" not in request.fixturenames:
        events = CLIENT.get(f"{sandbox.url}/_sandbox/events").json()["events"]
        assert [event for event in events if event["outcome"] == "stored"] == []


def post(broker: Broker, path: str = PROXY, *, key: str | None = None, **request: Any) -> httpx.Response:
    headers = broker.auth(key) | ORIGIN | request.pop("headers", {})
    return CLIENT.post(broker.url + path, headers=headers, **request)


def exchange(broker: Broker, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
    """The answer to a request that is written by hand."""
    with Connection(broker.url) as connection:
        connection.send_what_goes(head(path, [*(broker.auth() | ORIGIN | headers).items()]) + body)
        return connection.answer()


# --- who is calling -----------------------------------------------------------------------------


def signed(broker: Broker, *, typ: str = "upload+jwt", **changes: Any) -> str:
    """A token by the broker's own key, with claims of the test's."""
    ring = load(None, Path(broker.environment["BROKER_DATA_DIR"]))
    token = broker.mint(size=3, route="proxy")["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})
    return ring.sign(claims | {"jti": secrets.token_urlsafe(16)} | changes, typ=typ)


def past(seconds: int) -> dict[str, Any]:
    now = int(time.time())
    return {"iat": now - seconds - 60, "nbf": now - seconds - 60, "exp": now - seconds}


BAD_CREDENTIALS: dict[str, tuple[Callable[[Broker], str], type[Refusal]]] = {
    "empty": (lambda _: "", InvalidCredential),
    "Basic": (lambda _: "Basic dXNlcjpwYXNz", InvalidCredential),
    "no scheme": (lambda broker: broker.secret_key, InvalidCredential),
    "nonsense": (lambda _: "Bearer nonsense", InvalidCredential),
    "sixty kilobytes": (lambda _: "Bearer " + "x" * 60_000, InvalidCredential),
    "a key with a typo": (lambda broker: f"Bearer {broker.secret_key[:-1]}_", InvalidCredential),
    "a key cut short": (lambda broker: f"Bearer {broker.secret_key[:-1]}", InvalidCredential),
    "bytes beyond ASCII": (lambda _: "Bearer cub_sk_\u00e9", InvalidCredential),
    "publishable key": (lambda broker: f"Bearer {broker.publishable_key}", WrongScope),
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(("credential", "refusal"), BAD_CREDENTIALS.values(), ids=BAD_CREDENTIALS)
def test_a_bad_credential(
    broker: Broker, path: str, credential: Callable[[Broker], str], refusal: type[Refusal]
) -> None:
    headers = {"Authorization": credential(broker).encode("latin-1")} | ORIGIN
    answer = CLIENT.post(broker.url + path, files=FILES, headers=headers)  # type: ignore[arg-type]
    assert_refused(broker, answer, refusal, path)
    assert answer.headers.get("www-authenticate", "Bearer").startswith("Bearer")


@pytest.mark.parametrize("path", SHAPES)
def test_no_credential(broker: Broker, path: str) -> None:
    """RFC 6750 §3.1: a caller who sent none is told the scheme and no error code."""
    answer = CLIENT.post(broker.url + path, files=FILES, headers=ORIGIN)
    assert_refused(broker, answer, MissingCredential, path)
    assert answer.headers["www-authenticate"] == 'Bearer realm="broker"'


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("name", ["access_token", "token", "api_key"])
def test_a_credential_counts_in_the_header_alone(broker: Broker, path: str, name: str) -> None:
    url = f"{broker.url}{path}?{name}={broker.secret_key}"
    answer = CLIENT.post(url, files=FILES, headers=ORIGIN | {"Cookie": f"{name}={broker.secret_key}"})
    assert_refused(broker, answer, MissingCredential, path)


@pytest.mark.parametrize("path", SHAPES)
def test_two_authorization_headers(broker: Broker, path: str) -> None:
    one = ("Authorization", f"Bearer {broker.secret_key}")
    answer = CLIENT.post(broker.url + path, files=FILES, headers=[one, one, *ORIGIN.items()])
    assert_refused(broker, answer, InvalidCredential, path)


BAD_TOKENS: dict[str, tuple[Callable[[Broker], str], type[Refusal]]] = {
    "expired": (lambda broker: signed(broker, **past(10)), ExpiredCredential),
    "from the future": (lambda broker: signed(broker, iat=int(time.time()) + 60), InvalidCredential),
    "no expiry": (lambda broker: signed(broker, exp=None), InvalidCredential),
    "expiry as text": (lambda broker: signed(broker, exp="9999999999"), InvalidCredential),
    "expiry beyond numbers": (lambda broker: signed(broker, exp=1e300), InvalidCredential),
    "another audience": (lambda broker: signed(broker, aud="another"), InvalidCredential),
    "another issuer": (lambda broker: signed(broker, iss="https://evil.example"), InvalidCredential),
    "another scope": (lambda broker: signed(broker, scope="files:read"), InvalidCredential),
    "a receipt": (lambda broker: signed(broker, typ="receipt+jwt"), InvalidCredential),
    "signature changed": (lambda broker: signed(broker)[:-4] + "AAAA", InvalidCredential),
    "no signature": (lambda broker: signed(broker).rpartition(".")[0] + ".", InvalidCredential),
}


@pytest.mark.parametrize(("token", "refusal"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_bad_token(broker: Broker, token: Callable[[Broker], str], refusal: type[Refusal]) -> None:
    assert_refused(broker, post(broker, key=token(broker), files=FILES), refusal)


def test_an_upload_token_opens_nothing_but_the_proxy_route(broker: Broker) -> None:
    token = broker.mint(size=3, route="proxy")["access_token"]
    answer = post(broker, "/token", key=token, json={"size": 3})
    assert_refused(broker, answer, InvalidCredential)
    assert_refused(broker, post(broker, DROP_IN, key=token, files=FILES), InvalidCredential, DROP_IN)


@pytest.mark.parametrize("path", SHAPES)
def test_a_key_for_minting_does_not_upload(broker: Broker, path: str) -> None:
    key = broker.create_key("--scope=token:mint")["key"]
    assert_refused(broker, post(broker, path, key=key, files=FILES), WrongScope, path)


@pytest.mark.parametrize("path", SHAPES)
def test_a_revoked_key(broker: Broker, path: str) -> None:
    created = broker.create_key("--scope=files:upload")
    assert broker.command("keys", "revoke", created["id"]).returncode == 0
    assert_refused(broker, post(broker, path, key=created["key"], files=FILES), InvalidCredential, path)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://app.example:3001", "null", None])
def test_a_token_stays_with_its_origin(broker: Broker, origin: str | None) -> None:
    """An origin that is not allowed gets no CORS headers either."""
    token = broker.mint(size=3, route="proxy", origin=PAGE_ORIGIN)["access_token"]
    headers = broker.auth(token) | ({"Origin": origin} if origin else {})
    answer = CLIENT.post(broker.url + PROXY, files=FILES, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, OriginNotAllowed.code)
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


@pytest.mark.usefixtures("accepted")
def test_a_token_is_good_for_one_upload(broker: Broker) -> None:
    token = broker.mint(size=3, route="proxy")["access_token"]
    assert post(broker, key=token, files=FILES).status_code == 200
    assert_refused(broker, post(broker, key=token, files=FILES), TokenUsed)


def test_a_token_for_another_type(broker: Broker) -> None:
    token = broker.mint(size=3, route="proxy", content_type="image/png")["access_token"]
    assert_refused(broker, post(broker, key=token, files=FILES), TypeNotGranted)


# --- how large ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHAPES)
def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(
    small_broker: Broker, sandbox: SandboxControl, path: str
) -> None:
    headers = {"Content-Type": FORM_TYPE, "Content-Length": str(LIMIT + 70_000)}
    assert_refused(small_broker, exchange(small_broker, path, headers, b""), TooLarge, path)
    assert sandbox.events(kind="upload") == []


@pytest.mark.parametrize(
    ("path", "is_form"), [(PROXY, True), (DROP_IN, True), (PROXY, False)], ids=["form", "drop-in", "bare"]
)
def test_real_bytes_stop_at_the_limit(
    small_broker: Broker, sandbox: SandboxControl, path: str, *, is_form: bool
) -> None:
    """Nobody said how long the body is; Coze's connection is broken off, so it never has a whole form."""
    taken = 0

    def body() -> Iterator[bytes]:
        nonlocal taken
        yield part(b"")[:-2] if is_form else b"a,b\n"
        for _ in range(4000):
            taken += 10_000
            yield b"x" * 10_000

    content_type = FORM_TYPE if is_form else "text/csv"
    answer = post(small_broker, path, content=body(), headers={"Content-Type": content_type})
    assert_refused(small_broker, answer, TooLarge, path)
    event = sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))[0]
    assert event["body_bytes"] <= LIMIT + 1000
    assert event["file_id"] is None
    record = record_of(small_broker, answer.headers["x-request-id"])
    assert LIMIT < record["bytes_received"] < LIMIT + 1_000_000


@pytest.mark.parametrize("size", [1, 70_000, 150_000])
@pytest.mark.parametrize("is_form", [True, False], ids=["form", "bare"])
def test_one_byte_more_than_the_token_grants(broker: Broker, size: int, *, is_form: bool) -> None:
    token = broker.mint(size=size, route="proxy")["access_token"]
    content = b"x" * (size + 1)
    request: dict[str, Any] = {"files": {"file": ("a.csv", content)}}
    if not is_form:
        request = {"content": content, "headers": {"Content-Type": "text/csv"}}
    assert_refused(broker, post(broker, key=token, **request), TooLarge)


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("size", [1, 70_000, 150_000])
@pytest.mark.parametrize(
    "around",
    [form, lambda file: form(file, end=b""), lambda file: form(file, part(b"v" * 3000, "more", None))],
    ids=["form", "no final CR LF", "field after"],
)
def test_just_what_the_token_grants(
    broker: Broker, sandbox: SandboxControl, size: int, around: Callable[[bytes], bytes]
) -> None:
    token = broker.mint(size=size, route="proxy")["access_token"]
    content = b"x" * size
    answer = post(broker, key=token, content=around(part(content)), headers={"Content-Type": FORM_TYPE})
    assert answer.status_code == 200, answer.text
    assert sandbox.file(answer.json()["file_id"])["sha256"] == hashlib.sha256(content).hexdigest()


# --- forms --------------------------------------------------------------------------------------

JUNK = b"\x00\xff" * 500
BAD_FORMS: dict[str, tuple[bytes, type[Refusal]]] = {
    "no part": (form(), MissingFile),
    "a field only": (form(part(b"v", "file", None)), MissingFile),
    "two files": (form(part(b"a,b"), part(b"c,d")), SeveralFiles),
    "two large files": (form(part(b"a" * 300_000), part(b"c" * 300_000)), SeveralFiles),
    "empty file": (form(part(b"")), EmptyFile),
    "empty file and a field": (form(part(b""), part(b"v", "more", None)), EmptyFile),
    "wrong field": (form(part(b"a,b", "upload")), MissingFile),
    "no file chosen": (form(part(b"", "file", b"")), MissingFile),
    "another boundary": (form(part(b"a,b")).replace(BOUNDARY.encode(), b"another"), MalformedMultipart),
    "junk": (JUNK, MalformedMultipart),
    "no end": (part(b"a,b"), MalformedMultipart),
    "no end of a large file": (part(b"a" * 500_000), MalformedMultipart),
    "nothing": (b"", MalformedMultipart),
    "preamble flood": (b"\r\n" * 50_000 + form(part(b"a,b")), MalformedMultipart),
    "header flood": (
        form(part(b"a,b", "file", b"a.csv", *[b"X-%d: y" % i for i in range(5000)])),
        MalformedMultipart,
    ),
    "header of a megabyte": (
        form(part(b"a,b", "file", b"a.csv", b"X: " + b"y" * 1_000_000)),
        MalformedMultipart,
    ),
    "part flood": (form(*[part(b"v", "v", None)] * 5000), MalformedMultipart),
    "field flood": (form(part(b"v" * 1_000_000, "v", None), part(b"a,b")), MalformedMultipart),
    "field flood after the file": (
        form(part(b"a" * 200_000), part(b"v" * 1_000_000, "v", None)),
        MalformedMultipart,
    ),
}


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("encode", [True, False], ids=["chunked", "with length"])
@pytest.mark.parametrize(("body", "refusal"), BAD_FORMS.values(), ids=BAD_FORMS)
def test_a_bad_form(broker: Broker, path: str, body: bytes, refusal: type[Refusal], *, encode: bool) -> None:
    content = iter([body[:1000], body[1000:]]) if encode else body
    answer = post(broker, path, content=content, headers={"Content-Type": FORM_TYPE})
    assert_refused(broker, answer, refusal, path)


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 10_000}",
    ],
    ids=["none", "empty", "10 KB"],
)
def test_a_boundary_that_is_none(broker: Broker, path: str, content_type: str) -> None:
    answer = post(broker, path, content=form(part(b"a,b")), headers={"Content-Type": content_type})
    assert_refused(broker, answer, MalformedMultipart, path)


@pytest.mark.usefixtures("accepted")
def test_an_endless_epilogue_is_not_waited_for(broker: Broker, sandbox: SandboxControl) -> None:
    """RFC 2046 §5.1.1: what follows the last boundary is to be ignored, so the answer comes without it."""
    headers = broker.auth() | ORIGIN | {"Content-Type": FORM_TYPE, "Transfer-Encoding": "chunked"}
    first = form(part(b"a,b"))
    with Connection(broker.url) as connection:
        connection.send(head(PROXY, [*headers.items()]) + b"%x\r\n%b\r\n" % (len(first), first))
        answer = connection.answer()
    assert answer.status_code == 200
    assert sandbox.file(answer.json()["file_id"])["bytes"] == 3


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("size", [3, 400_000])
def test_what_stands_around_a_file_is_left_out(
    broker: Broker, sandbox: SandboxControl, path: str, size: int
) -> None:
    content = b"x" * size
    body = b"\r\n" + form(
        part(b"v", "before", None), part(content), part(b"v" * 500, "after", None), end=b"\r\nbye"
    )
    answer = post(broker, path, content=body, headers={"Content-Type": FORM_TYPE})
    assert answer.status_code == 200, answer.text
    (event,) = sandbox.events(kind="upload")
    assert event["part_names"] == ["file"]
    assert (event["file_bytes"], event["sha256"]) == (size, hashlib.sha256(content).hexdigest())
    assert event["content_length"] == event["body_bytes"]
    assert not event["chunked"]


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("end", [b"\r\n", b""], ids=["final CR LF", "none"])
def test_coze_is_told_the_length_whenever_it_is_known(
    broker: Broker, sandbox: SandboxControl, end: bytes
) -> None:
    body = form(part(b"x" * 300_000), end=end)
    with_length = post(broker, content=body, headers={"Content-Type": FORM_TYPE})
    without = post(broker, content=iter([body[:1000], body[1000:]]), headers={"Content-Type": FORM_TYPE})
    assert (with_length.status_code, without.status_code) == (200, 200)
    known, unknown = sandbox.events(kind="upload")
    assert (known["chunked"], known["content_length"]) == (False, known["body_bytes"])
    assert (unknown["chunked"], unknown["content_length"]) == (True, None)
    assert known["sha256"] == unknown["sha256"]


# --- bodies -------------------------------------------------------------------------------------

BAD_BODIES: dict[str, tuple[dict[str, str], bytes, type[Refusal]]] = {
    "gzip": ({"Content-Type": FORM_TYPE, "Content-Encoding": "gzip"}, b"\x1f\x8b", UnsupportedMediaType),
    "encodings": ({"Content-Type": "text/csv", "Content-Encoding": "br, gzip"}, b"", UnsupportedMediaType),
    "urlencoded": ({"Content-Type": "application/x-www-form-urlencoded"}, b"file=a", UnsupportedMediaType),
    "multipart/mixed": ({"Content-Type": "multipart/mixed; boundary=b"}, b"--b--", UnsupportedMediaType),
    "bare without a name": ({"Content-Type": "application/octet-stream"}, b"x", BadFileName),
    "bare without a type": ({}, b"x", BadFileName),
    "bare and empty": ({"Content-Type": "text/csv"}, b"", EmptyFile),
    "bare, its name is none": (
        {"Content-Type": "text/csv", "Content-Disposition": 'attachment; filename=".."'}, b"x", BadFileName,
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("encode", [True, False], ids=["chunked", "with length"])
@pytest.mark.parametrize(("headers", "body", "refusal"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_bad_body(
    broker: Broker, path: str, headers: dict[str, str], body: bytes, refusal: type[Refusal], *, encode: bool
) -> None:
    framing = {"Transfer-Encoding": "chunked"} if encode else {"Content-Length": str(len(body))}
    sent = chunked([body] if body else []) if encode else body
    is_bare = "multipart" not in headers.get("Content-Type", "")
    if path == DROP_IN and is_bare:  # there, as at Coze, a bare file is none
        refusal = UnsupportedMediaType
    assert_refused(broker, exchange(broker, path, headers | framing, sent), refusal, path)


@pytest.mark.parametrize("value", ["-1", "+5", "0x10", "5, 5", "1e3", " ", "9" * 30])
def test_a_content_length_that_is_no_number(broker: Broker, value: str) -> None:
    """The server itself refuses most of them, before the broker sees a request."""
    headers = {"Content-Type": FORM_TYPE, "Content-Length": value}
    answer = exchange(broker, PROXY, headers, b"")
    assert answer.status_code in (MalformedRequest.status, TooLarge.status)


def test_two_ways_of_framing_are_refused(broker: Broker) -> None:
    """RFC 9112 §6.1: a request with both is what smuggling is made of."""
    headers = {"Content-Type": FORM_TYPE, "Content-Length": "5", "Transfer-Encoding": "chunked"}
    assert exchange(broker, PROXY, headers, chunked([b"a"])).status_code == 400


@pytest.mark.parametrize("path", SHAPES)
def test_a_broken_chunk(broker: Broker, path: str) -> None:
    headers = {"Content-Type": FORM_TYPE, "Transfer-Encoding": "chunked"}
    answer = exchange(broker, path, headers, b"zz\r\nabc\r\n")
    assert answer.status_code == 400


# --- file names ---------------------------------------------------------------------------------

NAMES = {
    "folders": (b"../x.csv", "x.csv"),
    "folders of Windows": (rb"C:\x.csv", "x.csv"),
    "quote as browsers send it": (b"a%22b.csv", 'a"b.csv'),
    "quote as curl sends it": (b'a\\"b.csv', 'a"b.csv'),
    "UTF-8": ("中文.csv".encode(), "中文.csv"),
    "emoji": ("📊.csv".encode(), "📊.csv"),
    "10 KB": (b"a" * 10_000 + b".csv", "a" * 251 + ".csv"),
    "a percent sign": (b"100%25.csv", "100%25.csv"),
}
BAD_NAMES = {
    "LF": b"a\nb.csv",
    "escaped CR LF": b"a%0D%0Ab.csv",
    "NUL": b"a\0.csv",
    "invalid UTF-8": b"\xff\xfe.csv",
    "dots": b"..",
    "bidi override": "gpj.\u202ecsv".encode(),
}


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize(("sent", "told"), NAMES.values(), ids=NAMES)
def test_coze_is_told_the_name(
    broker: Broker, sandbox: SandboxControl, path: str, sent: bytes, told: str
) -> None:
    answer = post(broker, path, content=form(part(b"a,b", "file", sent)), headers={"Content-Type": FORM_TYPE})
    assert answer.status_code == 200, answer.text
    (event,) = sandbox.events(kind="upload")
    assert (event["file_name"], event["part_names"]) == (told, ["file"])


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize(
    "value",
    [
        "attachment; filename*=UTF-8''%E4%B8%AD%E6%96%87.csv",
        "attachment; filename=\"b.csv\"; filename*=utf-8'zh'%E4%B8%AD%E6%96%87.csv",
        'attachment; filename="中文.csv"',
    ],
    ids=["filename*", "both", "filename in UTF-8"],
)
def test_a_bare_body_says_its_name(broker: Broker, sandbox: SandboxControl, value: str) -> None:
    headers = {"Content-Type": "text/csv", "Content-Disposition": value.encode()}
    answer = post(broker, content=b"a,b", headers=headers)
    assert answer.json()["file_name"] == "中文.csv"
    assert sandbox.events(kind="upload")[0]["file_name"] == "中文.csv"


@pytest.mark.parametrize("path", SHAPES)
@pytest.mark.parametrize("sent", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_bad_name(broker: Broker, path: str, sent: bytes) -> None:
    answer = post(broker, path, content=form(part(b"a,b", "file", sent)), headers={"Content-Type": FORM_TYPE})
    assert_refused(broker, answer, BadFileName, path)


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("path", SHAPES)
def test_a_raw_line_end_in_a_name_ends_the_name(broker: Broker, sandbox: SandboxControl, path: str) -> None:
    """What follows it is a header of the caller's part, and no header or part of Coze's."""
    name = b'a.csv\r\nX-Injected: "yes"\r\nContent-Type: text/html; x='
    answer = post(broker, path, content=form(part(b"a,b", "file", name)), headers={"Content-Type": FORM_TYPE})
    assert answer.status_code == 200, answer.text
    (event,) = sandbox.events(kind="upload")
    assert (event["file_name"], event["part_names"]) == ('"a.csv', ["file"])


# --- nothing of the caller is passed on ---------------------------------------------------------


@pytest.mark.usefixtures("accepted")
@pytest.mark.parametrize("path", SHAPES)
def test_nothing_of_the_caller_is_forwarded(broker: Broker, sandbox: SandboxControl, path: str) -> None:
    headers = {
        "Cookie": "session=1",
        "X-Forwarded-For": "10.0.0.1",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=10.0.0.1",
        "Accept-Language": "tlh",
        "User-Agent": "caller/1",
        "X-Custom": "1",
        "Referer": "http://app.example:3000/secret",
    }
    assert post(broker, path, files=FILES, headers=headers).status_code == 200
    (event,) = sandbox.events(kind="upload")
    expected = "accept accept-encoding authorization connection content-length content-type host user-agent"
    assert sorted(event["header_names"]) == expected.split()
    assert event["headers"]["host"] == sandbox.url.removeprefix("http://")
    assert event["headers"]["user-agent"].startswith("coze-upload-broker/")
    assert event["query_names"] == []


# --- an early refusal can be read ---------------------------------------------------------------

LARGE = 50_000_000


def test_a_client_that_sends_on_gets_the_refusal(broker: Broker) -> None:
    answer = CLIENT.post(broker.url + PROXY, content=b"x" * LARGE, headers=ORIGIN)
    assert_refused(broker, answer, MissingCredential)


@pytest.mark.parametrize("expect", [[], ["-H", "Expect:"]], ids=["as it is", "without Expect"])
def test_curl_gets_the_refusal(broker: Broker, folder: Path, expect: list[str]) -> None:
    large = folder / "large.csv"
    large.write_bytes(b"x" * LARGE)
    arguments = ["-s", "-w", "%{http_code}", "-o", str(folder / "answer"), *expect]
    done = subprocess.run(
        [needs.executable("curl"), *arguments, "-F", f"file=@{large}", broker.url + PROXY],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "401", done.stderr
    assert MissingCredential.code in (folder / "answer").read_text()


def test_a_client_that_reads_only_when_all_is_sent_gets_the_refusal(broker: Broker) -> None:
    headers = ORIGIN | {"Content-Type": FORM_TYPE, "Content-Length": str(LARGE)}
    with Connection(broker.url) as connection:
        connection.send(head(PROXY, [*headers.items()]))
        connection.send_what_goes(b"x" * LARGE)
        assert_refused(broker, connection.answer(), MissingCredential)


@pytest.mark.parametrize("path", SHAPES)
def test_who_expects_100_continue_is_refused_without_sending(broker: Broker, path: str) -> None:
    headers = ORIGIN | {
        "Content-Type": FORM_TYPE,
        "Content-Length": str(LARGE),
        "Expect": "100-continue",
    }
    with Connection(broker.url) as connection:
        connection.send(head(path, [*headers.items()]))
        assert_refused(broker, connection.answer(), MissingCredential, path)
        assert connection.socket.recv(1) == b""


@pytest.mark.usefixtures("accepted")
def test_who_expects_100_continue_is_asked_for_the_body(broker: Broker) -> None:
    body = form(part(b"a,b"))
    headers = broker.auth() | {
        "Content-Type": FORM_TYPE,
        "Content-Length": str(len(body)),
        "Expect": "100-continue",
    }
    with Connection(broker.url) as connection:
        connection.send(head(PROXY, [*headers.items()]))
        assert connection.answer().status_code == 100
        connection.send(body)
        assert connection.answer().status_code == 200


@pytest.mark.usefixtures("accepted")
def test_a_refused_upload_takes_nothing_from_others(broker: Broker) -> None:
    """While one caller is refused again and again, another's upload goes through whole."""
    content = secrets.token_bytes(5_000_000)
    answers: list[httpx.Response] = []
    file = {"file": ("data.bin.gz", b"\x1f\x8b\x08\x00" + content)}
    bystander = threading.Thread(target=lambda: answers.append(post(broker, files=file)))
    bystander.start()
    for _ in range(10):
        assert post(broker, content=JUNK, headers={"Content-Type": FORM_TYPE}).status_code == 400
    bystander.join()
    assert answers[0].json()["sha256"] == hashlib.sha256(b"\x1f\x8b\x08\x00" + content).hexdigest()


def test_a_minted_token_expires(broker: Broker, early_token: tuple[str, float]) -> None:
    """Five seconds of leeway for clocks that disagree, and no more. Stands last: it has the least to wait."""
    token, minted_at = early_token
    time.sleep(max(0.0, minted_at + 7 - time.monotonic()))
    assert_refused(broker, post(broker, key=token, files=FILES), ExpiredCredential)
