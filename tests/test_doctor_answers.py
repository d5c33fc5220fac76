"""What ``broker doctor`` makes of Coze's answers: addresses with a path, Studio, codes, times."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker import settings
from broker.doctor import credential, http, region, upload
from broker.doctor.calling import Reply, shown
from broker.doctor.examination import STEPS, UPLOAD, all_of
from broker.doctor.exchange import Exchanged
from broker.doctor.finding import Finding
from broker.doctor.tls import clock_ahead_seconds
from broker.doctor.way import Way
from broker.observe.redaction import redacted
from broker.upstream.client import Answered
from tests.support.doctor import Diagnosis, diagnose, environment, head_of, http_answer, serving
from tests.support.sandbox_control import SandboxControl

TOKEN = "0123456789abcdefSECRETghijklmnopqrstuvwxyz"
"""Of no kind that its beginning would tell."""
LOGID = "X-Tt-Logid: 2026010203"
INVALID = {"code": 700012006, "msg": "access token invalid"}
COOKIE = {"code": 401, "msg": "missing session_key in cookie"}
NOT_FOUND = {"code": 4200, "msg": "The file does not exist"}
STORED = {"code": 0, "msg": "", "data": {"id": "7", "bytes": 1, "file_name": "doctor.csv", "created_at": 1}}
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Many", 500: "Oops"}
Answer = Callable[[str], bytes]


def said(body: dict[str, Any], status: int = 200, *headers: str) -> bytes:
    return http_answer(json.dumps(body).encode(), "application/json", f"{status} {REASONS[status]}", *headers)


def reply(body: dict[str, Any] | None, status: int = 200, **headers: str) -> Reply:
    """As it comes from Coze itself."""
    content = b"<html>" if body is None else json.dumps(body).encode()
    return Reply(Answered(status, httpx.Headers({"x-tt-logid": "1", **headers}), content), 0.1)


def other(folder: Path, answer: Answer, *arguments: str, **given: str) -> Diagnosis:
    """A diagnosis of a way to what answers so to a request's head, and stands on this machine."""

    def serve(connection: socket.socket) -> None:
        head, _, body = head_of(connection).partition(b"\r\n\r\n")
        said = head.decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", said)
        while len(body) < int(length[1] if length else 0):  # one that closes over unread bytes is a reset
            body += connection.recv(65536)
        connection.sendall(answer(said))

    with serving(serve) as server:
        coze = {"COZE_API_BASE": f"http://127.0.0.1:{server.port}", "COZE_API_TOKEN": TOKEN}
        return diagnose(environment(folder, coze, **given), *arguments, cwd=folder)


@pytest.fixture
def way(folder: Path, sandbox: SandboxControl, monkeypatch: pytest.MonkeyPatch) -> Way:
    """To the sandbox, in this process."""
    for name, value in {**sandbox.environment, "BROKER_DATA_DIR": str(folder)}.items():
        monkeypatch.setenv(name, value)
    return Way(settings.load())


async def walked(way: Way, *more: Any) -> dict[str, Finding]:
    return {each.step.name: each.finding for each in await all_of(way, (*STEPS, *more))}


# --- an address with a path -------------------------------------------------------------------------------


def test_an_address_with_a_path_that_coze_does_not_have(folder: Path, sandbox: SandboxControl) -> None:
    """Every upload would end at a path that is none: ``/v1/v1/files/upload``."""
    env = environment(folder, sandbox.environment, COZE_API_BASE=f"{sandbox.url}/v1")
    diagnosis = diagnose(env, cwd=folder)
    assert (diagnosis.exit_code, diagnosis.report["failed_step"]) == (15, "http"), diagnosis.printed
    assert "no such path" in diagnosis["http"]["found"]
    assert "ends in /v1" in diagnosis["http"]["means"]
    assert "COZE_API_BASE" in diagnosis["http"]["do"]
    assert f"{sandbox.url}/v1" in diagnosis["settings"]["found"]
    assert diagnosis["credential"]["status"] == "skipped"


def test_an_address_without_a_path_is_not_said_to_have_one(folder: Path) -> None:
    diagnosis = other(folder, lambda _: said({"code": 4000, "msg": "no such path"}, 404))
    assert diagnosis.report["failed_step"] == "http"
    assert "ends in" not in diagnosis["http"]["means"]


async def test_a_token_endpoint_that_is_not_there_is_the_addresss_trouble(
    way: Way, sandbox: SandboxControl
) -> None:
    sandbox.fail(path="/api/permission/oauth2/token", headers={"X-Odd": "1"}, html=True, status=404)
    found = (await walked(way))["credential"]
    assert found.status == "failed"
    assert "COZE_API_BASE" in found.do
    assert "don't belong together" not in found.means


@pytest.mark.parametrize(
    ("body", "status"), [({"code": 4000, "msg": "no such path"}, 404), (COOKIE, 401), (INVALID, 200)]
)
def test_an_answer_that_is_no_token_endpoints_says_nothing_of_the_app(
    body: dict[str, Any], status: int
) -> None:
    """Studio's, say, which has no OAuth."""
    finding = credential.refused_app("COZE_JWT_OAUTH_…", Exchanged.by(reply(body, status)))
    assert finding.status == "failed"
    assert "no token endpoint" in finding.means
    assert "Studio has no OAuth" in finding.do


# --- a Studio, which has no look-up -----------------------------------------------------------------------


def studio(cookie: bytes) -> Answer:
    """It knows no look-up: such a path asks for a cookie, whatever the bearer."""

    def answer(head: str) -> bytes:
        if head.startswith("options"):
            return http_answer(b"", "text/plain", "204 No Content")
        if not head.startswith("post /v1/files/upload"):
            return cookie
        known = f"authorization: bearer {TOKEN}".lower() in head
        return said(STORED if known else {"code": 700012006, "msg": "authentication failed: no such key"})

    return answer


@pytest.mark.parametrize(
    "cookie",
    [said(COOKIE, 401, "X-Log-ID: 1"), said({**COOKIE, "code": 700012006}, 200, "X-Log-ID: 1")],
    ids=["now", "older"],
)
def test_a_studio_does_not_tell_by_a_look_up_and_by_an_upload_it_does(folder: Path, cookie: bytes) -> None:
    diagnosis = other(folder, studio(cookie), "--upload")
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis["credential"]["status"] == "warning"
    assert "--upload" in diagnosis["credential"]["do"]
    assert diagnosis["upload"]["facts"]["file_id"] == "7"


def test_a_token_that_a_studio_refuses_is_found_by_the_upload(folder: Path) -> None:
    diagnosis = other(folder, studio(said(COOKIE, 401)), "--upload", COZE_API_TOKEN=f"x{TOKEN}")
    assert (diagnosis["credential"]["status"], diagnosis.exit_code) == ("warning", 19), diagnosis.printed
    assert "credential is refused" in diagnosis["upload"]["means"]


def test_a_studio_is_not_said_to_know_an_apps_key(folder: Path, sandbox: SandboxControl) -> None:
    names = [name for name in sandbox.environment if "JWT_OAUTH" in name]
    app = {name: sandbox.environment[name] for name in names}
    diagnosis = other(folder, studio(said(COOKIE, 401)), **app)
    assert diagnosis["region"]["status"] == "warning", diagnosis.printed
    assert "knows the OAuth app's key" not in diagnosis.printed
    assert (diagnosis["credential"]["status"], diagnosis.exit_code) == ("failed", 17)
    assert "Studio has no OAuth" in diagnosis["credential"]["do"]


# --- what a look-up says of a credential ------------------------------------------------------------------


def of_token(answer: Reply, anonymous: Reply | None = None, *, has_other_region: bool = True) -> Finding:
    return credential.judged(
        "X", answer, is_app=False, has_other_region=has_other_region, anonymous=anonymous
    )


@pytest.mark.parametrize(
    ("body", "status", "expected", "words"),
    [
        ({"code": 0, "data": {}}, 200, "ok", "Coze takes it"),
        (NOT_FOUND, 200, "ok", "Coze takes it"),
        ({"code": 4000, "msg": "bad parameter"}, 400, "ok", "Coze takes it"),
        ({"code": 4000, "msg": "no such path"}, 404, "failed", "COZE_API_BASE"),
        ({"code": 4101, "msg": "no permission"}, 200, "ok", "or it is of the other region"),
        ({"code": 4100, "msg": "invalid"}, 401, "failed", "other region"),
        (INVALID, 401, "failed", "other region"),
        ({"code": 4102, "msg": "risk control"}, 200, "warning", "--upload"),
        ({"code": 4015, "msg": "?"}, 200, "warning", "--upload"),
        *(({"code": code}, 200, "failed", "credit") for code in (4011, 4019, 4020, 4022, 4027, 4028)),
        *(({"code": code}, 200, "failed", "trouble, or too much to do") for code in (4008, 4009, 4013, 5000)),
        ({"code": "4011"}, 200, "failed", "credit"),
        ({"code": 4200}, 503, "failed", "trouble"),
    ],
)
def test_what_a_look_up_says_of_a_credential(
    body: dict[str, Any], status: int, expected: str, words: str
) -> None:
    finding = of_token(reply(body, status), reply(INVALID, 401) if body != INVALID else None)
    assert finding.status == expected
    assert words in f"{finding.found} {finding.means} {finding.do}"


@pytest.mark.parametrize(
    "body",
    [{"code": 4101, "msg": "no permission"}, NOT_FOUND, {"code": 4000, "msg": "bad parameter"}, COOKIE],
)
def test_an_answer_that_comes_without_a_credential_too_says_nothing_of_one(body: dict[str, Any]) -> None:
    finding = of_token(reply(body), reply(body), has_other_region=False)
    assert finding.status == "warning"
    assert "--upload" in finding.do
    assert "takes it" not in finding.found


def test_that_a_token_is_invalid_is_believed_though_no_token_is_told_the_same() -> None:
    finding = of_token(reply(INVALID, 401), reply(INVALID, 401))
    assert finding.status == "failed"
    assert "expired, revoked" in finding.means


def test_where_there_is_no_other_region_none_is_named() -> None:
    finding = of_token(reply({"code": 4101, "msg": "no"}), reply(INVALID, 401), has_other_region=False)
    assert finding.status == "ok"
    assert "region" not in finding.found


# --- secrets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [30, 150, 158])
def test_a_token_of_no_known_kind_is_not_shown_in_part(folder: Path, at: int) -> None:
    """A server that sends it back just where its sentence is cut."""
    echo = said({"code": 4100, "msg": "." * at + TOKEN}, 401, LOGID, f"Server: {'.' * (at % 60)}{TOKEN}")
    diagnosis = other(folder, lambda head: echo if "bearer" in head else said(INVALID, 401))
    assert diagnosis.exit_code == 17, diagnosis.printed
    assert not [n for n in range(len(TOKEN) - 5) if TOKEN[n : n + 6] in diagnosis.printed]


def test_what_others_wrote_is_scrubbed_before_it_is_cut() -> None:
    assert shown("a" * 150 + TOKEN, hidden=(TOKEN,)).endswith("a(not shown")
    assert shown("a" * 150 + " pat_" + "b" * 40) == "a" * 150 + " pat_(reda"


@pytest.mark.parametrize("prefix", ["pat_", "sat_", "czs_", "czu_", "cztei_"])
def test_each_of_cozes_kinds_of_token_is_known(prefix: str) -> None:
    assert redacted(f"say {prefix}0123456789abcdef.") == f"say {prefix}(redacted)"


# --- the token exchange -----------------------------------------------------------------------------------


def test_each_app_is_asked_for_one_token_as_the_broker_asks(folder: Path, sandbox: SandboxControl) -> None:
    env = environment(folder, sandbox.environment, BROKER_TOKEN_TTL_SECONDS="77")
    assert diagnose(env, cwd=folder).exit_code == 0
    asked = [event["duration_seconds"] for event in sandbox.events(kind="token")]
    assert asked == [3600, 77]


async def test_an_exchange_that_brought_nothing_is_not_made_again(way: Way, sandbox: SandboxControl) -> None:
    sandbox.fail(path="/api/permission/oauth2/token", code="invalid_client", status=401, msg="disabled")
    found = await walked(way)
    assert found["region"].status == "warning"
    assert "knows" not in found["region"].found
    assert found["credential"].status == "failed"
    assert "don't belong together" in found["credential"].means
    server_app = way.settings.server_app
    assert server_app is not None
    assert len(sandbox.events(kind="token")) == 2  # one for each app


def token_said(**fields: Any) -> Exchanged:
    return Exchanged.by(reply({"access_token": "czs_abcdefgh", **fields}))


@pytest.mark.parametrize("fields", [{}, {"expires_in": "soon"}, {"expires_in": 900}], ids=str)
def test_a_token_that_the_broker_would_not_take_is_none(fields: dict[str, Any]) -> None:
    """``expires_in`` is a point in time, not a lifetime."""
    done = token_said(**fields)
    finding = credential.refused_app("X", done, clock_ahead_seconds=0)
    assert (done.token, finding.status) == (None, "failed")
    assert "can't be used" in finding.means
    assert "czs_abc" not in str(finding)


def test_a_token_with_time_left_is_one() -> None:
    done = token_said(expires_in=int(time.time()) + 900)
    assert done.token is not None
    assert done.token.value == "czs_abcdefgh"


@pytest.mark.parametrize(
    ("body", "status"),
    [({"error_code": "invalid_client", "error_message": "disabled"}, 401), (INVALID, 200), (None, 200)],
)
async def test_the_region_is_right_only_where_there_is_a_token(
    way: Way, body: dict[str, Any] | None, status: int
) -> None:
    finding = region.judged(way, Exchanged.by(reply(body, status)), is_known_elsewhere=None)
    assert finding.status == "warning"
    assert "knows" not in finding.found


# --- the clock --------------------------------------------------------------------------------------------

OF_TIME = {"error_code": "invalid_request", "error_message": "invalid jwt: expired"}


@pytest.mark.parametrize(("ahead", "blamed"), [(None, True), (11.0, True), (-11.0, True), (3.0, False)])
def test_the_clock_is_blamed_unless_it_was_seen_to_be_right(ahead: float | None, blamed: bool) -> None:
    finding = credential.refused_app("X", Exchanged.by(reply(OF_TIME, 400)), clock_ahead_seconds=ahead)
    assert finding.status == "failed"
    assert ("clock is wrong" in finding.means) is blamed
    assert ("NTP" in finding.do) is blamed


async def test_the_clock_that_was_measured_is_the_one_that_is_judged(
    way: Way, sandbox: SandboxControl
) -> None:
    sandbox.fail(path="/api/permission/oauth2/token", code="invalid_request", status=400, msg="jwt: expired")
    found = (await walked(way))["credential"]
    assert found.status == "failed"
    assert "clock is wrong" not in found.means


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_a_date_is_in_gmt_in_each_of_its_forms(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 9110 §5.6.7; the last one names no zone."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        assert clock_ahead_seconds(date, 784111777 + 5) == 5
    finally:
        monkeypatch.undo()
        time.tzset()


# --- the upload -------------------------------------------------------------------------------------------


async def test_a_byte_goes_with_each_credential(way: Way, sandbox: SandboxControl) -> None:
    found = (await walked(way, UPLOAD))["upload"]
    assert found.status == "ok"
    files = [found.facts["file_id"], found.facts["browser_file_id"]]
    assert len(set(files)) == 2
    uploads = sandbox.events(kind="upload", method="POST")
    assert [event["file_id"] for event in uploads] == files
    assert len({event["client_id"] for event in uploads}) == 2


async def test_an_app_of_the_browsers_that_may_not_upload_is_found(way: Way, sandbox: SandboxControl) -> None:
    uploads = {"path": "/v1/files/upload"}
    sandbox_faults = [{**uploads, "times": 1, "headers": {"X-Odd": "1"}}, {**uploads, "code": 4101}]
    httpx.put(f"{sandbox.url}/_sandbox/faults", json=sandbox_faults).raise_for_status()
    found = (await walked(way, UPLOAD))["upload"]
    assert found.status == "failed"
    assert "COZE_BROWSER_OAUTH" in found.found
    assert "uploadFile" in found.do
    assert found.facts["file_id"]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (429, 4013, "Wait"),
        (500, 5000, "Wait"),
        (200, 4008, "Wait"),
        (200, 4011, "account"),
        (200, 4101, "or is of the other region"),
        (200, 4102, "logid"),
        (404, 4000, "COZE_API_BASE"),
        (401, 700012006, "See the step credential"),
    ],
)
def test_what_helps_where_coze_refuses_the_byte(status: int, code: int, words: str) -> None:
    finding = upload.judged(reply({"code": code, "msg": "no"}, status), has_other_region=True)
    assert finding.status == "failed"
    assert words in f"{finding.means} {finding.do}"


def test_a_path_that_a_studio_does_not_have_is_no_matter_of_the_credential() -> None:
    """All of them ask for a cookie; so does an upload at ``/v1/v1/files/upload``."""
    finding = upload.judged(reply(COOKIE, 401))
    assert finding.status == "failed"
    assert "no such path" in finding.means
    assert "COZE_API_BASE, its path" in finding.do


async def test_a_warning_of_the_servers_credential_hides_nothing_of_the_browsers_app(
    way: Way, sandbox: SandboxControl
) -> None:
    lookups = {"path": "/v1/files/retrieve", "times": 1}
    faults = [{**lookups, "headers": {"X-Odd": "1"}}, {**lookups, "code": 4015}, {**lookups, "code": 4100}]
    httpx.put(f"{sandbox.url}/_sandbox/faults", json=faults).raise_for_status()
    found = (await walked(way))["credential"]
    assert found.status == "failed"
    assert "4015" in found.found
    assert "COZE_BROWSER_OAUTH_…; Coze refuses its token" in found.found
    assert "--upload" in found.do


# --- the direct route, and who answers --------------------------------------------------------------------


@pytest.mark.parametrize(("scan", "expected"), [("sensitive", "failed"), ("all", "warning")])
def test_cors_off_is_no_failure_where_everything_is_scanned(
    folder: Path, sandbox: SandboxControl, scan: str, expected: str
) -> None:
    """Nothing goes direct then."""
    sandbox.fail(path="/v1/files/upload", cors=False)
    scanner = {"BROKER_SCAN": scan, "BROKER_SCANNER": "clamd://127.0.0.1:3310"}
    diagnosis = diagnose(environment(folder, sandbox.environment, **scanner), cwd=folder)
    assert diagnosis["cors"]["status"] == expected, diagnosis.printed
    assert diagnosis.exit_code == (18 if expected == "failed" else 0)


PORTAL = {"code": 401, "msg": "please log in"}


@pytest.mark.parametrize(("headers", "expected"), [({}, "failed"), ({"x-tt-logid": "1"}, "ok")])
def test_a_code_alone_does_not_pass_for_one_of_cozes_own_hosts(
    way: Way, headers: dict[str, str], expected: str
) -> None:
    at_coze = Way(way.settings.model_copy(update={"coze_api_base": "https://api.coze.cn"}))
    content = json.dumps(PORTAL).encode()
    answer = Reply(Answered(401, httpx.Headers(headers), content), 0.1)
    finding = http.judged(at_coze, answer, time.time())
    assert finding.status == expected
    assert ("captive portal" in finding.means) is (expected == "failed")


def test_another_coze_is_not_asked_for_a_log_id(way: Way) -> None:
    answer = Reply(Answered(401, httpx.Headers(), json.dumps(COOKIE).encode()), 0.1)
    assert http.judged(way, answer, time.time()).status == "ok"


def test_a_redirect_may_be_a_studios_own(folder: Path) -> None:
    page = http_answer(b"", "text/plain", "302 Found", "Location: /login")
    diagnosis = other(folder, lambda _: page)
    assert diagnosis.exit_code == 15
    assert "check COZE_API_BASE" in diagnosis["http"]["do"]


# --- what is no answer --------------------------------------------------------------------------------------


NO_ANSWERS = {
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "cut": http_answer(b"{" * 9, "application/json")[:-5],
    "endless": http_answer(b"x" * 99_999, "text/plain"),
}


@pytest.mark.parametrize("kind", NO_ANSWERS)
def test_what_is_no_answer_in_http_is_told_without_a_word_of_uploads(folder: Path, kind: str) -> None:
    diagnosis = other(folder, lambda _: NO_ANSWERS[kind])
    step = diagnosis["http"]
    assert (diagnosis.exit_code, step["status"]) == (15, "failed"), diagnosis.printed
    told = f"{step['found']} {step['means']} {step['do']}"
    assert "no whole answer in HTTP" in told
    assert "COZE_API_BASE" in told
    assert not re.search("stored|upload|--timeout", told)
