"""Coze is down, busy, or knows the broker no more: what callers get, Coze hears and the operator reads."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import (
    Refusal,
    TokenUsed,
    UpstreamBadAnswer,
    UpstreamCredentialRefused,
    UpstreamCredentialReplaced,
    UpstreamDown,
    UpstreamFailed,
    UpstreamLimit,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.left_behind import snapshot
from tests.support.raw_http import (
    Connection,
    Received,
    ScriptedUpstream,
    answer,
    form,
    head,
    part,
    read_request,
)
from tests.support.redis import RedisServer
from tests.support.refusals import CLIENT, DROP_IN, PROXY, assert_refused
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for

ORIGIN = {"Origin": PAGE_ORIGIN}
TOKEN = "/api/permission/oauth2/token"
RETRIEVE = "/v1/files/retrieve"
SMALL = b"a,b"
LARGE = b"some,line\n" * 4_000_000
OPEN_SECONDS = 1.5
STORED = {"code": 0, "data": {"id": "7", "bytes": len(SMALL), "created_at": 1, "file_name": "a.csv"}}
PAT = {"COZE_API_TOKEN": "pat_of_the_tests"}
BREAKS = {"BROKER_BREAKER_FAILURES": "3", "BROKER_BREAKER_OPEN_SECONDS": str(OPEN_SECONDS)}

Reply = Callable[[Received], bytes | None]
"""What to answer to a request; None to close instead."""


class SmallCoze(ScriptedUpstream):
    """Answers one path after another as it is told to, and remembers what it was asked."""

    def __post_init__(self) -> None:
        self.requests: list[Received] = []
        self.reply: Reply = lambda _: answer(STORED)
        super().__post_init__()
        self.script = self._converse

    def asked(self, path: str) -> list[Received]:
        return [request for request in self.requests if path_of(request) == path]

    def _converse(self, connection: socket.socket) -> None:
        request = read_bodiless(connection) or read_request(connection)
        self.requests.append(request)
        content = self.reply(request)
        if content is not None:
            connection.sendall(content)


def read_bodiless(connection: socket.socket) -> Received | None:
    """A GET, whole; None, and nothing is read, for any other."""
    if connection.recv(4, socket.MSG_PEEK) != b"GET ":
        return None
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    return Received(data.partition(b"\r\n\r\n")[0])


def path_of(request: Received) -> str:
    return request.head.split(b" ", 2)[1].decode().partition("?")[0]


@pytest.fixture
def coze() -> Iterator[SmallCoze]:
    coze = SmallCoze()
    yield coze
    coze.close()


@contextmanager
def in_front_of(coze: ScriptedUpstream, folder: Path, **settings: str) -> Iterator[Broker]:
    with running_broker(folder, {"COZE_API_BASE": coze.url, **PAT}, **settings) as broker:
        yield broker


def upload(broker: Broker, content: bytes = SMALL, credential: str | None = None) -> httpx.Response:
    headers = broker.auth(credential) | ORIGIN
    return CLIENT.post(broker.url + PROXY, files={"file": ("a.csv", content)}, headers=headers)


def mint(broker: Broker, **asked: Any) -> httpx.Response:
    asked = {"size": len(SMALL), "route": "proxy", **asked}
    return CLIENT.post(f"{broker.url}/token", json=asked, headers=broker.auth() | ORIGIN)


def retrieve(broker: Broker) -> httpx.Response:
    url = f"{broker.url}{RETRIEVE}?file_id=7"
    return CLIENT.get(url, headers=broker.auth() | ORIGIN)


def lines_of_the_breaker(broker: Broker) -> list[str]:
    return [line["event"] for line in broker.log_lines() if line["event"].startswith("coze is")]


def open_breaker(broker: Broker) -> None:
    wait_for(lambda: upload(broker).json().get("code") == UpstreamDown.code)


# --- the breaker ----------------------------------------------------------------------------------------


def test_while_coze_is_down_all_are_told_so_at_once_and_then_it_is_tried_again(
    coze: SmallCoze, folder: Path
) -> None:
    with in_front_of(coze, folder, **BREAKS) as broker:
        token = mint(broker).json()["access_token"]
        with coze.gone():
            assert_refused(broker, upload(broker), UpstreamUnreachable)  # three tries are three failures
            began = time.monotonic()
            for refused in (upload(broker), upload(broker, credential=token), mint(broker), retrieve(broker)):
                path = DROP_IN if refused.request.url.path.startswith("/v1") else PROXY
                assert_refused(broker, refused, UpstreamDown, path)
                assert 1 <= int(refused.headers["retry-after"]) <= OPEN_SECONDS + 1
            assert time.monotonic() - began < OPEN_SECONDS, "nobody waited"
        wait_for(lambda: mint(broker).status_code == 200)
        assert upload(broker, credential=token).status_code == 200, "it was not spent"
        assert lines_of_the_breaker(broker) == ["coze is down", "coze is tried again", "coze is back"]
        (down,) = (line for line in broker.log_lines() if line["event"] == "coze is down")
        assert (down["upstream"], down["level"]) == (coze.url.removeprefix("http://"), "warning")
        assert "upstream_unreachable" in down["detail"]


def test_a_probe_that_fails_opens_it_again(coze: SmallCoze, folder: Path) -> None:
    with in_front_of(coze, folder, **BREAKS) as broker, coze.gone():
        open_breaker(broker)

        def is_open_again() -> bool:
            upload(broker)
            return lines_of_the_breaker(broker) == ["coze is down", "coze is tried again", "coze is down"]

        wait_for(is_open_again)
        assert_refused(broker, upload(broker), UpstreamDown)


def page(status: str) -> Reply:
    return lambda _: answer(b"<h1>words of a gateway</h1>", status)


def says(status: str, code: int) -> Reply:
    return lambda _: answer({"code": code, "msg": "m"}, status)


OPENS: dict[str, Reply] = {
    "a gateway's 502": page("502 Bad Gateway"),
    "503": page("503 Service Unavailable"),
    "an error of Coze's own": says("500 Internal Server Error", 5000),
    "HTML where JSON should be": page("200 OK"),
    "a yes without a file": lambda _: answer({"code": 0, "data": {}}),
    "closes": lambda _: None,
}


@pytest.mark.parametrize("reply", OPENS.values(), ids=OPENS)
def test_what_opens_it(coze: SmallCoze, folder: Path, reply: Reply) -> None:
    coze.reply = reply
    with in_front_of(coze, folder, BROKER_UPSTREAM_RETRY_SECONDS="0", **BREAKS) as broker:
        codes = [upload(broker).json()["code"] for _ in range(4)]
        assert UpstreamDown.code not in codes[:3]
        assert codes[3] == UpstreamDown.code
        assert len(coze.requests) == 3


def test_a_coze_that_stops_answering_opens_it(coze: SmallCoze, folder: Path) -> None:
    """Its time-outs are the upload's own, and end it from outside."""

    def never(_: Received) -> None:
        coze.released.wait(10)

    coze.reply = never
    with in_front_of(coze, folder, BROKER_READ_TIMEOUT_SECONDS="0.3", **BREAKS) as broker:
        answers = [upload(broker) for _ in range(4)]
        assert [each.status_code for each in answers] == [504, 504, 504, 503]


KEEPS_CLOSED: dict[str, Reply] = {
    "401": page("401 Unauthorized"),
    "a code of a credential": says("200 OK", 4100),
    "a permission": says("200 OK", 4101),
    "a bad file": says("200 OK", 4304),
    "too large": page("413 Content Too Large"),
    "another size": lambda _: answer({"code": 0, "data": {"id": "7", "bytes": 1}}),
    "a firewall's 403": page("403 Forbidden"),
    "429": page("429 Too Many Requests"),
    "no credit": says("200 OK", 4028),
}


@pytest.mark.parametrize("reply", KEEPS_CLOSED.values(), ids=KEEPS_CLOSED)
def test_what_does_not_open_it(coze: SmallCoze, folder: Path, reply: Reply) -> None:
    coze.reply = reply
    with in_front_of(coze, folder, **BREAKS) as broker:
        for _ in range(6):
            assert upload(broker).json()["code"] != UpstreamDown.code
        assert lines_of_the_breaker(broker) == []


def test_another_size_does_not_say_that_coze_is_back(coze: SmallCoze, folder: Path) -> None:
    """Nor that it is down: it answered, and something on the way may have had a hand in the file."""
    with in_front_of(coze, folder, **BREAKS) as broker:
        with coze.gone():
            open_breaker(broker)
        coze.reply = lambda _: answer({"code": 0, "data": {"id": "7", "bytes": 1}})
        wait_for(lambda: upload(broker).json()["code"] == UpstreamBadAnswer.code)
        for _ in range(6):
            assert_refused(broker, upload(broker), UpstreamBadAnswer)
        assert lines_of_the_breaker(broker) == ["coze is down", "coze is tried again"]
        coze.reply = lambda _: answer(STORED)
        assert upload(broker).status_code == 200
        assert lines_of_the_breaker(broker)[-1] == "coze is back"


def test_callers_that_leave_do_not_open_it(coze: SmallCoze, folder: Path) -> None:
    with in_front_of(coze, folder, **BREAKS) as broker:
        headers = [*broker.auth().items(), ("Content-Type", "text/csv"), ("Content-Length", "1000000")]
        for number in range(6):
            with Connection(broker.url) as connection:
                connection.send(head(PROXY, headers) + b"x" * 500_000)
                wait_for(lambda: coze.connections > number)  # noqa: B023 - called at once
        broker.last_record(PROXY, code="client_left")
        assert upload(broker).status_code == 200
        assert lines_of_the_breaker(broker) == []


def test_a_direct_token_that_opens_it_is_no_token_for_the_broker(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, **BREAKS) as broker, coze.gone():
        refused = mint(broker, route="direct")
        assert_refused(broker, refused, UpstreamDown)
        assert "retry-after" in refused.headers


def test_a_token_endpoint_that_never_answers_opens_it(folder: Path, sandbox: SandboxControl) -> None:
    """A page is not kept waiting for as long as Coze may take; that it took too long counts all the same."""
    with running_broker(folder, sandbox.environment, BROKER_BREAKER_FAILURES="1") as broker:
        sandbox.fail(path=TOKEN, never_answer=True)
        began = time.monotonic()
        assert_refused(broker, mint(broker, route="direct"), UpstreamDown)
        assert time.monotonic() - began < 15
        assert lines_of_the_breaker(broker) == ["coze is down"]


def test_a_direct_token_that_the_probes_leave_no_room_for_is_no_token_for_the_broker(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    """Three slow uploads find out whether Coze is back: whoever comes meanwhile is told to come later."""
    coze.reply = by_path(exchange=tokens_issued())
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    settings = {"BROKER_BREAKER_FAILURES": "3", "BROKER_BREAKER_OPEN_SECONDS": "3"}
    with running_broker(folder, environment, **settings) as broker, ThreadPoolExecutor(3) as threads:
        assert upload(broker).status_code == 200
        with coze.gone():
            open_breaker(broker)
        wait_for(lambda: mint(broker).status_code == 200)
        decided = threading.Event()

        def late(_: Received) -> bytes:
            decided.wait(10)
            return answer(STORED)

        coze.reply = by_path(exchange=tokens_issued(), upload=late)
        asked = len(coze.asked(DROP_IN))
        probes = [threads.submit(upload, broker) for _ in range(3)]
        wait_for(lambda: len(coze.asked(DROP_IN)) == asked + 3)
        refused = mint(broker, route="direct")
        decided.set()
        assert_refused(broker, refused, UpstreamDown)
        assert [probe.result().status_code for probe in probes] == [200] * 3


def test_a_clock_that_is_wrong_does_not_open_it(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    """By it Coze's tokens are over when they come; the operator is told where to look."""
    coze.reply = by_path(exchange=tokens_issued(-60))
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, BROKER_BREAKER_FAILURES="1") as broker:
        for _ in range(2):
            refused = upload(broker)
            assert_refused(broker, refused, UpstreamBadAnswer)
        assert "clock" in broker.record(refused.headers["x-request-id"])["log"]
        assert lines_of_the_breaker(broker) == []


def test_no_access_token_is_taken_to_live_for_longer_than_any_does(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    coze.reply = by_path(exchange=tokens_issued(10**9))
    with running_broker(folder, {**sandbox.environment, "COZE_API_BASE": coze.url}) as broker:
        granted = mint(broker, route="direct").json()
        assert granted["route"] == "direct"
        assert granted["expires_in"] <= 86_400


# --- repeating ------------------------------------------------------------------------------------------


def after_failures(count: int, content: bytes, failure: bytes | None = None) -> Reply:
    """Fail so often, then answer."""
    left = iter(range(count))
    return lambda _: failure if next(left, None) is not None else content


def test_the_token_exchange_is_repeated_with_a_fresh_assertion(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    issued = answer({"access_token": "czs_of_the_tests", "expires_in": int(time.time()) + 3600})
    exchange = after_failures(
        2, issued, answer({"error_code": "internal_error"}, "500 Internal Server Error")
    )
    coze.reply = lambda request: exchange(request) if path_of(request) == TOKEN else answer(STORED)
    with running_broker(folder, {**sandbox.environment, "COZE_API_BASE": coze.url}) as broker:
        assert upload(broker).status_code == 200
    assertions = [request.headers["authorization"].removeprefix("Bearer ") for request in coze.asked(TOKEN)]
    assert len({claims_of(assertion)["jti"] for assertion in assertions}) == len(assertions) == 3


def claims_of(jwt: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(jwt.split(".")[1] + "=="))
    return claims


LOOKUP_FAILURES: dict[str, bytes | None] = {
    "closes": None,
    "5xx": answer({"code": 5000}, "500 Internal Server Error"),
    "503": answer(b"", "503 Service Unavailable", ["Retry-After: 1"]),
    "429": answer(b"", "429 Too Many Requests", ["Retry-After: 1"]),
}


@pytest.mark.parametrize("failure", LOOKUP_FAILURES.values(), ids=LOOKUP_FAILURES)
def test_a_lookup_is_repeated(coze: SmallCoze, folder: Path, failure: bytes | None) -> None:
    coze.reply = after_failures(2, answer(STORED), failure)
    with in_front_of(coze, folder) as broker:
        began = time.monotonic()
        assert retrieve(broker).status_code == 200
        assert len(coze.asked(RETRIEVE)) == 3
        wants_wait = failure is not None and b"Retry-After" in failure
        assert time.monotonic() - began > 2 or not wants_wait


@pytest.mark.parametrize("budget", ["0", "5"])
def test_nothing_is_repeated_beyond_the_budget(coze: SmallCoze, folder: Path, budget: str) -> None:
    """Nor is longer waited than it lasts, whatever Retry-After asks for."""
    coze.reply = lambda _: answer(b"", "503 Service Unavailable", ["Retry-After: 30"])
    with in_front_of(coze, folder, BROKER_UPSTREAM_RETRY_SECONDS=budget) as broker:
        began = time.monotonic()
        refused = retrieve(broker)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert time.monotonic() - began < 5
        assert len(coze.requests) == 1


@pytest.mark.parametrize(("budget", "lookups"), [("4", 1), ("10", 2)])
def test_the_calls_of_one_request_have_one_budget(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path, budget: str, lookups: int
) -> None:
    """The token exchange took two seconds and more of it, and the lookup would take as much again."""
    issued = answer({"access_token": "czs_of_the_tests", "expires_in": int(time.time()) + 3600})
    busy = answer({}, "503 Service Unavailable", ["Retry-After: 2"])
    replies = {TOKEN: after_failures(1, issued, busy), RETRIEVE: after_failures(1, answer(STORED), busy)}
    coze.reply = lambda request: replies[path_of(request)](request)
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, BROKER_UPSTREAM_RETRY_SECONDS=budget) as broker:
        assert retrieve(broker).status_code == (503 if lookups == 1 else 200)
    assert (len(coze.asked(TOKEN)), len(coze.asked(RETRIEVE))) == (2, lookups)


def test_a_lookup_whose_answer_drips_is_a_time_out(coze: SmallCoze, folder: Path) -> None:
    """Each byte comes in time, the whole does not."""

    def drip(connection: socket.socket) -> None:
        read_bodiless(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not coze.released.wait(0.1):
            connection.sendall(b" ")

    coze.does(drip)
    short = {"BROKER_READ_TIMEOUT_SECONDS": "1", "BROKER_CONNECT_TIMEOUT_SECONDS": "1"}
    with in_front_of(coze, folder, BROKER_UPSTREAM_RETRY_SECONDS="0", **short) as broker:
        assert_refused(broker, retrieve(broker), UpstreamTimeout, DROP_IN)


def test_without_a_budget_an_upload_goes_once(coze: SmallCoze, folder: Path) -> None:
    coze.reply = says("500 Internal Server Error", 5000)
    with in_front_of(coze, folder, BROKER_UPSTREAM_RETRY_SECONDS="0") as broker:
        assert_refused(broker, upload(broker), UpstreamFailed)
        assert len(coze.requests) == 1


# --- the credential -------------------------------------------------------------------------------------

STALE: dict[str, dict[str, Any]] = {
    "401": {"status": 401, "html": True},
    "4100": {"status": 200, "code": 4100},
    "700012006": {"status": 200, "code": 700012006},
}


@pytest.mark.parametrize("fault", STALE.values(), ids=STALE)
def test_a_small_file_goes_again_with_another_access_token(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any]
) -> None:
    assert upload(broker).status_code == 200
    await_replaceable()
    sandbox.heal()
    sandbox.fail(path=DROP_IN, times=1, **fault)
    token = mint(broker).json()["access_token"]
    assert upload(broker, credential=token).status_code == 200
    assert len(sandbox.events(kind="token", outcome="issued")) == 1
    assert len(sandbox.events(kind="upload")) == 2


@pytest.mark.parametrize("fault", STALE.values(), ids=STALE)
def test_a_lookup_goes_again_with_another_access_token(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any]
) -> None:
    file_id = upload(broker).json()["file_id"]
    await_replaceable()
    sandbox.heal()
    sandbox.fail(path=RETRIEVE, times=1, **fault)
    url = f"{broker.url}{RETRIEVE}?file_id={file_id}"
    assert CLIENT.get(url, headers=broker.auth()).status_code == 200
    assert len(sandbox.events(kind="token", outcome="issued")) == 1


def await_replaceable() -> None:
    """A token that replaced a refused one is not replaced within the next second."""
    time.sleep(1)


ONCE: dict[str, tuple[dict[str, Any], bytes]] = {
    "a permission that is missing": ({"status": 200, "code": 4101}, SMALL),
    "401 for a permission": ({"status": 401, "code": 4101}, SMALL),
    "401 for a permission, of a large file": ({"status": 401, "code": 4101}, LARGE),
}


@pytest.mark.parametrize(("fault", "content"), ONCE.values(), ids=ONCE)
def test_what_another_token_does_not_help_goes_once(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any], content: bytes
) -> None:
    sandbox.fail(path=DROP_IN, times=1, **fault)
    assert_refused(broker, upload(broker, content), UpstreamCredentialRefused)
    assert len(sandbox.events(kind="upload")) == 1


@pytest.mark.parametrize("fault", STALE.values(), ids=STALE)
def test_a_large_file_whose_token_was_replaced_may_be_sent_again(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any]
) -> None:
    """Its bytes are gone, and the next one goes with another token."""
    assert upload(broker).status_code == 200
    await_replaceable()
    sandbox.heal()
    sandbox.fail(path=DROP_IN, times=1, **fault)
    assert_refused(broker, upload(broker, LARGE), UpstreamCredentialReplaced)
    assert len(sandbox.events(kind="upload")) == 1
    assert upload(broker, LARGE).status_code == 200


def test_a_large_file_is_not_to_be_sent_again_where_even_a_fresh_token_is_refused(
    broker: Broker, sandbox: SandboxControl
) -> None:
    """However much time is between them. One that Coze took before is another matter."""
    assert upload(broker).status_code == 200
    await_replaceable()
    sandbox.fail(path=DROP_IN, status=401, code=4100)
    assert_refused(broker, upload(broker, LARGE), UpstreamCredentialReplaced)
    for _ in range(2):
        await_replaceable()
        assert_refused(broker, upload(broker, LARGE), UpstreamCredentialRefused)
    sandbox.heal()
    assert upload(broker, LARGE).status_code == 200
    await_replaceable()
    sandbox.fail(path=DROP_IN, times=1, status=401, code=4100)
    assert_refused(broker, upload(broker, LARGE), UpstreamCredentialReplaced)


def test_a_large_file_that_coze_refuses_for_good_is_not_to_be_sent_again(
    coze: SmallCoze, folder: Path
) -> None:
    """There is no other token than the operator's."""
    coze.reply = says("401 Unauthorized", 4100)
    with in_front_of(coze, folder) as broker:
        assert_refused(broker, upload(broker, LARGE), UpstreamCredentialRefused)


def tokens_issued(lifetime_seconds: int = 3600) -> Reply:
    """One after another: ``czs_1``, ``czs_2`` and so on."""
    number = itertools.count(1)

    def issue(_: Received) -> bytes:
        expires_at = int(time.time()) + lifetime_seconds
        return answer({"access_token": f"czs_{next(number)}", "expires_in": expires_at})

    return issue


def by_path(**replies: Reply) -> Reply:
    """What to answer to an exchange, a lookup and an upload; a yes where nothing is said."""
    names = {TOKEN: "exchange", RETRIEVE: "lookup", DROP_IN: "upload"}

    def reply(request: Received) -> bytes | None:
        told = replies.get(names[path_of(request)])
        return answer(STORED) if told is None else told(request)

    return reply


def test_who_waited_for_a_turn_goes_with_the_token_that_is_good_by_then(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    """A lookup learns meanwhile that the one from before is not."""
    stale = after_failures(1, answer(STORED), answer({"code": 4100}, "401 Unauthorized"))
    coze.reply = by_path(exchange=tokens_issued(), lookup=stale)
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, BROKER_UPSTREAM_UPLOADS_PER_SECOND="0.25") as broker:
        assert upload(broker).status_code == 200
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(upload, broker, LARGE)
            wait_for(lambda: snapshot(broker)["uploads_running"])
            assert retrieve(broker).status_code == 200
            waiting.result()
        first, second = (request.headers["authorization"] for request in coze.asked(DROP_IN))
    assert (first, second) == ("Bearer czs_1", "Bearer czs_2")


def test_a_failed_exchange_is_not_repeated_as_part_of_the_upload(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    """Three tries are three, not three times three."""
    failure = answer({"error_code": "internal_error"}, "500 Internal Server Error", ["Retry-After: 1"])
    coze.reply = by_path(exchange=lambda _: failure)
    with running_broker(folder, {**sandbox.environment, "COZE_API_BASE": coze.url}) as broker:
        assert_refused(broker, upload(broker), UpstreamFailed)
    assert len(coze.asked(TOKEN)) == 3


def test_an_exchange_is_waited_for_as_long_as_it_may_be_repeated(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    failure = answer({"error_code": "internal_error"}, "500 Internal Server Error", ["Retry-After: 4"])
    exchange, issued = after_failures(1, b"", failure), tokens_issued()
    coze.reply = by_path(exchange=lambda request: exchange(request) or issued(request))
    short = {"BROKER_CONNECT_TIMEOUT_SECONDS": "1", "BROKER_READ_TIMEOUT_SECONDS": "1"}
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, **short) as broker:
        assert upload(broker).status_code == 200


def test_a_lookup_is_not_repeated_with_another_token_beyond_the_budget(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path
) -> None:
    stale = after_failures(1, answer(STORED), answer({"code": 4100}, "401 Unauthorized"))
    coze.reply = by_path(exchange=tokens_issued(), lookup=stale)
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, BROKER_UPSTREAM_RETRY_SECONDS="0") as broker:
        assert_refused(broker, retrieve(broker), UpstreamCredentialReplaced, DROP_IN)
        assert len(coze.asked(RETRIEVE)) == 1
        assert retrieve(broker).status_code == 200


def test_a_missing_permission_costs_no_access_token(broker: Broker, sandbox: SandboxControl) -> None:
    """The token that Coze knows is kept, and one that it does not know a moment later is still replaced."""
    assert upload(broker).status_code == 200
    await_replaceable()
    sandbox.heal()
    for _ in range(3):
        sandbox.fail(path=DROP_IN, times=1, status=403, code=4101)
        assert_refused(broker, upload(broker), UpstreamCredentialRefused)
    assert sandbox.events(kind="token") == []
    sandbox.fail(path=DROP_IN, times=1, **STALE["4100"])
    assert upload(broker).status_code == 200


def test_a_token_that_is_never_taken_is_tried_twice(broker: Broker, sandbox: SandboxControl) -> None:
    """And however many uploads learn it, Coze is not asked for a new one by each."""
    sandbox.fail(path=DROP_IN, status=401, code=700012006)
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: upload(broker), range(20)))
    assert {each.json()["code"] for each in answers} == {UpstreamCredentialRefused.code}
    assert len(sandbox.events(kind="token")) <= 10
    assert len(sandbox.events(kind="upload")) <= 40


def test_a_failed_exchange_is_told_to_all_who_wait_for_it(folder: Path, sandbox: SandboxControl) -> None:
    with running_broker(folder, sandbox.environment) as broker:
        sandbox.fail(path=TOKEN, status=400, code="invalid_client", delay_seconds=0.5)
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: upload(broker), range(20)))
        assert {each.json()["code"] for each in answers} == {UpstreamCredentialRefused.code}
        assert len(sandbox.events(kind="token")) <= 2
        sandbox.heal()
        wait_for(lambda: upload(broker).status_code == 200)


NOT_COZE_S: dict[str, tuple[dict[str, Any], type[Refusal]]] = {
    "403 of an upload": ({"path": DROP_IN, "status": 403, "html": True}, UpstreamRefused),
    "403 of an exchange": ({"path": TOKEN, "status": 403, "html": True}, UpstreamRefused),
    "404 of an exchange": ({"path": TOKEN, "status": 404, "html": True}, UpstreamRefused),
    "a redirect of an exchange": ({"path": TOKEN, "redirect": "https://a.example/"}, UpstreamBadAnswer),
    "400 of an exchange": ({"path": TOKEN, "status": 400, "html": True}, UpstreamBadAnswer),
}


@pytest.mark.parametrize(("fault", "refusal"), NOT_COZE_S.values(), ids=NOT_COZE_S)
def test_a_no_that_is_not_in_coze_s_words_says_nothing_of_the_credential(
    folder: Path, sandbox: SandboxControl, fault: dict[str, Any], refusal: type[Refusal]
) -> None:
    """A firewall or a portal on the way: the operator is not sent to look for a wrong key."""
    sandbox.fail(**fault)
    with running_broker(folder, sandbox.environment) as broker:
        refused = upload(broker)
        assert_refused(broker, refused, refusal)
        log = broker.record(refused.headers["x-request-id"])["log"]
    assert "no JSON" in log
    assert "not in Coze's words" in log


# --- a pause, and turns ---------------------------------------------------------------------------------

TOO_MUCH: dict[str, dict[str, Any]] = {
    "429": {"status": 429, "html": True},
    "4013": {"status": 200, "code": 4013},
}


@pytest.mark.parametrize("fault", TOO_MUCH.values(), ids=TOO_MUCH)
def test_what_one_process_is_told_slows_down_the_other(
    folder: Path, sandbox: SandboxControl, redis_server: RedisServer, fault: dict[str, Any]
) -> None:
    shared = {"REDIS_URL": redis_server.url, "BROKER_UPSTREAM_PAUSE_SECONDS": "30"}
    with (
        running_broker(folder / "one", sandbox.environment, **shared) as one,
        running_broker(folder / "other", sandbox.environment, **shared) as other,
    ):
        assert upload(other).status_code == 200
        sandbox.fail(path=DROP_IN, times=1, headers={"Retry-After": "3"}, **fault)
        refused = upload(one)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")
        (told,) = (event["at"] for event in sandbox.events(kind="upload", outcome="faulted"))
        assert upload(other).status_code == 200
        assert sandbox.events(kind="upload", outcome="stored")[-1]["at"] - told > 2.5
        assert [line["event"] for line in one.log_lines()].count("coze asked for a pause") == 1


def test_who_would_wait_too_long_for_the_end_of_a_pause_is_told_when_it_is(
    folder: Path, sandbox: SandboxControl
) -> None:
    settings = {"BROKER_UPSTREAM_PAUSE_SECONDS": "20", "BROKER_UPSTREAM_WAIT_SECONDS": "1"}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        token = mint(broker).json()["access_token"]
        sandbox.fail(path=DROP_IN, times=1, status=429, headers={"Retry-After": "3600"})
        assert upload(broker).headers["retry-after"] == "60"
        began = time.monotonic()
        for credential in (broker.secret_key, token):
            refused = upload(broker, credential=credential)
            assert_refused(broker, refused, UpstreamLimit)
            assert 10 <= int(refused.headers["retry-after"]) <= 20
        assert time.monotonic() - began < 5
        assert len(sandbox.events(kind="upload")) == 1
        assert mint(broker).json()["route"] == "proxy"


@pytest.mark.parametrize(("pause_seconds", "status"), [(3, 200), (20, 429)])
def test_who_needs_an_access_token_waits_for_the_end_of_a_pause_like_all_others(
    coze: SmallCoze, sandbox: SandboxControl, folder: Path, pause_seconds: int, status: int
) -> None:
    """And is told of it in the same way. These tokens are not good for long enough to be kept."""
    busy = answer({"code": 4013}, "429 Too Many Requests", [f"Retry-After: {pause_seconds}"])
    uploads = after_failures(1, answer(STORED), busy)
    coze.reply = by_path(exchange=tokens_issued(30), upload=uploads)
    environment = {**sandbox.environment, "COZE_API_BASE": coze.url}
    with running_broker(folder, environment, BROKER_UPSTREAM_PAUSE_SECONDS="30") as broker:
        assert upload(broker).status_code == 503
        asked, began = len(coze.requests), time.monotonic()
        last = upload(broker)
        assert last.status_code == status
        if status == UpstreamLimit.status:
            assert_refused(broker, last, UpstreamLimit)
            assert 10 <= int(last.headers["retry-after"]) <= pause_seconds
            assert len(coze.requests) == asked
        else:
            assert time.monotonic() - began > pause_seconds - 1


def test_a_slow_exchange_is_not_taken_from_the_patience_for_a_turn(
    folder: Path, sandbox: SandboxControl
) -> None:
    """One upload a second, two at once, and an exchange for longer than anybody would wait for a turn."""
    settings = {"BROKER_UPSTREAM_UPLOADS_PER_SECOND": "1", "BROKER_UPSTREAM_WAIT_SECONDS": "2"}
    sandbox.fail(path=TOKEN, times=1, delay_seconds=3)
    with (
        running_broker(folder, sandbox.environment, **settings) as broker,
        ThreadPoolExecutor(2) as threads,
    ):
        answers = list(threads.map(lambda _: upload(broker), range(2)))
    assert [each.status_code for each in answers] == [200, 200]


def test_a_token_that_was_used_costs_no_turn(folder: Path, sandbox: SandboxControl) -> None:
    """One upload in four seconds: whoever comes with it again waits for none, and holds up nobody."""
    settings = {"BROKER_UPSTREAM_UPLOADS_PER_SECOND": "0.25", "BROKER_UPSTREAM_WAIT_SECONDS": "6"}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        token = mint(broker).json()["access_token"]
        assert upload(broker, credential=token).status_code == 200
        for _ in range(3):
            assert_refused(broker, upload(broker, credential=token), TokenUsed)
        assert upload(broker).status_code == 200
        first, last = (event["at"] for event in sandbox.events(kind="upload"))
        assert last - first < 7


def test_who_is_refused_in_a_pause_is_told_of_the_queue_behind_it_too(
    folder: Path, sandbox: SandboxControl
) -> None:
    """And at once. One upload in five seconds: the first turn is there in five, the next in ten."""
    settings = {"BROKER_UPSTREAM_UPLOADS_PER_SECOND": "0.2", "BROKER_UPSTREAM_WAIT_SECONDS": "7.5"}
    settings["BROKER_UPSTREAM_PAUSE_SECONDS"] = "30"
    with running_broker(folder, sandbox.environment, **settings) as broker:
        sandbox.fail(path=DROP_IN, times=1, status=429, headers={"Retry-After": "5"})
        assert upload(broker).status_code == 503
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: (upload(broker), time.time()), range(4)))
        (stored,) = sandbox.events(kind="upload", outcome="stored")
        refused = [(each, at) for each, at in answers if each.status_code != 200]
        assert len(refused) == 3
        for answer, at in refused:
            assert_refused(broker, answer, UpstreamLimit)
            assert 8 <= int(answer.headers["retry-after"]) <= 11
            assert at < stored["at"], "nobody waited for the end of the pause to hear it"


def test_without_redis_each_process_pauses_by_itself(
    folder: Path, sandbox: SandboxControl, redis_server: RedisServer
) -> None:
    shared = {"REDIS_URL": redis_server.url, "BROKER_UPSTREAM_PAUSE_SECONDS": "30"}
    with (
        running_broker(folder / "one", sandbox.environment, **shared) as one,
        running_broker(folder / "other", sandbox.environment, **shared) as other,
    ):
        redis_server.kill()
        sandbox.fail(path=DROP_IN, times=1, status=429, headers={"Retry-After": "2"})
        assert upload(one).status_code == 503
        assert upload(other).status_code == 200
        assert upload(one).status_code == 200
        first, second, third = (event["at"] for event in sandbox.events(kind="upload"))
        assert third - first > 1.5 > second - first


def test_after_a_pause_uploads_still_take_turns(folder: Path, sandbox: SandboxControl) -> None:
    """Two a second, also of those whose turns came while nobody might go."""
    settings = {"BROKER_UPSTREAM_UPLOADS_PER_SECOND": "2", "BROKER_UPSTREAM_WAIT_SECONDS": "15"}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        assert upload(broker).status_code == 200, "the app's token is there"
        sandbox.fail(path=DROP_IN, times=1, status=429, headers={"Retry-After": "2"})
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _: upload(broker), range(6)))
        assert sorted(each.status_code for each in answers) == [200] * 5 + [503]
        stored = sorted(event["at"] for event in sandbox.events(kind="upload", outcome="stored"))
        assert all(third - first > 0.5 for first, third in zip(stored, stored[2:], strict=False)), stored


@pytest.mark.parametrize("with_redis", [False, True], ids=["memory", "Redis"])
def test_whoever_leaves_while_it_waits_leaves_its_turn_to_the_next(
    folder: Path, sandbox: SandboxControl, redis_server: RedisServer, *, with_redis: bool
) -> None:
    """One upload in four seconds: were its turn lost, the last one would come after eight."""
    settings = {"BROKER_UPSTREAM_UPLOADS_PER_SECOND": "0.25", "BROKER_UPSTREAM_WAIT_SECONDS": "6"}
    settings |= {"REDIS_URL": redis_server.url} if with_redis else {}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        assert upload(broker).status_code == 200
        body = form(part(SMALL))
        fields = [*broker.auth().items(), ("Content-Length", str(len(body)))]
        fields.append(("Content-Type", "multipart/form-data; boundary=boundary-of-the-tests"))
        with Connection(broker.url) as connection:
            connection.send(head(PROXY, fields) + body)
            wait_for(lambda: snapshot(broker)["uploads_running"])
        broker.last_record(PROXY, code="client_left")
        answers: list[httpx.Response] = []
        threading.Thread(target=lambda: answers.append(upload(broker))).start()
        wait_for(lambda: answers)
        assert answers[0].status_code == 200
        first, last = (event["at"] for event in sandbox.events(kind="upload"))
        assert 3.5 < last - first < 7
