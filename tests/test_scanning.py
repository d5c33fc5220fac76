"""Sensitive files never go direct, and Coze never has the whole of one that the scanner calls not clean."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker import settings
from broker.api.journey import KEPT_BYTES
from broker.errors import (
    ClientLeft,
    ContentRefused,
    NotScannable,
    Refusal,
    ScannerUnavailable,
    UpstreamAborted,
)
from broker.scanning import clamd as scanners
from broker.transfer.pace import Pace, Patience
from broker.transfer.scanned import scanned
from broker.transfer.sensitivity import Sensitivity
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.clamd import EICAR, FILE_MAX_BYTES, SIGNATURE, STREAM_MAX_BYTES, Clamd, running_clamd
from tests.support.raw_http import FORM_TYPE, Connection, ScriptedUpstream, head, part, reset
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
SENSITIVE = {"X-Upload-Sensitive": "true"}
CLEAN = b"a,b\n1,2\n"
LARGE = CLEAN * 400_000
"""As much as clamd looks at, nearly, and more than fits between the caller and Coze."""
SCANNER_MAX_BYTES = 20_000_000
SCANNER_SECONDS = 5


# --- the operator's rules -------------------------------------------------------------------------

PDF_OR_IMAGE = Sensitivity(types=("application/pdf", "image/*"))
CONTRACTS = Sensitivity(names=("*.pdf", "Contract*", "r\u00e9sum\u00e9.???"))

MARKS: dict[str, tuple[Sensitivity, str | None, str | None, bool]] = {
    "no rules": (Sensitivity(), None, None, False),
    "everything": (Sensitivity(everything=True), "a.csv", "text/csv", True),
    "the type": (PDF_OR_IMAGE, "a", "application/pdf", True),
    "a glob": (PDF_OR_IMAGE, "a", "image/png", True),
    "case and parameters": (PDF_OR_IMAGE, "a", "Image/PNG; q=1", True),
    "the pattern's case": (Sensitivity(types=("Image/*",)), "a", "image/png", True),
    "another type": (PDF_OR_IMAGE, "a.csv", "text/csv", False),
    "another type without a name": (PDF_OR_IMAGE, None, "text/csv", False),
    "the extension's type": (PDF_OR_IMAGE, "a.pdf", "text/csv", True),
    "the extension's type alone": (PDF_OR_IMAGE, "a.heic", None, True),
    "only the extension, another": (PDF_OR_IMAGE, "a.csv", None, False),
    "a type that says nothing": (PDF_OR_IMAGE, "a.unknown", "application/octet-stream", True),
    "an empty type": (PDF_OR_IMAGE, "a", "", True),
    "no type": (PDF_OR_IMAGE, None, None, True),
    "packed": (PDF_OR_IMAGE, "a.pdf.gz", "application/octet-stream", True),
    "the name": (CONTRACTS, "a.pdf", "text/csv", True),
    "the name's case": (CONTRACTS, "CONTRACT-4711.DOC", None, True),
    "the name, composed otherwise": (CONTRACTS, "re\u0301sume\u0301.doc", None, True),
    "another name": (CONTRACTS, "my-contract.doc", "application/pdf", False),
    "no name": (CONTRACTS, None, "text/csv", True),
}


@pytest.mark.parametrize(("rules", "name", "content_type", "is_sensitive"), MARKS.values(), ids=MARKS)
def test_what_the_rules_cannot_rule_out_is_sensitive(
    *, rules: Sensitivity, name: str | None, content_type: str | None, is_sensitive: bool
) -> None:
    assert rules.marks(name, content_type) is is_sensitive


PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"broker_sensitive_types": "pdf"}, "BROKER_SENSITIVE_TYPES: 'pdf' is no media type"),
    "a type with a blank": ({"broker_sensitive_types": "a/b c"}, "'a/b c' is no media type"),
    "a folder": (
        {"broker_sensitive_names": "secret/*"},
        "BROKER_SENSITIVE_NAMES: 'secret/*' is no file name",
    ),
    "nothing to scan with": ({"broker_scan": "all"}, "BROKER_SCAN is all, but there is no BROKER_SCANNER"),
    **{
        address: ({"broker_scanner": address}, "BROKER_SCANNER: not an address")
        for address in (
            *("127.0.0.1:3310", "http://127.0.0.1:3310", "clamd://", "clamd:///", "clamd://host:x"),
            *(
                "clamd://host:0",
                "clamd://host:70000",
                "clamd://host/path",
                "clamd://user@host",
                "clamd://[::1",
            ),
            *("clamd://host?tls=1", "clamd:run/clamd.ctl"),
        )
    },
}


def given(**changes: Any) -> settings.Settings:
    base = {"coze_api_base": "https://api.coze.cn", "coze_api_token": "x"}
    return settings.Settings(_env_file=None, **{**base, **changes})


@pytest.mark.parametrize(("changes", "sentence"), PROBLEMS.values(), ids=PROBLEMS)
def test_settings_that_make_no_sense_are_named(changes: dict[str, Any], sentence: str) -> None:
    (problem,) = settings.problems(given(**changes))
    assert problem.startswith(sentence) or sentence in problem


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("clamd://127.0.0.1", ("127.0.0.1", 3310)),
        ("clamd://scanner.example:3311/", ("scanner.example", 3311)),
        ("clamd://[::1]:3310", ("::1", 3310)),
        ("clamd:///run/clamav/clamd.ctl", "/run/clamav/clamd.ctl"),
    ],
)
def test_a_scanner_s_address(url: str, address: object) -> None:
    known = given(broker_scanner=url, broker_scan="all")
    assert (settings.problems(known), known.scanner_address) == ([], address)


@pytest.mark.parametrize(
    ("url", "is_warned_of"),
    [("clamd://scanner.example", True), ("clamd://127.0.0.1", False), ("clamd:///run/clamd.ctl", False)],
)
def test_files_in_the_clear_are_warned_of(*, url: str, is_warned_of: bool) -> None:
    found = [each for each in settings.warnings(given(broker_scanner=url)) if "BROKER_SCANNER" in each]
    assert bool(found) is is_warned_of


# --- what the tests stand on ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def session_clamd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clamd]:
    with running_clamd(tmp_path_factory.mktemp("clamd")) as clamd:
        yield clamd


@pytest.fixture
def clamd(session_clamd: Clamd) -> Iterator[Clamd]:
    """A real scanner, running again after each test."""
    yield session_clamd
    session_clamd.heal()


@pytest.fixture
def sandbox(session_sandbox: SandboxControl) -> SandboxControl:
    return heal(session_sandbox)


@pytest.fixture(scope="module")
def scanning_broker(
    session_sandbox: SandboxControl, session_clamd: Clamd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that has sensitive files scanned, over TCP; PDFs and contracts are sensitive."""
    given = {
        "BROKER_SCANNER": session_clamd.url,
        "BROKER_SCANNER_TIMEOUT_SECONDS": str(SCANNER_SECONDS),
        "BROKER_SCANNER_MAX_BYTES": str(SCANNER_MAX_BYTES),
        "BROKER_SENSITIVE_TYPES": "application/pdf",
        "BROKER_SENSITIVE_NAMES": "contract*",
    }
    with running_broker(tmp_path_factory.mktemp("scanning"), session_sandbox.environment, **given) as broker:
        yield broker
        assert_no_secret(broker.log.read_text())


@pytest.fixture(scope="module")
def strict_broker(
    session_sandbox: SandboxControl, session_clamd: Clamd, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that has everything scanned, over a Unix socket, and waits two seconds for anyone else."""
    given = {
        "BROKER_SCANNER": session_clamd.socket_url,
        "BROKER_SCAN": "all",
        "BROKER_CLIENT_IDLE_SECONDS": "2",
        "BROKER_READ_TIMEOUT_SECONDS": "2",
    }
    with running_broker(tmp_path_factory.mktemp("strict"), session_sandbox.environment, **given) as broker:
        yield broker


def upload(
    broker: Broker, content: bytes, path: str = PROXY, name: str = "a.csv", **headers: str
) -> httpx.Response:
    return CLIENT.post(
        broker.url + path,
        files={"file": (name, content)},
        headers=broker.auth() | ORIGIN | headers,
    )


def assert_stored(sandbox: SandboxControl, answer: httpx.Response, content: bytes) -> None:
    assert answer.status_code == 200, answer.text
    assert sandbox.file(answer.json()["file_id"])["sha256"] == hashlib.sha256(content).hexdigest()


def assert_nothing_stored(sandbox: SandboxControl, content: bytes) -> None:
    """Coze heard of the file, and never had the whole of it; of a small one it heard nothing."""
    if len(content) <= KEPT_BYTES:
        assert sandbox.events(kind="upload") == []
        return
    (event,) = sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert event["file_id"] is None
    assert (event["file_bytes"] or 0) < len(content)
    assert len(sandbox.events(kind="upload")) == 1


# --- marking --------------------------------------------------------------------------------------

ASKED: dict[str, tuple[dict[str, Any], bool]] = {
    "the caller says so": ({"file_name": "a.csv", "content_type": "text/csv", "sensitive": True}, True),
    "by name": ({"file_name": "Contract 1.csv", "content_type": "text/csv"}, True),
    "by name, in a folder": ({"file_name": "/tmp/contract.csv", "content_type": "text/csv"}, True),
    "by type": ({"file_name": "a.csv", "content_type": "application/pdf"}, True),
    "by extension": ({"file_name": "a.pdf", "content_type": "text/csv"}, True),
    "no name": ({"content_type": "text/csv"}, True),
    "nothing": ({}, True),
    "neither": ({"file_name": "a.csv", "content_type": "text/csv"}, False),
}


@pytest.mark.parametrize(("asked", "is_sensitive"), ASKED.values(), ids=ASKED)
def test_a_sensitive_file_never_goes_direct(
    *, scanning_broker: Broker, sandbox: SandboxControl, asked: dict[str, Any], is_sensitive: bool
) -> None:
    answer = scanning_broker.mint(size=1, route="direct", **asked)
    expected = ("proxy", "sensitive") if is_sensitive else ("direct", "small_file")
    assert (answer["route"], answer["reason"]) == expected
    record = scanning_broker.last_record("/token", reason=expected[1])
    assert record["sensitive"] is is_sensitive


def test_with_everything_scanned_nothing_goes_direct(strict_broker: Broker, sandbox: SandboxControl) -> None:
    answer = strict_broker.mint(size=1, file_name="a.csv", content_type="text/csv")
    assert (answer["route"], answer["reason"]) == ("proxy", "sensitive")


def test_the_mark_stays_on_the_token(scanning_broker: Broker, sandbox: SandboxControl) -> None:
    """Whatever the upload says of itself."""
    token = scanning_broker.mint(size=len(EICAR), file_name="a.csv", content_type="text/csv", sensitive=True)
    headers = {"Authorization": f"Bearer {token['access_token']}", "X-Upload-Sensitive": "false"}
    answer = upload(scanning_broker, EICAR, **headers)
    assert_refused(scanning_broker, answer, ContentRefused)


def test_a_page_may_send_the_mark(scanning_broker: Broker) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-upload-sensitive"}
    answer = CLIENT.options(scanning_broker.url + PROXY, headers=ORIGIN | asked)
    assert answer.status_code == 200
    assert "x-upload-sensitive" in answer.headers["access-control-allow-headers"].lower()


def test_a_mark_that_is_neither_yes_nor_no_is_refused(
    scanning_broker: Broker, sandbox: SandboxControl
) -> None:
    """Taken for a no, a slip of the pen would let the file pass unseen."""
    answer = upload(scanning_broker, CLEAN, **{"X-Upload-Sensitive": "ture"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert sandbox.events(kind="upload") == []


SCANNED = {"by header": ("a.csv", SENSITIVE), "by name": ("contract.csv", {}), "by extension": ("a.pdf", {})}


@pytest.mark.parametrize(("name", "headers"), SCANNED.values(), ids=SCANNED)
def test_a_file_is_scanned_for_what_it_really_is(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd, name: str, headers: dict[str, str]
) -> None:
    before = clamd.files_scanned
    answer = upload(
        scanning_broker, b"%PDF-1.7\n" + EICAR if name == "a.pdf" else EICAR, name=name, **headers
    )
    assert_refused(scanning_broker, answer, ContentRefused)
    sandbox.wait_for(lambda: clamd.files_scanned == before + 1)  # it writes its log when it has answered


def test_a_new_name_takes_no_mark_back(sandbox: SandboxControl, clamd: Clamd, folder: Path) -> None:
    """A file that is sensitive by the name it came with stays so under the one that its content tells."""
    given = {
        "BROKER_SCANNER": clamd.url,
        "BROKER_SENSITIVE_NAMES": "*.csv",
        "BROKER_CONTENT_MISMATCH": "relabel",
    }
    with running_broker(folder, sandbox.environment, **given) as broker:
        before = clamd.files_scanned
        answer = upload(broker, b"\x89PNG\r\n\x1a\n" + bytes(64), name="contract.csv")
        assert answer.json()["file_name"] == "contract.png"
    assert clamd.files_scanned == before + 1


def test_what_is_not_sensitive_is_not_scanned(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    """Nor does it need the scanner."""
    clamd.kill()
    answer = upload(scanning_broker, EICAR)
    assert_stored(sandbox, answer, EICAR)
    record = record_of(scanning_broker, answer.headers["x-request-id"])
    assert (record["sensitive"], "scanned" in record) == (False, False)


def test_without_a_scanner_set_up_a_sensitive_file_passes_through_the_broker(
    broker: Broker, sandbox: SandboxControl
) -> None:
    """The record says that it was sensitive, and not that it was scanned."""
    answer = upload(broker, CLEAN, **SENSITIVE)
    assert_stored(sandbox, answer, CLEAN)
    record = record_of(broker, answer.headers["x-request-id"])
    assert (record["sensitive"], "scanned" in record) == (True, False)
    assert CLIENT.get(f"{broker.url}/ready").json()["checks"] == {"store": "ok", "audit": "ok"}


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [CLEAN, LARGE], ids=["small", "large"])
def test_a_clean_file_passes_whole(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd, content: bytes
) -> None:
    before = clamd.files_scanned
    answer = upload(scanning_broker, content, **SENSITIVE)
    assert_stored(sandbox, answer, content)
    assert clamd.files_scanned == before + 1
    record = record_of(scanning_broker, answer.headers["x-request-id"])
    assert (record["sensitive"], record["scanned"]) == (True, True)


HITS = {"alone": EICAR, "at the end": LARGE + EICAR, "at the start": EICAR + LARGE, "twice": EICAR * 2}


@pytest.mark.parametrize("content", HITS.values(), ids=HITS)
def test_a_hit_ends_the_upload_before_coze_has_the_file(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd, content: bytes
) -> None:
    """The caller hears that it was refused; what was found is for the log alone."""
    answer = upload(scanning_broker, content, **SENSITIVE)
    assert_refused(scanning_broker, answer, ContentRefused)
    assert_nothing_stored(sandbox, content)
    assert SIGNATURE not in answer.text
    assert SIGNATURE in record_of(scanning_broker, answer.headers["x-request-id"])["log"]
    sandbox.wait_for(lambda: clamd.connections() == 0)


@pytest.mark.parametrize("path", SHAPES)
def test_everything_may_be_scanned(
    strict_broker: Broker, sandbox: SandboxControl, clamd: Clamd, path: str
) -> None:
    """A server's uploads too, in both shapes, over clamd's own socket."""
    assert_refused(strict_broker, upload(strict_broker, EICAR, path), ContentRefused, path)
    assert upload(strict_broker, LARGE, path).status_code == 200
    assert len(sandbox.events(kind="upload", outcome="stored")) == 1


def test_a_hit_split_over_two_reads_is_a_hit(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    """The second half is sent only when Coze has had something of the first."""
    headers = scanning_broker.auth() | ORIGIN | SENSITIVE | {"Content-Type": FORM_TYPE}
    first, second = LARGE[:300_000] + EICAR[:30], EICAR[30:] + b"\r\n--boundary-of-the-tests--\r\n"
    body = part(first)
    length = str(len(body) - 2 + len(second))
    with Connection(scanning_broker.url) as connection:
        connection.send(head(PROXY, [*headers.items(), ("Content-Length", length)]) + body[:-2])
        sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="open"))
        connection.send(second)
        answer = connection.answer()
    assert_refused(scanning_broker, answer, ContentRefused)
    assert_nothing_stored(sandbox, first + EICAR[30:])


def test_a_token_is_spent_once_coze_heard_of_the_file(
    scanning_broker: Broker, sandbox: SandboxControl
) -> None:
    """A small file is looked at before; then the token is still good."""
    token = scanning_broker.mint(size=len(LARGE + EICAR), sensitive=True)
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    assert upload(scanning_broker, EICAR, **headers).json()["code"] == "content_refused"
    assert upload(scanning_broker, LARGE + EICAR, **headers).json()["code"] == "content_refused"
    assert upload(scanning_broker, CLEAN, **headers).json()["code"] == "token_used"


def test_a_clean_file_may_go_again_after_a_passing_fault(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    """It was looked at once for all attempts."""
    before = clamd.files_scanned
    sandbox.fail(path=DROP_IN, code=5000, status=500, times=2)
    assert_stored(sandbox, upload(scanning_broker, CLEAN, **SENSITIVE), CLEAN)
    assert clamd.files_scanned == before + 1


BEYOND = {
    "what clamd looks at": FILE_MAX_BYTES + 500_000,
    "what clamd takes": STREAM_MAX_BYTES + 1_000_000,
    "much more than clamd takes": SCANNER_MAX_BYTES - 1_000_000,
}


@pytest.mark.parametrize("url", ["url", "socket_url"])
@pytest.mark.parametrize("size", BEYOND.values(), ids=BEYOND)
async def test_clamd_says_when_it_sees_half_of_a_file(clamd: Clamd, size: int, url: str) -> None:
    """Over either socket, also when it answers and closes while it is still being sent to."""
    address = given(broker_scanner=getattr(clamd, url)).scanner_address
    with pytest.raises(NotScannable):
        await scan(address, [b"x" * 65_536] * (size // 65_536), [])


@pytest.mark.parametrize("size", BEYOND.values(), ids=BEYOND)
def test_a_file_that_is_not_seen_whole_does_not_pass(
    scanning_broker: Broker, sandbox: SandboxControl, size: int
) -> None:
    content = b"x" * size
    answer = upload(scanning_broker, content, **SENSITIVE)
    assert_refused(scanning_broker, answer, NotScannable)
    assert_nothing_stored(sandbox, content)


def test_a_file_beyond_the_setting_is_refused_before_coze_hears_of_it(
    scanning_broker: Broker, sandbox: SandboxControl
) -> None:
    """At the mint already; and at an upload whose length tells, with its token still good."""
    asked = {"size": SCANNER_MAX_BYTES + 1, "sensitive": True}
    answer = CLIENT.post(f"{scanning_broker.url}/token", json=asked, headers=scanning_broker.auth() | ORIGIN)
    assert_refused(scanning_broker, answer, NotScannable)
    answer = upload(scanning_broker, b"x" * (SCANNER_MAX_BYTES + 100_000), **SENSITIVE)
    assert_refused(scanning_broker, answer, NotScannable)
    assert sandbox.events(kind="upload") == []


# --- a scanner in trouble -------------------------------------------------------------------------


def assert_unavailable(broker: Broker, answer: httpx.Response) -> None:
    assert_refused(broker, answer, ScannerUnavailable)
    assert answer.headers["retry-after"]


def test_without_a_scanner_nothing_sensitive_passes(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    """Found before Coze hears of the file and before the token is spent, which then is good again."""
    token = scanning_broker.mint(size=len(CLEAN), sensitive=True)
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    clamd.kill()
    assert_unavailable(scanning_broker, upload(scanning_broker, CLEAN, **headers))
    assert sandbox.events(kind="upload") == []
    clamd.heal()
    assert_stored(sandbox, upload(scanning_broker, CLEAN, **headers), CLEAN)


@pytest.mark.parametrize(
    ("end", "is_ready"), [(Clamd.kill, False), (Clamd.pause, False), (Clamd.resume, True)]
)
def test_readiness_tells_of_the_scanner(
    *,
    scanning_broker: Broker,
    sandbox: SandboxControl,
    clamd: Clamd,
    end: Callable[[Clamd], None],
    is_ready: bool,
) -> None:
    end(clamd)
    answer = CLIENT.get(f"{scanning_broker.url}/ready")
    assert answer.status_code == (200 if is_ready else 503)
    scanner = "ok" if is_ready else "scanner_unavailable"
    assert answer.json()["checks"] == {"store": "ok", "audit": "ok", "scanner": scanner}


@pytest.mark.parametrize("content", [CLEAN, b"x" * (SCANNER_MAX_BYTES - 1)], ids=["small", "large"])
def test_a_scanner_that_hangs_is_not_waited_for(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd, content: bytes
) -> None:
    """Be it at the verdict, be it while the file is sent."""
    clamd.pause()
    assert_unavailable(scanning_broker, upload(scanning_broker, content, **SENSITIVE))
    assert_nothing_stored(sandbox, content)


def test_a_scanner_that_dies_midway(scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd) -> None:
    headers = scanning_broker.auth() | ORIGIN | SENSITIVE | {"Content-Type": FORM_TYPE}
    with Connection(scanning_broker.url) as connection:
        connection.send(head(PROXY, [*headers.items(), ("Content-Length", "10000000")]) + part(LARGE))
        sandbox.wait_for(lambda: clamd.connections() == 1)
        sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="open"))  # on its way by now
        clamd.kill()
        connection.send_what_goes(LARGE)
        answer = connection.answer()
    assert_unavailable(scanning_broker, answer)
    assert_nothing_stored(sandbox, LARGE)


def test_waiting_for_the_scanner_is_nobody_else_s_slowness(
    strict_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    """It takes longer than the caller or Coze may."""
    clamd.pause()
    recovery = threading.Timer(3.5, clamd.resume)
    recovery.start()
    assert_stored(sandbox, upload(strict_broker, LARGE), LARGE)
    assert not recovery.is_alive()


# --- others in trouble ----------------------------------------------------------------------------


def test_a_client_that_leaves_midway_leaves_no_scan_behind(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    headers = scanning_broker.auth() | ORIGIN | SENSITIVE | {"Content-Type": FORM_TYPE}
    with Connection(scanning_broker.url) as connection:
        connection.send(head(PROXY, [*headers.items(), ("Content-Length", "10000000")]) + part(LARGE))
        sandbox.wait_for(lambda: clamd.connections() == 1)
    sandbox.wait_for(lambda: clamd.connections() == 0)
    scanning_broker.last_record(PROXY, code=ClientLeft.code)
    assert sandbox.events(kind="upload", outcome="stored") == []


def test_coze_that_leaves_midway_leaves_no_scan_behind(
    scanning_broker: Broker, sandbox: SandboxControl, clamd: Clamd
) -> None:
    sandbox.fail(path=DROP_IN, abort_after_bytes=100_000, times=1)
    assert_refused(scanning_broker, upload(scanning_broker, LARGE, **SENSITIVE), UpstreamAborted)
    sandbox.wait_for(lambda: clamd.connections() == 0)


# --- answers that no clamd gives ------------------------------------------------------------------

FOREVER = Patience(client=60, slot=60, store=60, credential=60, connection=60, upstream=60, answer=60)


async def scan(address: scanners.Address, pieces: list[bytes], passed: list[bytes]) -> None:
    """Send these pieces past the scanner at this address; ``passed`` gets those that came through."""

    async def source() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with scanners.Clamd(address, max_bytes=SCANNER_MAX_BYTES).scan() as opened:
        async for piece in scanned(source(), opened, Pace(FOREVER)):
            passed.append(piece)  # noqa: PERF401 - what came before an error counts


async def test_the_last_piece_waits_for_the_verdict(clamd: Clamd) -> None:
    passed: list[bytes] = []
    with pytest.raises(ContentRefused):
        await scan(("127.0.0.1", clamd.port), [b"first", b"second", EICAR[:20], EICAR[20:]], passed)
    assert passed == [b"first", b"second", EICAR[:20]]


@pytest.fixture(scope="module")
def session_impostor() -> Iterator[ScriptedUpstream]:
    impostor = ScriptedUpstream()
    yield impostor
    impostor.close()


@pytest.fixture
def impostor(session_impostor: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """What listens where clamd should."""
    yield session_impostor
    session_impostor.released.set()


def address_of(impostor: ScriptedUpstream) -> tuple[str, int]:
    host, _, port = impostor.url.removeprefix("http://").partition(":")
    return host, int(port)


def saying(reply: bytes, *, early: bool = False, end: Callable[[socket.socket], None] | None = None) -> Any:
    """Read a file to its end, or nothing of it, say this, and close."""

    def script(connection: socket.socket) -> None:
        received = b""
        while not early and not received.endswith(b"\0\0\0\0"):
            received += connection.recv(65_536)
        connection.sendall(reply)
        if end:
            end(connection)

    return script


OK = b"stream: OK\0"
REPLIES: dict[str, tuple[bytes, type[Refusal]]] = {
    "nothing": (b"", ScannerUnavailable),
    "half an OK": (b"stream: OK", ScannerUnavailable),
    "an OK in a line": (b"stream: OK\n", ScannerUnavailable),
    "an OK and more": (OK + b"x", ScannerUnavailable),
    "two answers": (OK + b"stream: X FOUND\0", ScannerUnavailable),
    "an OK in other words": (b"stream: ok\0", ScannerUnavailable),
    "an OK to something else": (b"/tmp/file: OK\0", ScannerUnavailable),
    "a hit without a name": (b"stream:  FOUND\0", ScannerUnavailable),
    "an error": (b"stream: Can't allocate memory ERROR\0", ScannerUnavailable),
    "too slow": (b"COMMAND READ TIMED OUT\n", ScannerUnavailable),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", ScannerUnavailable),
    "no text": (b"\xff\xfe\0", ScannerUnavailable),
    "without an end": (b"stream: " + b"x" * 1_000_000, ScannerUnavailable),
    "a hit": (b"stream: Win.Test A(1) FOUND\0", ContentRefused),
    "a hit by the name of OK": (b"stream: OK FOUND\0", ContentRefused),
    "too large": (b"INSTREAM size limit exceeded. ERROR\0", NotScannable),
    "seen in part": (b"stream: Heuristics.Limits.Exceeded.MaxScanSize FOUND\0", NotScannable),
}


@pytest.mark.parametrize(("reply", "refusal"), REPLIES.values(), ids=REPLIES)
async def test_only_clamd_s_own_ok_is_one(
    impostor: ScriptedUpstream, reply: bytes, refusal: type[Refusal]
) -> None:
    impostor.does(saying(reply))
    with pytest.raises(refusal) as raised:
        await scan(address_of(impostor), [CLEAN], [])
    assert len(raised.value.log or "") < 1000


async def test_an_ok_counts(impostor: ScriptedUpstream) -> None:
    impostor.does(saying(OK))
    passed: list[bytes] = []
    await scan(address_of(impostor), [CLEAN, b"x"], passed)
    assert passed == [CLEAN, b"x"]


@pytest.mark.parametrize("reply", [b"", OK, OK[:5]], ids=["nothing", "OK", "half an OK"])
@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["closed", "reset"])
async def test_a_verdict_before_the_file_s_end_is_none(
    impostor: ScriptedUpstream, reply: bytes, end: Callable[[socket.socket], None]
) -> None:
    impostor.does(saying(reply, early=True, end=end))
    with pytest.raises(ScannerUnavailable):
        await scan(address_of(impostor), [b"x" * 65_536] * 300, [])


async def test_a_hit_before_the_file_s_end_is_one(impostor: ScriptedUpstream) -> None:
    """Though the scanner goes on reading: nothing more is sent to it."""

    def read_on(connection: socket.socket) -> None:
        while connection.recv(65_536):
            pass

    impostor.does(saying(b"stream: X FOUND\0", early=True, end=read_on))
    passed: list[bytes] = []
    with pytest.raises(ContentRefused):
        await scan(address_of(impostor), [b"x" * 65_536] * 300, passed)
    assert len(passed) < 299


@pytest.mark.parametrize("reply", [b"", b"PONG", b"PONG\n", b"NO\0", b"PONG\0PONG\0"])
async def test_a_ping_has_one_answer(impostor: ScriptedUpstream, reply: bytes) -> None:
    impostor.does(saying(reply, early=True))
    with pytest.raises(ScannerUnavailable):
        await scanners.Clamd(address_of(impostor), max_bytes=1).ping()


@pytest.mark.parametrize("address", [("host.invalid", 3310), "/nowhere/clamd.ctl", "/" + "x" * 200])
async def test_a_scanner_that_is_nowhere(address: scanners.Address) -> None:
    with pytest.raises(ScannerUnavailable):
        await scanners.Clamd(address, max_bytes=1).ping()
