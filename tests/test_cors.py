"""What pages may ask and read (CORS): those of listed origins, on every path, and of refusals too."""

from __future__ import annotations

import httpx
import pytest

from broker.app import CORS_ANSWER_HEADERS, CORS_REQUEST_HEADERS, ROUTES
from tests.support import raw_http
from tests.support.broker_process import PAGE_ORIGIN, Broker

PATHS = [*(route.path.format(upload_id="x", key_id="x") for route in ROUTES), "//v1/files/upload", "/nothing"]
OTHER_ORIGINS = [
    *(
        "null",
        "*",
        "http://evil.example",
        PAGE_ORIGIN.upper(),
        f"{PAGE_ORIGIN}/",
        f"{PAGE_ORIGIN}.evil.example",
    ),
    *(
        PAGE_ORIGIN.replace("http:", "https:"),
        PAGE_ORIGIN.removesuffix(":3000"),
        f"{PAGE_ORIGIN}, {PAGE_ORIGIN}",
    ),
]


def asked_before(broker: Broker, path: str, origin: str = PAGE_ORIGIN, **more: str) -> httpx.Response:
    """What a browser asks before it sends a request with our headers."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ",".join(sorted(name.lower() for name in CORS_REQUEST_HEADERS)),
        **more,
    }
    return httpx.options(broker.url + path, headers=headers)


@pytest.mark.parametrize("path", PATHS)
def test_a_listed_page_may_ask_on_every_path(broker: Broker, path: str) -> None:
    answer = asked_before(broker, path)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_any_other_page_may_neither_ask_nor_read(broker: Broker, origin: str) -> None:
    for answer in (
        asked_before(broker, "/token", origin),
        httpx.post(f"{broker.url}/token", json={"size": 1}, headers={"Origin": origin, **broker.auth()}),
    ):
        assert "access-control-allow-origin" not in answer.headers
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("private", [True, False])
def test_a_broker_in_a_private_network_is_open_to_listed_pages_of_a_public_one(
    broker: Broker, private: bool
) -> None:
    """Chromium asks for that beforehand, and takes a 400 for a no to all of it."""
    asked = {"Access-Control-Request-Private-Network": "true"} if private else {}
    answer = asked_before(broker, "/token", **asked)
    assert answer.status_code == 200
    assert answer.headers.get("access-control-allow-private-network") == ("true" if private else None)
    assert asked_before(broker, "/token", "http://evil.example", **asked).status_code == 400


def below_the_app(broker: Broker, *headers: tuple[str, str]) -> httpx.Response:
    """The answer to what is no request at all."""
    with raw_http.Connection(broker.url) as connection:
        connection.send(raw_http.head("/v1/files/upload", [*headers, ("Content-Length", "-1")]))
        return connection.answer()


def test_what_may_be_read_of_an_answer_may_be_read_of_every_refusal(broker: Broker) -> None:
    answers = [
        below_the_app(broker, ("Origin", PAGE_ORIGIN)),
        httpx.post(f"{broker.url}/token", headers={"Origin": PAGE_ORIGIN}),
        httpx.get(f"{broker.url}/nothing", headers={"Origin": PAGE_ORIGIN}),
        httpx.post(f"{broker.url}/token", json={"size": 1}, headers={"Origin": PAGE_ORIGIN, **broker.auth()}),
    ]
    assert [answer.status_code for answer in answers] == [400, 401, 404, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE_ORIGIN
        assert set(answer.headers["access-control-expose-headers"].split(", ")) == set(CORS_ANSWER_HEADERS)


def test_what_is_no_request_tells_other_pages_nothing(broker: Broker) -> None:
    for origin in OTHER_ORIGINS:
        answer = below_the_app(broker, ("Origin", origin))
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"
