"""What the broker says to Coze, and hears: nothing of a caller's, no cookie, no redirect, never too much."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import UpstreamBadAnswer
from broker.upstream.client import MAX_ANSWER_BYTES, USER_AGENT, call
from broker.upstream.way import Way
from tests.support.authority import make_authority
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.network import Coze, Network, answer

SMALL = b"a,b"
STORED = {"code": 0, "data": {"id": "7", "bytes": len(SMALL), "file_name": "a.csv", "created_at": 1}}
TOKEN = "sat_" + "t0ken" * 8


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@pytest.fixture
def coze(session_coze: Coze) -> Coze:
    session_coze.requests.clear()
    session_coze.reply = answer(STORED)
    return session_coze


@pytest.fixture(scope="module")
def session_coze() -> Coze:
    return Coze()


@pytest.fixture(scope="module")
def url(network: Network, session_coze: Coze) -> str:
    return f"http://127.0.0.1:{network.serve(session_coze)}"


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with Way().client(url, connect_timeout_seconds=5, read_timeout_seconds=5) as client:
        yield client


@pytest.fixture(scope="module")
def own_broker(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    given = {"COZE_API_BASE": url, "COZE_API_TOKEN": TOKEN}
    with running_broker(tmp_path_factory.mktemp("broker"), given) as broker:
        yield broker


async def test_a_connection_is_kept(client: httpx.AsyncClient, coze: Coze) -> None:
    before = coze.connections
    for _ in range(5):
        await call(client, "GET", "/")
    assert coze.connections == before + 1


@pytest.mark.parametrize("offered", [("h2", "http/1.1"), ("h2",), ()])
async def test_http_1_1_is_all_that_is_spoken(
    network: Network, tmp_path: Path, offered: tuple[str, ...]
) -> None:
    """A server that would rather have HTTP/2 is spoken to in HTTP/1.1."""
    authority, server = make_authority(tmp_path), Coze()
    port = network.serve(server, authority.context("127.0.0.1", alpn=offered))
    way = Way(ca_file=authority.file)
    url = f"https://127.0.0.1:{port}"
    async with way.client(url, connect_timeout_seconds=5, read_timeout_seconds=5) as client:
        assert (await call(client, "GET", "/")).status == 200
    assert server.protocols == ["http/1.1" if "http/1.1" in offered else None]


async def test_a_cookie_is_not_kept(client: httpx.AsyncClient, coze: Coze) -> None:
    """One caller's would go out with the next caller's request."""
    coze.reply = answer({}, "Set-Cookie: session=1; Path=/", "Set-Cookie: other=2; Max-Age=9999")
    for _ in range(3):
        await call(client, "GET", "/")
    assert [request["cookie"] for request in coze.requests] == [None] * 3
    assert dict(client.cookies) == {}


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_redirect_is_not_followed(
    client: httpx.AsyncClient, coze: Coze, network: Network, status: str, method: str
) -> None:
    """Neither on the same host nor to another, which would get the credential."""
    other = Coze()
    coze.reply = answer({}, f"Location: http://127.0.0.1:{network.serve(other)}/", status=status)
    answered = await call(client, method, "/", headers={"Authorization": "Bearer x"})
    assert str(answered.status) in status
    assert (len(coze.requests), other.connections) == (1, 0)


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
@pytest.mark.parametrize("status", ["302 x", "307 x"])
def test_an_upload_that_is_redirected_has_failed(
    own_broker: Broker, coze: Coze, network: Network, path: str, status: str
) -> None:
    other = Coze(answer(STORED))
    port = network.serve(other)
    coze.reply = answer(STORED, f"Location: http://127.0.0.1:{port}/v1/files/upload", status=status)
    response = upload(own_broker, path)
    assert response.status_code == 502
    assert str(port) not in response.text
    assert other.connections == 0


async def test_an_answer_is_read_as_far_as_answers_go(client: httpx.AsyncClient, coze: Coze) -> None:
    coze.reply = answer(b"x" * MAX_ANSWER_BYTES)
    assert len((await call(client, "GET", "/")).content) == MAX_ANSWER_BYTES
    coze.reply = answer(b"x" * (MAX_ANSWER_BYTES + 1))
    with pytest.raises(UpstreamBadAnswer):
        await call(client, "GET", "/")


async def test_a_packed_answer_is_not_unpacked(client: httpx.AsyncClient, coze: Coze) -> None:
    """A few packed kilobytes can be gigabytes; none are asked for."""
    coze.reply = answer(b"\x1f\x8b not unpacked", "Content-Encoding: gzip")
    assert (await call(client, "GET", "/")).content == b"\x1f\x8b not unpacked"
    assert coze.requests[0]["accept-encoding"] == "identity"


def upload(broker: Broker, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
    files = {"file": ("a.csv", SMALL)}
    given = {**broker.auth(), "Origin": PAGE_ORIGIN, **(headers or {})}
    return httpx.post(broker.url + path, files=files, headers=given)


FOREIGN: dict[str, str] = {
    "Cookie": "session=canary",
    "Proxy-Authorization": "Basic canary",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Host": "canary.example",
    "Forwarded": "for=canary",
    "Via": "1.1 canary",
    "Referer": "https://canary.example/",
    "User-Agent": "canary/1",
    "X-Canary": "canary",
    "X-Coze-Api-Base": "https://canary.example",
    "X-Http-Method-Override": "DELETE",
    "Accept-Language": "canary",
    "TE": "trailers",
    "Connection": "keep-alive, X-Canary",
    "Keep-Alive": "timeout=9",
    "Content-Language": "canary",
}


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
def test_nothing_of_a_caller_s_headers_goes_on(own_broker: Broker, coze: Coze, path: str) -> None:
    """The headers to Coze are built from nothing: these, and no others."""
    response = upload(own_broker, path, FOREIGN)
    assert response.status_code == 200, response.text
    (request,) = coze.requests
    assert {name for name, _ in request.headers} == {
        *("host", "user-agent", "accept", "accept-encoding", "authorization", "content-type"),
        *("content-length",),
    } | ({"connection"} if request["connection"] else set())
    assert request["authorization"] == f"Bearer {TOKEN}"
    assert request["user-agent"] == USER_AGENT
    assert request["connection"] in (None, "keep-alive")
    assert own_broker.secret_key not in str(request)
    assert "canary" not in str(request)


UPSTREAM_OF_A_CALLER: dict[str, dict[str, Any]] = {
    "query": {"params": {"base_url": "{}", "upload_url": "{}", "callback": "{}", "host": "{}"}},
    "headers": {"headers": {"X-Coze-Api-Base": "{}", "X-Upstream": "{}", "X-Forwarded-Host": "{}"}},
    "host": {"headers": {"Host": "{}"}},
    "fields": {"data": {"base_url": "{}", "callback_url": "{}", "url": "{}"}},
}


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
@pytest.mark.parametrize("case", UPSTREAM_OF_A_CALLER)
def test_no_request_says_where_coze_is(
    own_broker: Broker, coze: Coze, network: Network, path: str, case: str
) -> None:
    """Whatever a caller names is not connected to."""
    other = Coze(answer(STORED))
    address = f"127.0.0.1:{network.serve(other)}"
    ((kind, given),) = UPSTREAM_OF_A_CALLER[case].items()
    value = address if case == "host" else f"http://{address}"
    asked: dict[str, Any] = {kind: {name: text.format(value) for name, text in given.items()}}
    asked["headers"] = {**own_broker.auth(), **asked.get("headers", {})}
    response = httpx.post(own_broker.url + path, files={"file": ("a.csv", SMALL)}, **asked)
    assert other.connections == 0
    assert response.status_code in (200, 400, 421, 422), response.text
    assert len(coze.requests) == (response.status_code == 200)
