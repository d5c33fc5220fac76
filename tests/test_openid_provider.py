"""The provider behind ID tokens: a real one, its key rotation, and every way in which it can be away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from broker.auth import provider_keys
from broker.auth.oidc import IdTokens, make_id_tokens
from broker.auth.provider_keys import ProviderKeys
from broker.errors import IdentityProviderUnavailable, InvalidCredential
from tests.support.clock import Clock
from tests.support.key_server import (
    AUDIENCE,
    DISCOVERY,
    KEYS,
    SUBJECT,
    KeyServer,
    new_key,
    send,
    send_json,
    serving_keys,
)
from tests.support.log_lines import LogLines
from tests.support.openid_provider import OpenIdProvider, running_openid_provider
from tests.support.waiting import until

KEY = new_key("ES256", "key-1")
NEXT_KEY = new_key("ES256", "key-2")


# --- a real provider ------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
async def test_a_user_who_logged_in_is_known_by_the_id_token(
    openid_provider: OpenIdProvider, algorithm: str
) -> None:
    client_id = f"app-{algorithm}"
    token = openid_provider.id_token("anna", client_id)
    id_tokens = make_id_tokens(openid_provider.issuer, client_id)
    assert id_tokens.claims_to_be_from(token)
    assert (await id_tokens.verify(token)).subject == "anna"
    await id_tokens.aclose()


async def test_an_id_token_for_another_app_of_the_provider_is_refused(
    openid_provider: OpenIdProvider,
) -> None:
    id_tokens = make_id_tokens(openid_provider.issuer, "app-RS256")
    with pytest.raises(InvalidCredential):
        await id_tokens.verify(openid_provider.id_token("anna", "app-ES256"))
    await id_tokens.aclose()


async def test_an_access_token_of_the_provider_is_no_id_token(openid_provider: OpenIdProvider) -> None:
    """Though issuer, audience and subject are the same, and the signature is good."""
    tokens = openid_provider.log_in("anna", client_id="app-ES256", resource=openid_provider.api)
    id_tokens = make_id_tokens(openid_provider.issuer, "app-ES256")
    assert id_tokens.claims_to_be_from(tokens["access_token"])
    with pytest.raises(InvalidCredential):
        await id_tokens.verify(tokens["access_token"])
    assert (await id_tokens.verify(tokens["id_token"])).subject == "anna"
    await id_tokens.aclose()


async def test_the_provider_changes_its_keys_and_goes_away() -> None:
    """New keys are found when they are first met, old ones forgotten; known ones outlive the provider."""
    clock = Clock()
    with running_openid_provider() as provider:
        id_tokens = id_tokens_by(clock, provider.issuer, "app-ES256")
        before = provider.id_token("anna")
        await id_tokens.verify(before)
        provider.use_new_keys()
        clock.now += provider_keys.REFRESH_SECONDS
        after = provider.id_token("anna")
        assert (await id_tokens.verify(after)).subject == "anna"
        with pytest.raises(InvalidCredential):
            await id_tokens.verify(before)
        provider.stop()
        clock.now += provider_keys.MAX_FRESH_SECONDS
        assert (await id_tokens.verify(after)).subject == "anna"
        await id_tokens.aclose()


async def test_a_provider_that_comes_late_is_found() -> None:
    clock = Clock()
    with running_openid_provider() as provider:
        token = provider.id_token("anna")
        provider.stop()
        id_tokens = id_tokens_by(clock, provider.issuer, "app-ES256")
        with pytest.raises(IdentityProviderUnavailable):
            await id_tokens.verify(token)
        with running_openid_provider(urlsplit(provider.issuer).port or 0) as back:
            token = back.id_token("anna")
            clock.now += provider_keys.RETRY_SECONDS
            assert (await id_tokens.verify(token)).subject == "anna"
        await id_tokens.aclose()


# --- how often it is asked ------------------------------------------------------------------------


def id_tokens_by(
    clock: Clock, issuer: str, audience: str = AUDIENCE, *, fetch_seconds: float = 10.0
) -> IdTokens:
    client = provider_keys.make_client()
    keys = ProviderKeys(client, issuer, fetch_seconds=fetch_seconds, ticks=clock)
    return IdTokens(keys, issuer=issuer, audience=audience)


@pytest.fixture
def provider() -> Iterator[KeyServer]:
    with serving_keys(KEY) as provider:
        yield provider


@pytest.fixture
async def id_tokens(provider: KeyServer, clock: Clock) -> AsyncIterator[IdTokens]:
    made = id_tokens_by(clock, provider.issuer)
    yield made
    await made.aclose()


async def test_a_burst_asks_the_provider_once(provider: KeyServer, id_tokens: IdTokens) -> None:
    """Fifty users at once, the first ever: one question for all of them."""
    provider.hold.clear()
    token = KEY.sign(provider.claims())
    waiting = [asyncio.create_task(id_tokens.verify(token)) for _ in range(50)]
    await until(lambda: provider.asked[DISCOVERY] > 0)
    provider.hold.set()
    assert {found.subject for found in await asyncio.gather(*waiting)} == {SUBJECT}
    assert provider.asked == {DISCOVERY: 1, KEYS: 1}


async def test_a_caller_who_leaves_does_not_take_the_answer_from_the_others(
    provider: KeyServer, id_tokens: IdTokens
) -> None:
    provider.hold.clear()
    token = KEY.sign(provider.claims())
    first, second = (asyncio.create_task(id_tokens.verify(token)) for _ in range(2))
    await until(lambda: provider.asked[DISCOVERY] > 0)
    first.cancel()
    provider.hold.set()
    assert (await second).subject == SUBJECT
    assert first.cancelled()


async def test_unknown_keys_ask_the_provider_every_half_minute_at_most(
    provider: KeyServer, id_tokens: IdTokens, clock: Clock
) -> None:
    strangers = [new_key("ES256", f"stranger-{number}") for number in range(20)]
    await id_tokens.verify(KEY.sign(provider.claims()))
    for _ in range(3):
        clock.now += provider_keys.REFRESH_SECONDS
        refused = [id_tokens.verify(key.sign(provider.claims())) for key in strangers]
        results = await asyncio.gather(*refused, return_exceptions=True)
        assert {type(result) for result in results} == {InvalidCredential}
    assert provider.asked[KEYS] == 4


async def test_a_new_key_is_found_when_it_is_first_met(
    provider: KeyServer, id_tokens: IdTokens, clock: Clock
) -> None:
    await id_tokens.verify(KEY.sign(provider.claims()))
    provider.entries = [KEY.entry(), NEXT_KEY.entry()]
    clock.now += provider_keys.REFRESH_SECONDS
    assert (await id_tokens.verify(NEXT_KEY.sign(provider.claims()))).subject == SUBJECT
    assert (await id_tokens.verify(KEY.sign(provider.claims()))).subject == SUBJECT


FRESH = {
    "nothing is said": ({}, 3600),
    "an hour and a half": ({"Cache_Control": "public, max-age=5400, must-revalidate"}, 5400),
    "in quotes": ({"Cache_Control": 'MAX-AGE="5400"'}, 5400),
    "a second": ({"Cache_Control": "max-age=1"}, 300),
    "a year": ({"Cache_Control": "max-age=31536000"}, 86_400),
    "a number too long to be one": ({"Cache_Control": "max-age=" + "9" * 5000}, 3600),
    "not to be kept": ({"Cache_Control": "no-store, max-age=5400"}, 300),
    "junk": ({"Cache_Control": "max-age=soon"}, 3600),
}


@pytest.mark.parametrize("case", FRESH)
async def test_keys_are_kept_as_long_as_the_provider_says_within_bounds(
    case: str, provider: KeyServer, id_tokens: IdTokens, clock: Clock
) -> None:
    provider.key_headers, seconds = FRESH[case]
    token = KEY.sign(provider.claims())
    await id_tokens.verify(token)
    clock.now += seconds - 1
    await id_tokens.verify(token)
    assert provider.asked[KEYS] == 1
    clock.now += 1
    await id_tokens.verify(token)
    assert provider.asked[KEYS] == 2


async def test_a_key_that_the_provider_withdrew_is_forgotten(
    provider: KeyServer, id_tokens: IdTokens, clock: Clock
) -> None:
    token = KEY.sign(provider.claims())
    await id_tokens.verify(token)
    provider.entries = [NEXT_KEY.entry()]
    clock.now += provider_keys.DEFAULT_FRESH_SECONDS
    with pytest.raises(InvalidCredential):
        await id_tokens.verify(token)


# --- a provider that is not well ------------------------------------------------------------------


def reply(content: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send(handler, content, status, **headers)


def reply_json(value: Any) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: send_json(handler, value)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """More and more, without ever saying how much."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65_536)


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then: never silent for long, never done."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        handler.wfile.flush()
        threading.Event().wait(0.05)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def somewhere_else(handler: BaseHTTPRequestHandler) -> None:
    """To a copy of the same document, which the redirect would find."""
    send(handler, b"", 302, Location=handler.path + "?again")


Unwell = dict[str, Callable[[KeyServer], dict[str, Callable[[BaseHTTPRequestHandler], None]]]]
UNWELL: Unwell = {
    "an error": lambda _: {DISCOVERY: reply(b"", 503)},
    "nothing there": lambda _: {DISCOVERY: reply(b"", 404)},
    "no JSON": lambda _: {DISCOVERY: reply(b"<html>")},
    "JSON that is no object": lambda _: {DISCOVERY: reply(b"[]")},
    "deep JSON": lambda _: {DISCOVERY: reply(b"[" * 100_000)},
    "no UTF-8": lambda _: {DISCOVERY: reply(b"\xff\xfe")},
    "endless": lambda _: {DISCOVERY: endless},
    "endless keys": lambda _: {KEYS: endless},
    "a trickle": lambda _: {DISCOVERY: trickle},
    "hangs up": lambda _: {DISCOVERY: hang_up},
    "a redirect": lambda _: {DISCOVERY: somewhere_else},
    "a redirect of the keys": lambda _: {KEYS: somewhere_else},
    "another issuer": lambda it: {
        DISCOVERY: reply_json({**it.discovery(), "issuer": "https://evil.example"})
    },
    "an issuer with a slash more": lambda it: {
        DISCOVERY: reply_json({**it.discovery(), "issuer": it.issuer + "/"})
    },
    "no issuer": lambda it: {DISCOVERY: reply_json({"jwks_uri": it.issuer + KEYS})},
    "no address of the keys": lambda it: {DISCOVERY: reply_json({"issuer": it.issuer})},
    "keys over plain http": lambda it: {
        DISCOVERY: reply_json({**it.discovery(), "jwks_uri": "http://keys.example/keys"})
    },
    "keys in a file": lambda it: {
        DISCOVERY: reply_json({**it.discovery(), "jwks_uri": "file:///etc/passwd"})
    },
    "an address that is none": lambda it: {
        DISCOVERY: reply_json({**it.discovery(), "jwks_uri": "https://[::1"})
    },
    "no keys": lambda _: {KEYS: reply_json({"keys": []})},
    "keys that are no list": lambda _: {KEYS: reply_json({"keys": {"key-1": KEY.entry()}})},
    "an error for keys": lambda _: {KEYS: reply(b"", 500)},
}


@pytest.mark.parametrize("case", UNWELL)
async def test_without_keys_nobody_is_let_in(case: str, provider: KeyServer, clock: Clock) -> None:
    """With 503 and a word on when to come back, and without asking the provider again at once."""
    provider.replies = UNWELL[case](provider)
    id_tokens = id_tokens_by(clock, provider.issuer, fetch_seconds=1.0)
    token = KEY.sign(provider.claims())
    for _ in range(3):
        with pytest.raises(IdentityProviderUnavailable) as raised:
            await id_tokens.verify(token)
        assert raised.value.detail == IdentityProviderUnavailable.sentence
        assert raised.value.retry_after_seconds == provider_keys.RETRY_SECONDS
        assert raised.value.log
    assert provider.asked[DISCOVERY] == 1
    provider.replies = {}
    clock.now += provider_keys.RETRY_SECONDS
    assert (await id_tokens.verify(token)).subject == SUBJECT
    await id_tokens.aclose()


@pytest.mark.parametrize("case", UNWELL)
async def test_keys_outlive_a_provider_that_is_not_well(case: str, provider: KeyServer, clock: Clock) -> None:
    id_tokens = id_tokens_by(clock, provider.issuer, fetch_seconds=1.0)
    token = KEY.sign(provider.claims())
    await id_tokens.verify(token)
    provider.replies = UNWELL[case](provider)
    clock.now += provider_keys.DEFAULT_FRESH_SECONDS
    for _ in range(3):
        assert (await id_tokens.verify(token)).subject == SUBJECT
    assert provider.asked[DISCOVERY] == 2
    await id_tokens.aclose()


async def test_keys_do_not_outlive_it_for_ever(
    provider: KeyServer, id_tokens: IdTokens, clock: Clock
) -> None:
    token = KEY.sign(provider.claims())
    await id_tokens.verify(token)
    provider.replies = {DISCOVERY: reply(b"", 503)}
    clock.now += provider_keys.DEFAULT_FRESH_SECONDS + provider_keys.MAX_STALE_SECONDS
    with pytest.raises(IdentityProviderUnavailable):
        await id_tokens.verify(token)


async def test_a_provider_that_never_answers_holds_nobody_for_long(provider: KeyServer, clock: Clock) -> None:
    """While there are old keys, two seconds; and only those who came first."""
    id_tokens = id_tokens_by(clock, provider.issuer)
    token = KEY.sign(provider.claims())
    await id_tokens.verify(token)
    provider.hold.clear()
    clock.now += provider_keys.DEFAULT_FRESH_SECONDS
    async with asyncio.timeout(provider_keys.WAIT_SECONDS + 2):
        assert (await id_tokens.verify(token)).subject == SUBJECT
    await id_tokens.aclose()


async def test_closing_ends_a_question_that_is_under_way(provider: KeyServer, clock: Clock) -> None:
    id_tokens = id_tokens_by(clock, provider.issuer)
    provider.hold.clear()
    waiting = asyncio.create_task(id_tokens.verify(KEY.sign(provider.claims())))
    await until(lambda: provider.asked[DISCOVERY] > 0)
    await id_tokens.aclose()
    with pytest.raises(IdentityProviderUnavailable):
        await waiting


async def test_trouble_and_its_end_are_logged_once_each(
    provider: KeyServer, id_tokens: IdTokens, clock: Clock, log_lines: LogLines
) -> None:
    token = KEY.sign(provider.claims())
    await id_tokens.verify(token)
    provider.replies = {DISCOVERY: reply(b"", 503)}
    for _ in range(4):
        clock.now += provider_keys.DEFAULT_FRESH_SECONDS
        await id_tokens.verify(token)
    provider.replies = {}
    clock.now += provider_keys.DEFAULT_FRESH_SECONDS
    await id_tokens.verify(token)
    lines = [line for line in log_lines() if line["logger"] == "broker"]
    assert [line["level"] for line in lines] == ["warning", "info"]
    assert "503" in lines[0]["detail"]


def test_the_client_takes_nothing_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    client: httpx.AsyncClient = provider_keys.make_client()
    assert not client.follow_redirects
    assert not client._mounts
