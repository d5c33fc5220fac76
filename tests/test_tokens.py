"""``POST /token``: which route, why, and with which credential."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.sandbox_control import SandboxControl

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010804000000b51c0c020000000b4944415478da6364f80f00010501012718e3660000000049454e44ae426082"
)


def mint(broker: Broker, body: Any, *, key: str | None = None, **headers: str) -> httpx.Response:
    return httpx.post(f"{broker.url}/token", json=body, headers={**broker.auth(key), **headers})


def code(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    return str(problem["code"])


@pytest.fixture(scope="module")
def without_browser_app(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    environment = {k: v for k, v in session_sandbox.environment.items() if not k.startswith("COZE_BROWSER_")}
    with running_broker(tmp_path_factory.mktemp("no-browser-app"), environment) as broker:
        yield broker


def test_a_refusal_s_record_says_for_whom_it_was_asked(broker: Broker) -> None:
    refused = mint(broker, {"size": 1, "ttl_seconds": 1000, "subject": "user-42"})
    assert code(refused, 422) == "ttl_too_long"
    assert broker.record(refused.headers["x-request-id"])["subject"] == "user-42"


@pytest.mark.parametrize(
    ("asked", "route", "reason"),
    [
        ({"size": 1}, "direct", "small_file"),
        ({"size": 9_999_999}, "direct", "small_file"),
        ({"size": 10_000_000}, "proxy", "large_file"),
        ({"size": 536_870_912}, "proxy", "large_file"),
        ({"size": 1, "sensitive": True}, "proxy", "sensitive"),
        ({"size": 1, "sensitive": True, "route": "direct"}, "proxy", "sensitive"),
        ({"size": 1, "route": "proxy"}, "proxy", "proxy_requested"),
        ({"size": 1, "route": "direct"}, "direct", "small_file"),
        ({"size": 10_000_000, "route": "direct"}, "proxy", "large_file"),
    ],
)
def test_the_servers_policy_chooses_the_route_and_says_why(
    broker: Broker, asked: dict[str, Any], route: str, reason: str
) -> None:
    answer = broker.mint(**asked)
    assert (answer["route"], answer["reason"]) == (route, reason)


def test_without_a_browser_app_everything_goes_through(without_browser_app: Broker) -> None:
    answer = without_browser_app.mint(size=1)
    assert (answer["route"], answer["reason"]) == ("proxy", "no_browser_app")


def test_a_direct_answer_is_all_that_a_page_needs(broker: Broker, sandbox: SandboxControl) -> None:
    """The file goes to Coze with what the answer says; the broker hears no more of it."""
    before = int(time.time())
    answer = broker.mint(size=len(PNG), ttl_seconds=300)
    assert answer["upload_url"] == f"{sandbox.url}/v1/files/upload"
    assert before + 290 <= answer["expires_at"] <= time.time() + 300
    assert answer["expires_in"] == pytest.approx(300, abs=5)
    uploaded = httpx.post(
        answer["upload_url"],
        headers={"Authorization": f"{answer['token_type']} {answer['access_token']}"},
        files={answer["field"]: ("a.png", PNG)},
    )
    stored = sandbox.file(uploaded.json()["data"]["id"])
    assert stored["sha256"] == hashlib.sha256(PNG).hexdigest()


def test_a_direct_token_is_the_browser_apps_and_may_only_upload(
    broker: Broker, sandbox: SandboxControl
) -> None:
    answer = broker.mint(size=1)
    (exchange,) = sandbox.events(kind="token", outcome="issued")
    assert exchange["client_id"] == broker.environment["COZE_BROWSER_OAUTH_CLIENT_ID"]
    looked_up = httpx.get(
        f"{sandbox.url}/v1/files/retrieve?file_id=1",
        headers={"Authorization": f"Bearer {answer['access_token']}"},
    )
    assert looked_up.json()["code"] == 4101


def test_each_direct_token_takes_an_exchange_of_its_own(broker: Broker, sandbox: SandboxControl) -> None:
    tokens = {broker.mint(size=1)["access_token"] for _ in range(3)}
    assert len(tokens) == 3
    assert len(sandbox.events(kind="token", outcome="issued")) == 3


def test_no_credential_of_the_servers_is_in_an_answer(broker: Broker) -> None:
    """Neither the PAT, nor a private key, nor the server app's token: not in answers, not in the log."""
    sent = httpx.post(f"{broker.url}/proxy/upload", headers=broker.auth(), files={"file": ("a.png", PNG)})
    answers = json.dumps([broker.mint(size=1), broker.mint(size=10_000_000), sent.json(), dict(sent.headers)])
    log = broker.log.read_text()
    secrets = [broker.environment["COZE_API_TOKEN"], broker.secret_key, broker.publishable_key, "PRIVATE KEY"]
    for secret in secrets:
        assert secret not in answers
        assert secret not in log
    assert "czs_" not in sent.text
    assert "czs_" not in log


def test_when_coze_gives_no_direct_token_the_file_goes_through(
    broker: Broker, sandbox: SandboxControl
) -> None:
    sandbox.fail(path="/api/permission/oauth2/token", status=503)
    answer = broker.mint(size=1)
    assert (answer["route"], answer["reason"]) == ("proxy", "direct_unavailable")
    record = broker.last_record("/token", reason="direct_unavailable")
    assert "upstream_failed" in record["log"]


def test_a_proxy_token_says_what_it_is_good_for(broker: Broker) -> None:
    digest = "0" * 64
    answer = broker.mint(
        size=1234,
        route="proxy",
        subject="user-42",
        ttl_seconds=60,
        content_type="text/csv; charset=utf-8",
        sha256=digest,
        origin=PAGE_ORIGIN,
    )
    assert answer["upload_url"] == f"{broker.url}/proxy/upload"
    keys = {key["kid"]: key for key in httpx.get(f"{broker.url}/.well-known/jwks.json").json()["keys"]}
    header = jwt.get_unverified_header(answer["access_token"])
    assert (header["typ"], header["alg"]) == ("upload+jwt", "EdDSA")
    claims = jwt.decode(
        answer["access_token"],
        jwt.PyJWK(keys[header["kid"]]),
        algorithms=["EdDSA"],
        audience="coze-upload-broker/upload",
    )
    assert claims["iss"] == broker.url
    assert (claims["sub"], claims["origin"], claims["scope"]) == ("user-42", PAGE_ORIGIN, "files:upload")
    assert (claims["max_bytes"], claims["content_types"], claims["sha256"]) == (1234, ["text/csv"], digest)
    assert claims["exp"] - claims["iat"] == 60 == answer["expires_in"]
    assert claims["nbf"] == claims["iat"]
    assert claims["finish_by"] > claims["exp"] == answer["expires_at"]
    assert claims["key_id"].startswith("key_")
    assert len(claims["jti"]) >= 16


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({}, 422, "invalid_request"),
        ({"size": -1}, 422, "invalid_request"),
        ({"size": "1"}, 422, "invalid_request"),
        ({"size": 1.5}, 422, "invalid_request"),
        ({"size": True}, 422, "invalid_request"),
        ({"size": 1, "upload_url": "https://evil.example"}, 422, "invalid_request"),
        ({"size": 1, "route": "fastest"}, 422, "invalid_request"),
        ({"size": 1, "content_type": "text/csv\r\nX-Evil: 1"}, 422, "invalid_request"),
        ({"size": 1, "subject": "x" * 201}, 422, "invalid_request"),
        ({"size": 1, "sha256": "abc"}, 422, "invalid_request"),
        ({"size": 1, "ttl_seconds": 0}, 422, "invalid_request"),
        ({"size": 1, "ttl_seconds": 901}, 422, "ttl_too_long"),
        ({"size": 0}, 400, "empty_file"),
        ({"size": 536_870_913}, 413, "too_large"),
        ({"size": 1, "file_name": "..."}, 400, "bad_file_name"),
        ([1], 422, "invalid_request"),
    ],
    ids=str,
)
def test_what_can_not_be_granted_is_refused_and_named(
    broker: Broker, body: Any, status: int, expected: str
) -> None:
    assert code(mint(broker, body), status) == expected


@pytest.mark.parametrize(
    ("content", "content_type", "status", "expected"),
    [
        (b"{", "application/json", 400, "malformed_request"),
        (b"\xff\xfe", "application/json", 400, "malformed_request"),
        (b'{"size": 1}', "text/plain", 415, "unsupported_media_type"),
        (b'{"size": 1, "file_name": "' + b"x" * 20_000 + b'"}', "application/json", 413, "too_large"),
        (b"[" * 10_000, "application/json", 400, "malformed_request"),
    ],
    ids=["half", "not-utf-8", "not-json", "too-long", "too-deep"],
)
def test_a_body_that_is_no_json_is_refused(
    broker: Broker, content: bytes, content_type: str, status: int, expected: str
) -> None:
    response = httpx.post(
        f"{broker.url}/token", content=content, headers={**broker.auth(), "Content-Type": content_type}
    )
    assert code(response, status) == expected


def test_a_page_mints_with_a_publishable_key(broker: Broker) -> None:
    answer = broker.mint(size=10_000_000, key=broker.publishable_key, origin=PAGE_ORIGIN)
    assert answer["route"] == "proxy"


@pytest.mark.parametrize(
    "origin", [None, "null", "http://app.example", f"{PAGE_ORIGIN}.evil.example", "HTTP://APP.EXAMPLE:3000"]
)
def test_a_publishable_key_is_good_for_its_own_origins_alone(broker: Broker, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    response = mint(broker, {"size": 1}, key=broker.publishable_key, **headers)
    assert code(response, 403) == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_a_publishable_key_can_not_vouch_for_a_subject(broker: Broker) -> None:
    """Anyone who opens the page has the key: a receipt for a subject of their choice would be a forgery."""
    response = mint(broker, {"size": 1, "subject": "admin"}, key=broker.publishable_key, Origin=PAGE_ORIGIN)
    assert code(response, 403) == "subject_not_allowed"


def test_a_token_is_never_cached(broker: Broker) -> None:
    assert mint(broker, {"size": 1}).headers["cache-control"] == "no-store"


def test_a_receipt_proves_what_was_stored(broker: Broker, sandbox: SandboxControl) -> None:
    token = broker.mint(size=len(PNG), route="proxy", subject="user-42")
    answer = httpx.post(
        token["upload_url"],
        headers={"Authorization": f"Bearer {token['access_token']}"},
        files={"file": ("a.png", PNG, "image/png")},
    ).json()
    key = httpx.get(f"{broker.url}/.well-known/jwks.json").json()["keys"][0]
    assert jwt.get_unverified_header(answer["receipt"])["typ"] == "receipt+jwt"
    claims = jwt.decode(
        answer["receipt"], jwt.PyJWK(key), algorithms=["EdDSA"], audience="coze-upload-broker/receipt"
    )
    stored = sandbox.file(answer["file_id"])
    assert (claims["file_id"], claims["sha256"], claims["bytes"]) == (
        stored["id"],
        stored["sha256"],
        stored["bytes"],
    )
    assert (claims["sub"], claims["route"]) == ("user-42", "proxy")


def test_an_announced_digest_is_held_against_the_bytes(broker: Broker, sandbox: SandboxControl) -> None:
    """A mismatch is found before the form's end is sent, so that Coze has no file."""
    large = PNG + b"\0" * 200_000
    token = broker.mint(size=len(large), route="proxy", sha256="0" * 64)["access_token"]
    headers = broker.auth(token)
    response = httpx.post(f"{broker.url}/proxy/upload", headers=headers, files={"file": ("a.png", large)})
    assert code(response, 422) == "digest_mismatch"
    sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert not sandbox.events(kind="upload", outcome="stored")


def test_of_a_small_file_a_wrong_digest_or_size_is_found_before_the_token_is_spent(
    broker: Broker, sandbox: SandboxControl
) -> None:
    digest = hashlib.sha256(PNG).hexdigest()
    token = broker.mint(size=len(PNG), route="proxy", sha256=digest)["access_token"]

    def send(content: bytes) -> httpx.Response:
        files = {"file": ("a.png", content)}
        return httpx.post(f"{broker.url}/proxy/upload", headers=broker.auth(token), files=files)

    assert code(send(PNG[:-1] + b"x"), 422) == "digest_mismatch"
    assert code(send(PNG + b"x"), 413) == "too_large"
    assert sandbox.events(kind="upload") == []
    assert send(PNG).status_code == 200


def test_the_servers_token_is_fetched_once_and_kept(
    broker: Broker, sandbox: SandboxControl, folder: Path
) -> None:
    """Twenty uploads at once, one exchange: single flight, then the cache."""
    with running_broker(folder, sandbox.environment) as fresh:
        import asyncio

        async def upload_twenty() -> list[int]:
            async with httpx.AsyncClient(headers=fresh.auth()) as client:
                sends = [
                    client.post(f"{fresh.url}/proxy/upload", files={"file": ("a.png", PNG)})
                    for _ in range(20)
                ]
                return [response.status_code for response in await asyncio.gather(*sends)]

        assert asyncio.run(upload_twenty()) == [200] * 20
    assert len(sandbox.events(kind="token", outcome="issued")) == 1
