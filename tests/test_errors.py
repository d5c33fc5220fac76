"""The tree of refusals, what outside errors become in it, and the answer to what nobody expected."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from httpx_aiohttp.transport import AIOHTTP_EXC_MAP
from hypothesis import example, given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from broker import errors
from broker.api import rendering
from broker.app import create_app
from broker.errors import (
    InternalError,
    MalformedRequest,
    MethodNotAllowed,
    MissingCredential,
    NotFound,
    OutcomeUnknown,
    Refusal,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
    tree,
)
from broker.settings import OAuthApp, Settings
from broker.transfer.outgoing import Sent
from broker.upstream.answers import judge, retry_after_seconds
from broker.upstream.breaker import Breaker
from broker.upstream.client import CLIENT_ERRORS, on_lost_error, refusal_for
from broker.upstream.guard import Guard
from broker.upstream.oauth import AccessToken, TokenExchange
from broker.upstream.pause import Pause
from tests.support.broker_process import PAGE_ORIGIN

# --- the tree -----------------------------------------------------------------------------------

DRAWN = re.compile(r"^[│ ]*[├└]── (\w+) +(\d{3})  +(yes)? +(\d+)$", re.MULTILINE)


def drawn() -> dict[str, tuple[int, bool, int]]:
    assert errors.__doc__
    return {
        name: (int(status), bool(retry), int(coze_code))
        for name, status, retry, coze_code in DRAWN.findall(errors.__doc__)
    }


def classes() -> Iterator[type[Refusal]]:
    return (refusal for refusal in tree() if refusal is not Refusal)


def test_the_tree_is_drawn_as_it_is() -> None:
    """In the same order, too."""
    there = {each.__name__: (each.status, each.retryable, each.coze_code) for each in classes()}
    assert drawn() == there
    assert list(drawn()) == list(there)


def test_a_branch_is_drawn_under_its_own_parent() -> None:
    assert errors.__doc__
    depth = {
        match[2]: len(match[1]) // 4
        for match in re.finditer(r"^([│ ]*[├└]── )(\w+)", errors.__doc__, re.MULTILINE)
    }
    assert all(depth[each.__name__] == len(each.__mro__) - len(Refusal.__mro__) for each in classes())


def test_every_code_is_one_refusal_s_own() -> None:
    codes = [each.code for each in tree()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("refusal", list(classes()), ids=lambda refusal: refusal.code)
def test_a_refusal_speaks_to_its_caller(refusal: type[Refusal]) -> None:
    """In a title and a whole sentence; what is for the log stays there."""
    assert refusal.sentence.endswith(".")
    assert not refusal.title.endswith(".")
    made = refusal(log="for the operator alone")
    for render in (rendering.problem, rendering.coze_envelope):
        assert "operator alone" not in str(render(made, "id"))
    assert refusal.retryable is False or refusal.status in (408, 409, 429, 502, 503, 504)


def test_retry_after_is_told_in_the_header_and_in_the_body() -> None:
    refusal = errors.UpstreamBusy(retry_after_seconds=7)
    assert refusal.headers == {"Retry-After": "7"}
    assert rendering.problem(refusal, "id")["retry_after_seconds"] == 7


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (HTTPException(404), NotFound),
        (HTTPException(405), MethodNotAllowed),
        (HTTPException(400), MalformedRequest),
        (KeyError("x"), InternalError),
        (MissingCredential(), MissingCredential),
    ],
)
def test_any_exception_becomes_a_refusal(error: Exception, refusal: type[Refusal]) -> None:
    assert type(rendering.as_refusal(error)) is refusal


# --- outside errors -----------------------------------------------------------------------------

KEY_URL = URL("http://coze.test")
KEY = ConnectionKey("coze.test", 1, True, True, None, None, None)

ARGUMENTS: tuple[tuple[type[Exception], tuple[Any, ...]], ...] = (
    (aiohttp.ClientConnectorCertificateError, (KEY, Exception("m"))),
    (aiohttp.ClientConnectorError, (KEY, OSError(1, "m"))),
    (aiohttp.ServerFingerprintMismatch, (b"x", b"y", "coze.test", 1)),
    (aiohttp.ClientResponseError, (aiohttp.RequestInfo(KEY_URL, "GET", CIMultiDictProxy(CIMultiDict())), ())),
    (Exception, ("m",)),
)
"""What the constructors ask for, the special before the general."""


def made(kind: type[Exception]) -> Exception:
    if kind is httpx.HTTPStatusError:
        request = httpx.Request("GET", "http://coze.test")
        return httpx.HTTPStatusError("m", request=request, response=httpx.Response(500))
    try:
        return kind()
    except TypeError:
        arguments = next(given for general, given in ARGUMENTS if issubclass(kind, general))
        return kind(*arguments)


def errors_of(module: Any, *roots: type[Exception]) -> list[type[Exception]]:
    found = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, roots)]
    return sorted(dict.fromkeys(found), key=lambda kind: kind.__name__)


HTTPX_ERRORS = errors_of(httpx, httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
AIOHTTP_ERRORS = [
    kind
    for kind in errors_of(aiohttp, aiohttp.ClientError)
    if not kind.__name__.startswith(("WS", "ClientProxy", "UnixClient"))
]
OS_ERRORS = [ConnectionRefusedError, ConnectionResetError, BrokenPipeError, TimeoutError, OSError]
OUTSIDE = [*HTTPX_ERRORS, *AIOHTTP_ERRORS, *OS_ERRORS]
OF_SENT: dict[Sent, set[type[Refusal]]] = {
    "nothing": {UpstreamUnreachable, UpstreamTimeout, UpstreamBadAnswer},
    "part": {UpstreamAborted},
    "all": {OutcomeUnknown},
}


@pytest.mark.parametrize("kind", OUTSIDE, ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}")
@pytest.mark.parametrize("sent", OF_SENT)
def test_every_outside_error_is_mapped(kind: type[Exception], sent: Sent) -> None:
    """What may be tried again depends on how much Coze had by then; the error's own words go to the log."""
    error = made(kind)
    assert isinstance(error, CLIENT_ERRORS)
    refusal = refusal_for(error, sent)
    assert type(refusal) in OF_SENT[sent]
    assert refusal.detail == type(refusal).sentence
    assert kind.__name__ in (refusal.log or "")


def test_all_of_httpx_is_looked_at() -> None:
    assert {httpx.ConnectTimeout, httpx.ReadError, httpx.RemoteProtocolError} < set(HTTPX_ERRORS)
    assert set(AIOHTTP_EXC_MAP.values()) <= set(HTTPX_ERRORS)
    assert len(AIOHTTP_ERRORS) > 15


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (httpx.ConnectTimeout("m"), UpstreamTimeout),
        (httpx.ConnectError("m"), UpstreamUnreachable),
        (TimeoutError(), UpstreamTimeout),
        (ConnectionRefusedError(), UpstreamUnreachable),
        (httpx.ReadError("m"), UpstreamBadAnswer),
    ],
)
def test_slow_is_told_from_unreachable(error: Exception, refusal: type[Refusal]) -> None:
    assert type(refusal_for(error)) is refusal


def test_a_broken_connection_is_no_timeout_though_the_transport_says_so() -> None:
    """httpx-aiohttp shows every ``ClientConnectionError`` as a connect timeout."""
    shown = httpx.ConnectTimeout("m")
    shown.__cause__ = aiohttp.ServerDisconnectedError()
    assert type(refusal_for(shown)) is UpstreamUnreachable


@given(st.integers(100, 599), st.binary(max_size=60) | st.sampled_from([b'{"code": 0', b"[]", b"null"]))
def test_any_answer_is_judged(status: int, content: bytes) -> None:
    with pytest.raises(Refusal):
        judge("upload", status, {}, content)


@given(
    st.text(max_size=40) | st.floats().map(str) | st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y"))
)
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Fri, 31 Dec 9999 23:59:59 +9999999999999999999")
@example("Fri, 31 Dec 9999 99999999999999999999:49:37 GMT")
def test_any_retry_after_is_a_minute_at_most(value: str) -> None:
    assert 1 <= retry_after_seconds(value) <= 60


UNUSABLE_TOKENS = {
    "no token": b'{"expires_in": 1}',
    "no expiry": b'{"access_token": "t"}',
    "a token that is null": b'{"access_token": null, "expires_in": 1}',
    "a token with a line end": b'{"access_token": "t\\r\\nX: y", "expires_in": 1}',
    "a lifetime for a point in time": b'{"access_token": "t", "expires_in": 900}',
    "an endless expiry": b'{"access_token": "t", "expires_in": Infinity}',
}


@pytest.mark.parametrize("content", UNUSABLE_TOKENS.values(), ids=UNUSABLE_TOKENS)
async def test_an_access_token_that_cannot_be_used(content: bytes) -> None:
    with pytest.raises(UpstreamBadAnswer):
        await exchanged(200, content)


@pytest.mark.parametrize("content", [b"[" * 60_000, b"<html>", b"[]", b"null", b"\xff"])
async def test_a_token_answer_that_is_none(content: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        await exchanged(502, content)


async def exchanged(status: int, content: bytes) -> AccessToken:
    """What comes of it when Coze answers a token request so."""
    app = OAuthApp("client", "kid", generate_private_key(65537, 2048))
    transport = httpx.MockTransport(lambda _: httpx.Response(status, stream=httpx.ByteStream(content)))
    async with httpx.AsyncClient(transport=transport, base_url="https://coze.test") as client:
        guard = Guard(
            Breaker("coze.test", failures=0, open_seconds=1), Pause(None, max_seconds=0), retry_seconds=0
        )
        return await TokenExchange(client, "coze.test", guard).exchange(app, duration_seconds=60)


# --- what nobody expected -----------------------------------------------------------------------


@pytest.fixture
def broken_app() -> ASGIApp:
    """The broker with two more paths, which fail."""
    settings = Settings(
        _env_file=None,
        coze_api_base="http://127.0.0.1:9",
        coze_api_token=SecretStr("pat_token-for-nothing"),
        broker_allowed_origins=(PAGE_ORIGIN,),
    )
    app = create_app(settings)

    async def fail(_: Request) -> Response:
        raise RuntimeError("words of the machine")

    app.router.routes[:0] = [Route("/fail", fail), Route("/v1/fail", fail)]

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {}}, receive, send)  # as a server does after the lifespan has begun

    return with_state


@pytest.mark.parametrize("path", ["/fail", "/v1/fail"])
async def test_an_unexpected_error_has_its_id_and_its_cors_headers(broken_app: ASGIApp, path: str) -> None:
    """Without them a browser shows the page nothing but a failed fetch."""
    transport = httpx.ASGITransport(broken_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://broker.test") as client:
        answer = await client.get(path, headers={"Origin": PAGE_ORIGIN})
    assert answer.status_code == 500
    assert answer.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
    assert answer.json()["code"] == (5000 if path.startswith("/v1") else InternalError.code)
    assert answer.headers["x-request-id"]
    assert "words of the machine" not in answer.text


async def test_an_error_that_aiohttp_told_nobody_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    on_lost_error(loop, {"message": "lost", "exception": aiohttp.ClientConnectionResetError("closing")})
    assert caplog.records == []
    on_lost_error(loop, {"message": "lost", "exception": ValueError("ours")})
    assert [record.message for record in caplog.records] != []
