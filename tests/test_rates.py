"""Limits over HTTP: of a key, a subject, an origin, an address; of requests, bytes, failures; Coze's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import RateLimited, TooManyFailures, TooManyUploads, UpstreamLimit
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import Connection, head
from tests.support.refusals import CLIENT, assert_refused
from tests.support.sandbox_control import SandboxControl

WINDOW = {"RATE_LIMIT_WINDOW": "3600"}
"""So long that nothing comes back while a test runs."""


@contextmanager
def limited(folder: Path, sandbox: SandboxControl, **settings: str) -> Iterator[Broker]:
    with running_broker(folder, sandbox.environment, **WINDOW, **settings) as broker:
        yield broker


def mint(broker: Broker, key: str | None = None, origin: str = PAGE_ORIGIN, **asked: Any) -> httpx.Response:
    headers = broker.auth(key) | {"Origin": origin}
    return CLIENT.post(f"{broker.url}/token", json={"size": 4, "route": "proxy", **asked}, headers=headers)


def upload(broker: Broker, key: str, content: bytes = b"a,b\n") -> httpx.Response:
    headers = broker.auth(key) | {"Origin": PAGE_ORIGIN}
    return CLIENT.post(f"{broker.url}/proxy/upload", files={"file": ("a.csv", content)}, headers=headers)


def statuses(answers: list[httpx.Response]) -> list[int]:
    return [answer.status_code for answer in answers]


# --- requests -----------------------------------------------------------------------------------------


def test_an_address_that_pages_call_from_has_its_share(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, RATE_LIMIT_REQUESTS="3") as broker:
        answers = [mint(broker, broker.publishable_key) for _ in range(4)]
        assert statuses(answers) == [200, 200, 200, 429]
        assert_refused(broker, answers[3], RateLimited, "/token")
        # A server speaks for all of its users, from one address.
        assert statuses([mint(broker) for _ in range(10)]) == [200] * 10


def test_each_subject_has_its_share(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, RATE_LIMIT_REQUESTS="2") as broker:
        answers = [mint(broker, subject="anna") for _ in range(3)] + [mint(broker, subject="ben")]
        assert statuses(answers) == [200, 200, 429, 200]


def test_the_pages_of_an_origin_have_their_share(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_REQUESTS_PER_ORIGIN="2") as broker:
        answers = [
            mint(broker, broker.publishable_key, origin) for origin in (PAGE_ORIGIN, broker.origin) * 3
        ]
        assert statuses(answers) == [200] * 4 + [429] * 2


def test_a_key_s_own_limit_comes_before_the_setting(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_REQUESTS_PER_KEY="2") as broker:
        own = broker.create_key("--scope=token:mint", "--requests=4", "--window-seconds=3600")["key"]
        unbound = broker.create_key("--scope=token:mint", "--requests=0")["key"]
        assert statuses([mint(broker) for _ in range(3)]) == [200, 200, 429]
        assert statuses([mint(broker, own) for _ in range(5)]) == [200] * 4 + [429]
        assert statuses([mint(broker, unbound) for _ in range(8)]) == [200] * 8


@pytest.mark.parametrize(("own", "expected"), [("4", [200, 429, 429]), ("0", [200, 200, 200])])
def test_a_token_s_upload_counts_as_its_key_says(
    folder: Path, sandbox: SandboxControl, own: str, expected: list[int]
) -> None:
    """And not as the setting does, which is for keys without a limit of their own."""
    with limited(folder, sandbox, BROKER_RATE_LIMIT_REQUESTS_PER_KEY="2") as broker:
        key = broker.create_key("--scope=token:mint", f"--requests={own}", "--window-seconds=3600")["key"]
        tokens = [broker.mint(key=key, size=8, route="proxy") for _ in expected]
        answers = [
            httpx.post(
                f"{broker.url}/proxy/upload",
                files={"file": ("a.csv", b"a,b\n1,2\n")},
                headers=broker.auth(token["access_token"]),
            )
            for token in tokens
        ]
        assert statuses(answers) == expected


def test_limits_can_be_turned_off(folder: Path, sandbox: SandboxControl) -> None:
    settings = {"ENABLE_RATE_LIMIT": "false", "RATE_LIMIT_REQUESTS": "1"}
    with limited(folder, sandbox, **settings) as broker:
        answers = [mint(broker, broker.publishable_key) for _ in range(5)]
    assert statuses(answers) == [200] * 5
    assert "ratelimit" not in answers[0].headers


def test_a_page_can_read_how_much_is_left(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, RATE_LIMIT_REQUESTS="5") as broker:
        answer = mint(broker, broker.publishable_key)
    assert answer.headers["ratelimit-policy"] == '"ip";q=5;w=3600'
    assert answer.headers["ratelimit"] == '"ip";r=4;t=720'
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert {"ratelimit", "ratelimit-policy", "retry-after"} <= set(exposed.replace(" ", "").split(","))


def test_what_was_refused_takes_nothing_from_the_other_limits(folder: Path, sandbox: SandboxControl) -> None:
    """A page that is over its limit does not use up its key's for all others."""
    with limited(folder, sandbox, RATE_LIMIT_REQUESTS="1") as broker:
        key = broker.create_key("--scope=token:mint", "--requests=3", "--window-seconds=3600")["key"]
        assert statuses([mint(broker, key, subject="anna") for _ in range(6)]) == [200] + [429] * 5
        assert statuses([mint(broker, key, subject=name) for name in ("ben", "cleo", "dora")]) == [
            200,
            200,
            429,
        ]


# --- bytes --------------------------------------------------------------------------------------------


def test_bytes_are_reserved_at_mint_and_what_was_not_sent_comes_back(
    folder: Path, sandbox: SandboxControl
) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        token = mint(broker, subject="anna", size=900).json()["access_token"]
        assert statuses([mint(broker, subject="anna", size=200)]) == [429]
        assert upload(broker, token, b"a,b\n" * 25).status_code == 200  # 100 of the 900
        assert statuses([mint(broker, subject="anna", size=size) for size in (800, 200)]) == [200, 429]


def test_a_file_that_is_larger_than_all_of_it_is_too_large(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        refused = mint(broker, subject="anna", size=1001)
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    assert refused.json()["retryable"] is False


def test_a_key_s_bytes_are_counted_at_its_own_uploads(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=files:upload", "--bytes=5000", "--window-seconds=3600")["key"]
        content = b"a,b\n" * 1000
        answers = [upload(broker, key, content), upload(broker, key, content)]
        assert statuses(answers) == [200, 429]
        # A refusal gives everything back.
        assert upload(broker, key, b"a,b\n" * 100).status_code == 200


def test_a_token_that_is_still_good_keeps_its_bytes(folder: Path, sandbox: SandboxControl) -> None:
    """Or a page could have as many tokens as it likes, by an upload that is refused for each."""
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        token = mint(broker, subject="anna", size=900, content_type="text/csv").json()["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Origin": PAGE_ORIGIN}
        for _ in range(3):
            files = {"file": ("a.pdf", b"%PDF-1.7\n", "application/pdf")}
            refused = CLIENT.post(f"{broker.url}/proxy/upload", files=files, headers=headers)
            assert refused.json()["code"] == "type_not_granted"
            assert statuses([mint(broker, subject="anna", size=200)]) == [429]
        assert upload(broker, token).status_code == 200
        assert statuses([mint(broker, subject="anna", size=900)]) == [200]


def test_a_token_that_is_not_minted_reserves_nothing(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        refused = [mint(broker, subject="anna", size=900, ttl_seconds=10**6) for _ in range(3)]
        assert statuses(refused) == [422] * 3
        assert statuses([mint(broker, subject="anna", size=size) for size in (900, 200)]) == [200, 429]


def test_a_token_that_is_minted_again_reserves_its_bytes_once(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        headers = broker.auth() | {"Idempotency-Key": "7a1c5e9e-6f5b-4c57-8a3e-0d8f0e4d7f11"}
        asked = {"size": 400, "route": "proxy", "subject": "anna"}
        answers = [CLIENT.post(f"{broker.url}/token", json=asked, headers=headers) for _ in range(5)]
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert statuses([mint(broker, subject="anna", size=size) for size in (600, 1)]) == [200, 429]


def test_what_does_not_say_how_large_it_is_counts_too(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=files:upload", "--bytes=5000", "--window-seconds=3600")["key"]
        headers = broker.auth(key) | {
            "Content-Type": "text/csv",
            "Content-Disposition": "attachment; filename*=UTF-8''a.csv",
        }
        answers = [
            CLIENT.post(f"{broker.url}/proxy/upload", content=iter([b"a,b\n" * 1000]), headers=headers)
            for _ in range(2)
        ]
        assert statuses(answers) == [200, 429]
        # Only what came counts in the end.
        assert upload(broker, key, b"a,b\n" * 100).status_code == 200


def test_an_upload_that_finds_no_place_gives_its_bytes_back(folder: Path, sandbox: SandboxControl) -> None:
    bounds = ("--bytes=2000000", "--window-seconds=3600", "--inflight=1")
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=files:upload", *bounds)["key"]
        headers = broker.auth(key) | {"Content-Type": "text/csv", "Content-Length": "1000000"}
        with Connection(broker.url) as first:
            first.send(head("/proxy/upload", [*headers.items()]) + b"a,b\n" * 1024)
            sandbox.wait_for(lambda: sandbox.events(kind="upload"))
            for _ in range(3):
                refused = upload(broker, key, b"a,b\n" * 200_000)
                assert_refused(broker, refused, TooManyUploads)


def test_a_token_gives_back_once_however_often_it_is_shown(folder: Path, sandbox: SandboxControl) -> None:
    """Neither what is refused with it, nor another use of it, makes room for a second token."""
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        token = mint(broker, subject="anna", size=900).json()["access_token"]
        refused = [upload(broker, token, b"\x7fELF\0" * 80) for _ in range(3)]
        assert statuses(refused) == [415] * 3
        assert mint(broker, subject="anna", size=900).status_code == 429
        uploads = [upload(broker, token, b"a,b\n" * 100) for _ in range(4)]  # 400 of the 900
        assert statuses(uploads) == [200] + [401] * 3
        answers = [mint(broker, subject="anna", size=size) for size in (650, 550)]
        assert statuses(answers) == [429, 200]


@pytest.mark.parametrize("name", ["size", "uses"])
def test_a_number_beyond_all_reason_is_refused(folder: Path, sandbox: SandboxControl, name: str) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        asked: dict[str, Any] = {"subject": "anna", name: 10**400}
        assert mint(broker, **asked).status_code == 422


def test_what_is_not_minted_takes_no_bytes(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        assert mint(broker, subject="anna", size=80, uses=11).status_code == 422
        assert mint(broker, subject="anna", size=900, file_name="a.exe").status_code == 415
        assert mint(broker, subject="anna", size=900).status_code == 200


def test_a_request_that_is_repeated_takes_its_bytes_once(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_RATE_LIMIT_BYTES="1000") as broker:
        headers = broker.auth() | {"Idempotency-Key": "the-same"}
        asked = {"size": 400, "route": "proxy", "subject": "anna"}
        answers = [CLIENT.post(f"{broker.url}/token", json=asked, headers=headers) for _ in range(5)]
        assert statuses(answers) == [200] * 5
        assert len({answer.json()["access_token"] for answer in answers}) == 1
        assert statuses([mint(broker, subject="anna", size=size) for size in (650, 550)]) == [429, 200]


def test_a_file_of_unknown_length_is_counted(folder: Path, sandbox: SandboxControl) -> None:
    """As all that may come, until it is known better."""
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=files:upload", "--bytes=5000", "--window-seconds=3600")["key"]
        assert statuses([upload_chunked(broker, key, 400) for _ in range(3)]) == [200, 429, 429]
        assert upload(broker, key, b"a,b\n" * 800).status_code == 200


def test_a_file_of_unknown_length_may_not_be_larger_than_all_of_it(
    folder: Path, sandbox: SandboxControl
) -> None:
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=files:upload", "--bytes=5000", "--window-seconds=3600")["key"]
        assert upload_chunked(broker, key, 6000).status_code == 413


def upload_chunked(broker: Broker, key: str, size: int) -> httpx.Response:
    pieces = iter([b"a,b\n" * (size // 4)])
    headers = {"Content-Type": "text/csv", "Content-Disposition": 'attachment; filename="a.csv"'}
    return CLIENT.post(f"{broker.url}/proxy/upload", content=pieces, headers=broker.auth(key) | headers)


def test_a_key_gets_back_what_its_tokens_did_not_use(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=token:mint", "--bytes=1000", "--window-seconds=3600")["key"]
        token = mint(broker, key, size=900).json()["access_token"]
        assert upload(broker, token, b"a,b\n" * 25).status_code == 200
        assert statuses([mint(broker, key, size=size) for size in (950, 850)]) == [429, 200]


def test_a_key_s_places_are_those_of_its_tokens_too(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=token:mint", "--inflight=1")["key"]
        first, second = (mint(broker, key, size=100_000).json()["access_token"] for _ in range(2))
        headers = broker.auth(first) | {"Origin": PAGE_ORIGIN, "Content-Type": "text/csv"}
        with Connection(broker.url) as connection:
            request = head("/proxy/upload", [*headers.items(), ("Content-Length", "100000")])
            connection.send(request + b"a,b\n" * 20_000)
            sandbox.wait_for(lambda: sandbox.events(kind="upload"))
            assert upload(broker, second).json()["code"] == "too_many_uploads"
        sandbox.wait_for(lambda: upload(broker, second).status_code == 200)


# --- guessing -----------------------------------------------------------------------------------------


def test_who_comes_too_late_guessed_nothing(folder: Path, sandbox: SandboxControl) -> None:
    """A page that was left open must not lock its whole office out."""
    with limited(folder, sandbox, BROKER_MAX_FAILED_CREDENTIALS="2") as broker:
        admin = broker.admin_key
        expires_at = int(time.time()) + 2
        asked = {"name": "short", "scopes": ["token:mint"], "expires_at": expires_at}
        created = CLIENT.post(f"{broker.url}/keys", json=asked, headers=broker.auth(admin))
        key = created.json()["key"]
        sandbox.wait_for(lambda: time.time() > expires_at)
        answers = [mint(broker, key) for _ in range(5)]
        assert {answer.json()["code"] for answer in answers} == {"expired_credential"}
        assert mint(broker).status_code == 200


def test_who_guesses_must_wait(folder: Path, sandbox: SandboxControl) -> None:
    """Before the next guess is looked at: a right one is not told from a wrong one."""
    with limited(folder, sandbox, BROKER_MAX_FAILED_CREDENTIALS="3") as broker:
        wrong = broker.secret_key[:-1] + ("A" if broker.secret_key[-1] != "A" else "B")
        assert statuses([mint(broker, wrong) for _ in range(3)]) == [401] * 3
        refused = mint(broker, wrong)
        assert_refused(broker, refused, TooManyFailures, "/token")
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert mint(broker).status_code == 429


def test_a_key_that_was_good_before_goes_on_while_somebody_guesses(
    folder: Path, sandbox: SandboxControl
) -> None:
    """From the same address, as behind a proxy that is not counted, and with the same mask."""
    with limited(folder, sandbox, BROKER_MAX_FAILED_CREDENTIALS="3") as broker:
        assert mint(broker).status_code == 200
        wrong = broker.secret_key[:-1] + ("A" if broker.secret_key[-1] != "A" else "B")
        assert statuses([mint(broker, wrong) for _ in range(5)]) == [401] * 3 + [429] * 2
        assert mint(broker).status_code == 200


def test_an_expired_credential_is_no_guess(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_MAX_FAILED_CREDENTIALS="2") as broker:
        admin = broker.create_key("--scope=keys:admin")["key"]
        asked = {"name": "short", "scopes": ["token:mint"], "expires_at": int(time.time()) + 1}
        made = CLIENT.post(f"{broker.url}/keys", json=asked, headers=broker.auth(admin)).json()
        time.sleep(1)
        assert statuses([mint(broker, made["key"]) for _ in range(5)]) == [401] * 5


def test_who_sends_no_credential_guesses_nothing(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_MAX_FAILED_CREDENTIALS="2") as broker:
        for _ in range(5):
            assert CLIENT.post(f"{broker.url}/token", json={"size": 1}).status_code == 401
        assert mint(broker).status_code == 200


def test_behind_proxies_callers_are_told_apart(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, RATE_LIMIT_REQUESTS="1", BROKER_TRUSTED_PROXIES="1") as broker:

        def from_(address: str) -> int:
            headers = broker.auth(broker.publishable_key) | {
                "Origin": PAGE_ORIGIN,
                "X-Forwarded-For": f"203.0.113.99, {address}",
            }
            return CLIENT.post(f"{broker.url}/token", json={"size": 1}, headers=headers).status_code

        assert [from_("192.0.2.1"), from_("192.0.2.1"), from_("192.0.2.2")] == [200, 429, 200]
        # One household has one /64.
        assert [from_("2001:db8::1"), from_("2001:db8::2"), from_("2001:db8:0:1::1")] == [200, 429, 200]


def test_without_proxies_nobody_s_word_is_taken_for_an_address(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, RATE_LIMIT_REQUESTS="1") as broker:
        for number, status in enumerate([200, 429]):
            headers = broker.auth(broker.publishable_key) | {
                "Origin": PAGE_ORIGIN,
                "X-Forwarded-For": f"192.0.2.{number}",
                "X-Real-IP": f"192.0.2.{number}",
            }
            assert CLIENT.post(f"{broker.url}/token", json={"size": 1}, headers=headers).status_code == status


# --- Coze's own ---------------------------------------------------------------------------------------


def test_what_is_too_fast_for_coze_waits_for_its_turn(folder: Path, sandbox: SandboxControl) -> None:
    with limited(folder, sandbox, BROKER_UPSTREAM_UPLOADS_PER_SECOND="4") as broker:
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: upload(broker, broker.secret_key), range(12)))
        assert statuses(answers) == [200] * 12
        arrivals = sorted(event["at"] for event in sandbox.events(kind="upload"))
    for index in range(len(arrivals) - 5):
        assert arrivals[index + 5] - arrivals[index] > 0.7, "more than 4 in a second"


def test_who_would_wait_too_long_is_told_to_come_again(folder: Path, sandbox: SandboxControl) -> None:
    settings = {"BROKER_UPSTREAM_UPLOADS_PER_SECOND": "1", "BROKER_UPSTREAM_WAIT_SECONDS": "1.5"}
    with limited(folder, sandbox, **settings) as broker:
        token = mint(broker).json()["access_token"]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: upload(broker, broker.secret_key), range(6)))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert len(answers) - len(refused) >= 2
        assert refused
        for answer in refused:
            assert_refused(broker, answer, UpstreamLimit)
        give_up = time.monotonic() + 10
        while upload(broker, token).status_code == 429:  # nor was its token spent
            assert time.monotonic() < give_up


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
def test_coze_s_clients_read_a_limit_as_one(folder: Path, sandbox: SandboxControl, path: str) -> None:
    with limited(folder, sandbox) as broker:
        key = broker.create_key("--scope=files:upload", "--requests=1", "--window-seconds=3600")["key"]
        headers = broker.auth(key) | {"Origin": PAGE_ORIGIN}
        answers = [
            CLIENT.post(broker.url + path, files={"file": ("a.csv", b"a,b\n")}, headers=headers)
            for _ in range(2)
        ]
        assert_refused(broker, answers[1], RateLimited, path)
