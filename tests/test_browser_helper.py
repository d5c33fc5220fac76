"""The helper in a real Chromium, embedded by an app of another origin than the broker's and Coze's."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest
from playwright.sync_api import Browser, Route

from tests.support import needs
from tests.support.broker_process import Broker, running_broker
from tests.support.browser import Tab, chromium, tab
from tests.support.page_server import PageServer, Relay, serving_pages
from tests.support.sandbox_control import SandboxControl

STATIC = Path(__file__).parent.parent / "web" / "static"
MAX_HELPER_BYTES = 4096
UPLOAD = "/v1/files/upload"
LARGE = 10_000_000
MAX_UPLOAD = 50_000_000


def csv(size: int) -> bytes:
    """What ``embed.html`` makes a file of, unless told otherwise."""
    return (b"a,b\n1,2\n" * (size // 8 + 1))[:size]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def app_server() -> Iterator[PageServer]:
    with serving_pages() as server:
        yield server


@pytest.fixture(scope="module")
def line() -> Iterator[Relay]:
    relay = Relay()
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def module_broker(
    session_sandbox: SandboxControl,
    app_server: PageServer,
    line: Relay,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Broker]:
    """A broker that pages reach through ``line``, as they would reach it through a proxy."""
    folder = tmp_path_factory.mktemp("helper")
    settings = {
        "BROKER_ALLOWED_ORIGINS": app_server.origin,
        "BROKER_PUBLIC_URL": line.url,
        "BROKER_MAX_UPLOAD_BYTES": str(MAX_UPLOAD),
    }
    with running_broker(folder, session_sandbox.environment, **settings) as broker:
        line.target = ("127.0.0.1", int(broker.url.rpartition(":")[2]))
        app_server.broker = broker
        broker.extra["page_key"] = broker.create_key("--publishable", f"--origin={app_server.origin}")["key"]
        yield broker


@pytest.fixture
def broker(module_broker: Broker, sandbox: SandboxControl) -> Broker:
    return module_broker


class App:
    """The app's page, open in a tab."""

    def __init__(self, opened: Tab, server: PageServer, broker: Broker, relay: Relay) -> None:
        self.tab, self.server, self.broker, self.relay = opened, server, broker, relay
        self.open(f"{relay.url}/static/upload-to-coze.js")

    def open(self, module: str, server: PageServer | None = None) -> None:
        self.tab.page.goto(f"{(server or self.server).origin}/embed.html?module={module}")
        self.tab.page.wait_for_selector("html[data-ready]", state="attached")

    def upload(self, **options: Any) -> dict[str, Any]:
        """``uploadToCoze`` with these options; with the publishable key unless another credential is among
        them. Returns its result or error, and what it told of progress and routes.
        """
        if not options.get("ownBackEnd"):
            options.setdefault("publishableKey", self.broker.extra["page_key"])
        told: dict[str, Any] = self.tab.page.evaluate("options => window.upload(options)", options)
        return told


@pytest.fixture
def app(browser: Browser, app_server: PageServer, broker: Broker, line: Relay) -> Iterator[App]:
    app_server.forget()
    line.behave()
    with tab(browser) as opened:
        yield App(opened, app_server, broker, line)
        assert opened.own_complaints == []


def assert_refused(told: dict[str, Any], code: str, status: int = 0, *, retryable: bool = False) -> str:
    """The upload ended in this ``UploadError``; returns its sentence."""
    assert told["result"] is None
    error = told["error"]
    assert (error["name"], error["isUploadError"]) == ("UploadError", True)
    assert (error["code"], error["status"], error["retryable"]) == (code, status, retryable), error
    assert re.fullmatch(r".{10,}[.?]", error["message"])
    return str(error["message"])


def assert_stored(
    told: dict[str, Any], sandbox: SandboxControl, content: bytes, route: str
) -> dict[str, Any]:
    """The file is at Coze, once and whole."""
    assert told["error"] is None, told["error"]
    result: dict[str, Any] = told["result"]
    stored = sandbox.file(result["file_id"])
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    assert (result["bytes"], result["file_name"]) == (len(content), stored["file_name"])
    assert result["route"] == route
    assert len(sandbox.events(kind="upload", outcome="stored")) == 1
    return result


def assert_grows(told: dict[str, Any], total: int) -> None:
    """Progress starts at nothing, never falls, and says 100 once, at the end."""
    loaded = [each["loaded"] for each in told["progress"]]
    percents = [each["percent"] for each in told["progress"]]
    assert loaded == sorted(loaded)
    assert (loaded[0], loaded[-1]) == (0, total)
    assert percents == sorted(percents)
    assert (percents[-1], percents.count(100)) == (100, 1)
    assert {each["total"] for each in told["progress"]} == {total}


# --- the file itself ------------------------------------------------------------------------------


def test_the_helper_is_small() -> None:
    """What a page loads for it: at most 4 KiB on the wire."""
    assert len(gzip.compress((STATIC / "upload-to-coze.js").read_bytes(), 9)) <= MAX_HELPER_BYTES


@pytest.mark.parametrize("name", ["upload-to-coze.js", "page.js"])
def test_node_reads_it(name: str) -> None:
    subprocess.run([needs.executable("node"), "--check", STATIC / name], check=True)


def test_the_types_export_what_the_module_exports() -> None:
    """Interfaces and types have no counterpart at run time; all else has."""
    in_module = exports((STATIC / "upload-to-coze.js").read_text())
    in_types = exports((STATIC / "upload-to-coze.d.ts").read_text())
    assert in_module == in_types == {"class UploadError", "function uploadToCoze", "default uploadToCoze"}


def exports(source: str) -> set[str]:
    found = re.findall(
        r"^export (?:async )?(default|class|function|const|let|var) (\w+)", source, re.MULTILINE
    )
    return {f"{kind} {name}" for kind, name in found}


# --- the routes -----------------------------------------------------------------------------------


def test_a_small_file_goes_direct(app: App, sandbox: SandboxControl) -> None:
    told = app.upload(size=300_000)
    result = assert_stored(told, sandbox, csv(300_000), "direct")
    assert told["routes"] == [{"route": "direct", "reason": "small_file", "fallback": False}]
    assert receipt_of(result) == {"route": "direct", "bytes": 300_000, "file_name": "data.csv"}
    assert result["logid"] == sandbox.events(kind="upload", method="POST")[0]["logid"]
    stored = sandbox.file(result["file_id"])
    assert stored["client_id"] == sandbox.environment["COZE_BROWSER_OAUTH_CLIENT_ID"]
    assert app.tab.origins == {app.server.origin, app.relay.url, sandbox.url}
    assert_grows(told, 300_000)
    assert app.tab.complaints == []


def test_a_large_file_goes_through_the_broker(app: App, sandbox: SandboxControl) -> None:
    told = app.upload(size=LARGE)
    result = assert_stored(told, sandbox, csv(LARGE), "proxy")
    assert told["routes"] == [{"route": "proxy", "reason": "large_file", "fallback": False}]
    assert result["receipt"].count(".") == 2
    assert result["sha256"] == hashlib.sha256(csv(LARGE)).hexdigest()
    assert app.tab.origins == {app.server.origin, app.relay.url}
    assert_grows(told, LARGE)
    assert app.tab.complaints == []


def test_a_small_file_may_go_through_the_broker(
    app: App, sandbox: SandboxControl, subtests: pytest.Subtests
) -> None:
    wishes = ({"sensitive": True}, "sensitive"), ({"route": "proxy"}, "proxy_requested")
    for options, reason in wishes:
        with subtests.test(reason):
            sandbox.heal()
            told = app.upload(**options)
            assert_stored(told, sandbox, csv(8), "proxy")
            assert told["routes"] == [{"route": "proxy", "reason": reason, "fallback": False}]
            assert sandbox.url not in app.tab.origins


@pytest.mark.parametrize(("size", "route"), [(8, "direct"), (LARGE, "proxy")])
def test_the_apps_back_end_mints(app: App, sandbox: SandboxControl, size: int, route: str) -> None:
    """No key is in the page; what it asks its back end is what the broker is asked."""
    assert_stored(app.upload(size=size, ownBackEnd=True, subject="user-42"), sandbox, csv(size), route)
    (asked,) = app.tab.asked("/upload-token")
    assert asked.post_data_json == {
        "size": size,
        "file_name": "data.csv",
        "content_type": "text/csv",
        "subject": "user-42",
    }
    assert app.tab.asked("/token") == []


def test_a_name_of_any_script_arrives(app: App, sandbox: SandboxControl) -> None:
    name = "Résumé “标题” (1).csv"
    for route in ("auto", "proxy"):
        told = app.upload(name=name, route=route)
        assert sandbox.file(told["result"]["file_id"])["file_name"] == name


# --- the receipt of a direct upload -----------------------------------------------------------------


def receipt_of(result: dict[str, Any]) -> dict[str, Any]:
    """What the result's receipt says beyond the file's id, which is the result's."""
    claims = jwt.decode(result["receipt"], options={"verify_signature": False})
    assert claims["file_id"] == result["file_id"]
    return {name: claims[name] for name in ("route", "bytes", "file_name")}


def completions(app: App) -> list[str]:
    """The paths at which it asked for a receipt."""
    posts = [request for request in app.tab.requests if request.method == "POST"]
    return [path for path in (urlsplit(post.url).path for post in posts) if path.endswith("/complete")]


def test_a_page_with_its_own_back_end_gets_a_receipt_too(app: App) -> None:
    """For the user that the back end named."""
    told = app.upload(ownBackEnd=True, subject="user-42", name="标题 (1).csv")
    assert receipt_of(told["result"])["file_name"] == "标题 (1).csv"
    assert jwt.decode(told["result"]["receipt"], options={"verify_signature": False})["sub"] == "user-42"


def test_without_the_broker_a_direct_upload_is_an_upload_all_the_same(
    app: App, sandbox: SandboxControl
) -> None:
    """The line to it broke after the token came."""
    app.tab.page.route("**/uploads/*/complete", lambda route: route.abort())
    told = app.upload()
    result = assert_stored(told, sandbox, csv(8), "direct")
    assert result["receipt"] is None
    assert len(completions(app)) == 2
    assert_grows(told, 8)


def test_a_receipt_that_was_not_to_be_had_at_first_is_asked_for_again(
    app: App, sandbox: SandboxControl
) -> None:
    sandbox.fail(path="/v1/files/retrieve", code=4013, status=429, times=1, headers={"Retry-After": "1"})
    result = assert_stored(app.upload(), sandbox, csv(8), "direct")
    assert receipt_of(result)["route"] == "direct"


def test_a_receipt_that_is_refused_fails_no_upload(app: App, sandbox: SandboxControl) -> None:
    """Here Coze says that it has no such file."""
    sandbox.fail(path="/v1/files/retrieve", code=4200)
    result = assert_stored(app.upload(), sandbox, csv(8), "direct")
    assert result["receipt"] is None
    app.broker.last_record(completions(app)[0], code="file_mismatch")


def test_a_page_cannot_get_a_receipt_for_somebody_else_s_file(app: App, sandbox: SandboxControl) -> None:
    """It changes what the helper reports to the id of another file that the account holds."""
    other = assert_stored(app.upload(size=16), sandbox, csv(16), "direct")["file_id"]

    def lie(route: Route) -> None:
        route.continue_(post_data=json.dumps({"file_id": other}))

    sandbox.heal()
    app.tab.page.route("**/uploads/*/complete", lie)
    result = assert_stored(app.upload(), sandbox, csv(8), "direct")
    assert result["receipt"] is None
    assert app.broker.last_record(completions(app)[-1], code="file_mismatch")["file_id"] == other


def test_an_abort_while_the_receipt_is_awaited_changes_nothing(app: App, sandbox: SandboxControl) -> None:
    """The file is stored by then, and its file_id is worth more than the wait."""
    sandbox.fail(path="/v1/files/retrieve", delay_seconds=20)
    result = assert_stored(app.upload(abort="stored"), sandbox, csv(8), "direct")
    assert result["receipt"] is None


# --- fallback -------------------------------------------------------------------------------------


def test_where_coze_forbids_the_page_the_broker_steps_in(app: App, sandbox: SandboxControl) -> None:
    sandbox.fail(path=UPLOAD, cors=False, times=1)
    told = app.upload()
    assert_stored(told, sandbox, csv(8), "proxy")
    assert told["routes"] == [
        {"route": "direct", "reason": "small_file", "fallback": False},
        {"route": "proxy", "reason": "direct_unreachable", "fallback": True, "cause": "cors_blocked"},
    ]


def test_where_coze_has_trouble_the_broker_steps_in(
    app: App, sandbox: SandboxControl, subtests: pytest.Subtests
) -> None:
    faults: tuple[tuple[dict[str, Any], str], ...] = (
        ({"code": 4100, "status": 401}, "coze_4100"),
        ({"code": 4013, "status": 429}, "coze_4013"),
        ({"code": 5000}, "coze_5000"),
        ({"html": True}, "bad_answer"),
        ({"half_json": True}, "bad_answer"),
    )
    for fault, cause in faults:
        with subtests.test(str(fault)):
            sandbox.fail(path=UPLOAD, times=1, **fault)
            told = app.upload(ownBackEnd=True)
            assert told["result"]["route"] == "proxy"
            fallback = {"route": "proxy", "reason": "direct_failed", "fallback": True, "cause": cause}
            assert told["routes"][1:] == [fallback]


def test_a_file_that_coze_refuses_is_not_sent_again(
    app: App, sandbox: SandboxControl, subtests: pytest.Subtests
) -> None:
    for name, code, fault in (("a.csv", "coze_4303", {"code": 4303}), ("a.png", "coze_4000", {})):
        with subtests.test(name):
            sandbox.heal()
            if fault:
                sandbox.fail(path=UPLOAD, times=1, **fault)
            told = app.upload(name=name, type="", text="no picture")
            assert_refused(told, code, told["error"]["status"])
            (event,) = sandbox.events(kind="upload", method="POST")
            assert told["error"]["requestId"] == event["logid"]
            assert len(told["routes"]) == 1


# --- refusals, readable from another origin ---------------------------------------------------------


def test_an_empty_file_is_refused_before_anything_is_sent(app: App) -> None:
    assert_refused(app.upload(size=0), "empty_file")
    assert app.tab.asked("/token") == []


def test_without_a_credential_it_says_so(app: App) -> None:
    sentence = assert_refused(app.upload(publishableKey=""), "no_credential")
    assert "publishableKey" in sentence


def test_a_wrong_key_is_told_as_the_broker_tells_it(app: App) -> None:
    told = app.upload(publishableKey="cub_pk_" + "x" * 46)
    assert_refused(told, "invalid_credential", 401)
    assert app.broker.record(told["error"]["requestId"])["code"] == "invalid_credential"


def test_a_key_of_another_origin_is_told_too(app: App) -> None:
    """The broker allows the page's origin, the key does not."""
    told = app.upload(publishableKey=app.broker.publishable_key)
    assert_refused(told, "origin_not_allowed", 403)


def test_a_token_of_another_origin_is_told_too(app: App) -> None:
    app.server.same_token = app.broker.mint(origin="http://else.example", size=8, route="proxy")
    assert_refused(app.upload(ownBackEnd=True), "origin_not_allowed", 403)


def test_a_file_that_is_not_what_it_is_called_is_told_so(app: App, sandbox: SandboxControl) -> None:
    told = app.upload(name="a.png", type="", text="no picture", route="proxy")
    sentence = assert_refused(told, "file_content_mismatch", 415)
    assert sentence.startswith("The file is called a.png, but its content is text.")
    assert app.broker.record(told["error"]["requestId"])["code"] == "file_content_mismatch"
    assert sandbox.events(kind="upload") == []


@pytest.mark.parametrize("route", ["auto", "proxy"])
def test_a_type_that_is_not_taken_is_told_before_it_is_sent(
    app: App, sandbox: SandboxControl, route: str
) -> None:
    told = app.upload(name="a.txt", type="", text="words", route=route)
    assert ".txt" in assert_refused(told, "file_type_refused", 415)
    assert app.tab.asked("/proxy/upload") == []
    assert sandbox.events(kind="upload") == []


def test_a_file_over_the_brokers_limit_is_told_before_it_is_sent(app: App) -> None:
    told = app.upload(size=MAX_UPLOAD + 1)
    assert f"{MAX_UPLOAD:,} bytes" in assert_refused(told, "too_large", 413)
    assert app.tab.asked("/proxy/upload") == []


@pytest.mark.parametrize("size", [2_000_000, MAX_UPLOAD])
def test_an_early_refusal_is_read_and_not_lost(app: App, sandbox: SandboxControl, size: int) -> None:
    """The broker refuses by the length alone, while Chromium still sends."""
    app.server.asks_otherwise = {"size": 1000, "route": "proxy"}
    told = app.upload(size=size, ownBackEnd=True)
    assert_refused(told, "too_large", 413)
    assert app.broker.record(told["error"]["requestId"])["code"] == "too_large"
    assert sandbox.events(kind="upload") == []


# --- a broker that the page may not use -------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[PageServer]:
    """An origin that no broker allows."""
    with serving_pages() as server:
        yield server


def test_a_page_that_the_broker_does_not_allow_is_told_of_cors(app: App, stranger: PageServer) -> None:
    app.open("/upload-to-coze.js", stranger)
    sentence = assert_refused(app.upload(broker=app.relay.url), "cors_blocked", retryable=True)
    for part in ("CORS", app.relay.url, stranger.origin):
        assert part in sentence


def test_a_token_does_not_help_a_page_that_is_not_allowed(app: App, stranger: PageServer) -> None:
    stranger.broker = app.broker
    app.open("/upload-to-coze.js", stranger)
    told = app.upload(broker=app.relay.url, ownBackEnd=True, route="proxy")
    assert "CORS" in assert_refused(told, "cors_blocked", retryable=True)


def test_a_broker_that_is_down_is_told_the_same_way(app: App) -> None:
    """A browser does not say which of the two it was."""
    told = app.upload(broker="http://127.0.0.1:9", publishableKey="cub_pk_x")
    assert_refused(told, "cors_blocked", retryable=True)


# --- abort ----------------------------------------------------------------------------------------


def test_an_abort_before_the_start_sends_nothing(app: App, sandbox: SandboxControl) -> None:
    assert_refused(app.upload(abort="before"), "aborted")
    assert app.tab.asked("/token") == []


@pytest.mark.parametrize("route", ["direct", "proxy"])
def test_an_abort_midway_leaves_nothing_behind(app: App, sandbox: SandboxControl, route: str) -> None:
    app.tab.slow_down(4_000_000)
    told = app.upload(abort="during", size=4_000_000, route=route)
    assert_refused(told, "aborted")
    assert told["progress"][-1]["percent"] < 100
    (event,) = sandbox.wait_for(lambda: sandbox.events(kind="upload", method="POST", outcome="aborted"))
    assert event["file_id"] is None
    if route == "proxy":
        app.broker.last_record("/proxy/upload", code="client_left", status=499)


def test_an_abort_afterwards_changes_nothing(app: App, sandbox: SandboxControl) -> None:
    assert_stored(app.upload(abort="after"), sandbox, csv(8), "direct")


# --- again, or not --------------------------------------------------------------------------------


def test_what_the_broker_calls_retryable_is_sent_again(app: App, sandbox: SandboxControl) -> None:
    sandbox.fail(path=UPLOAD, status=503, code=5000, times=1, headers={"Retry-After": "1"})
    told = app.upload(route="proxy", ownBackEnd=True)
    assert told["error"] is None
    assert len({token["access_token"] for token in app.server.minted}) == 2
    assert [event["outcome"] for event in sandbox.events(kind="upload")] == ["faulted", "stored"]


def test_it_gives_up_in_the_end(app: App, sandbox: SandboxControl) -> None:
    sandbox.fail(path=UPLOAD, code=5000)
    assert_refused(app.upload(route="proxy"), "upstream_failed", 502, retryable=True)
    assert len(app.tab.asked("/proxy/upload")) == 3


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_connection_that_breaks_midway_is_tried_again(
    app: App, sandbox: SandboxControl, breaks: int
) -> None:
    app.relay.keeps_alive = False
    app.relay.break_uploads(breaks, after_bytes=1_000_000)
    app.tab.slow_down(4_000_000)
    told = app.upload(size=3_000_000, route="proxy", ownBackEnd=True)
    assert_stored(told, sandbox, csv(3_000_000), "proxy")
    assert app.relay.uploads == len({token["access_token"] for token in app.server.minted}) == breaks + 1
    assert len(told["routes"]) == 1


def test_an_answer_that_coze_lost_is_not_asked_for_twice(app: App, sandbox: SandboxControl) -> None:
    sandbox.fail(path=UPLOAD, abort_answer=True)
    told = app.upload(route="proxy")
    assert_refused(told, "outcome_unknown", 504)
    assert len(sandbox.events(kind="upload")) == 1


@pytest.mark.parametrize("lost", [1, 2])
def test_an_answer_that_the_line_lost_is_asked_for_again(
    app: App, sandbox: SandboxControl, lost: int
) -> None:
    """The file goes again, under its Idempotency-Key, and is not stored again."""
    app.relay.keeps_alive = False
    app.relay.swallow_answer(lost)
    told = app.upload(size=3_000_000, route="proxy")
    assert_stored(told, sandbox, csv(3_000_000), "proxy")
    assert (app.relay.uploads, len(sandbox.events(kind="upload"))) == (lost + 1, 1)


def test_when_every_answer_is_lost_the_page_hears_that_nobody_knows(
    app: App, sandbox: SandboxControl
) -> None:
    app.relay.keeps_alive = False
    app.relay.swallow_answer(3)
    told = app.upload(size=3_000_000, route="proxy")
    assert "Coze may hold it" in assert_refused(told, "outcome_unknown")
    assert (app.relay.uploads, len(sandbox.events(kind="upload", outcome="stored"))) == (3, 1)


@pytest.mark.parametrize("own_back_end", [False, True])
def test_what_the_browser_sends_again_by_itself_is_not_stored_twice(
    app: App, sandbox: SandboxControl, own_back_end: bool
) -> None:
    """Chromium repeats a POST where a connection breaks that was used before; the page sees one answer."""
    app.upload(route="proxy")  # leaves a connection that will be used again
    sandbox.heal()
    app.relay.behave()
    app.relay.swallow_answer()
    told = app.upload(size=3_000_000, route="proxy", ownBackEnd=own_back_end)
    assert_stored(told, sandbox, csv(3_000_000), "proxy")
    assert app.relay.uploads == 2
    assert len(sandbox.events(kind="upload")) == 1


def test_a_token_that_the_app_hands_out_twice_is_named(app: App, sandbox: SandboxControl) -> None:
    """No story of a lost answer: it is known which token this page has used, and nothing is sent."""
    app.server.same_token = app.broker.mint(origin=app.server.origin, size=8, route="proxy")
    assert_stored(app.upload(ownBackEnd=True), sandbox, csv(8), "proxy")
    assert "getToken" in assert_refused(app.upload(ownBackEnd=True), "token_used")
    assert len(app.tab.asked("/proxy/upload")) == 1


def test_a_back_end_that_refuses_is_quoted(app: App) -> None:
    """An app may pass the broker's refusal on as it came."""
    app.server.same_token = {"code": "too_large", "detail": "The file is too large.", "status": 413}
    assert_refused(app.upload(ownBackEnd=True), "too_large", 413)
