"""The token endpoint: what it accepts, Coze accepts; what it refuses, Coze refuses."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from broker.sandbox.app import create_app
from broker.sandbox.credentials import AppCredentials, generate
from broker.sandbox.launch import SandboxProcess

Claims = dict[str, Any]
Signed = Callable[..., str]
Exchange = Callable[..., httpx.Response]


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def public_pem(app: AppCredentials) -> bytes:
    key = serialization.load_pem_private_key(app.private_key_pem.encode(), None)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, spki)


def assert_refused(response: httpx.Response, status: int, error_code: str) -> None:
    assert response.status_code == status
    assert response.json()["error_code"] == error_code
    assert response.json()["error_message"]
    assert response.headers["x-tt-logid"]


def test_expires_in_is_a_moment_not_a_lifetime(claims: Claims, signed: Signed, exchange: Exchange) -> None:
    response = exchange(signed(claims))
    assert response.status_code == 200
    assert response.json()["access_token"].startswith("czs_")
    assert response.json()["token_type"] == "Bearer"
    assert abs(response.json()["expires_in"] - (time.time() + 900)) < 5


def test_duration_is_what_was_asked_for(claims: Claims, signed: Signed, exchange: Exchange) -> None:
    response = exchange(signed(claims), duration_seconds=60, scope=None)
    assert abs(response.json()["expires_in"] - (time.time() + 60)) < 5


def test_issued_token_opens_the_files_api(
    claims: Claims, signed: Signed, exchange: Exchange, anonymous: httpx.Client
) -> None:
    token = exchange(signed(claims)).json()["access_token"]
    response = anonymous.post(
        "/v1/files/upload",
        headers={"authorization": f"Bearer {token}"},
        files={"file": ("a.csv", b"1,2")},
    )
    assert response.json()["code"] == 0


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"iss": "another"}, (401, "invalid_client")),
        ({"aud": "api.coze.cn"}, (400, "invalid_request")),
        ({"aud": ["127.0.0.1"]}, (400, "invalid_request")),
        ({"iat": int(time.time()) - 900, "exp": int(time.time()) - 300}, (400, "invalid_request")),
        ({"iat": int(time.time()) + 100_000}, (400, "invalid_request")),
        ({"exp": 0}, (400, "invalid_request")),
        ({"exp": None}, (400, "invalid_request")),
        ({"exp": "soon"}, (400, "invalid_request")),
        ({"jti": "short"}, (400, "invalid_request")),
        ({"jti": None}, (400, "invalid_request")),
    ],
)
def test_claims_are_checked(
    changes: Claims, refusal: tuple[int, str], claims: Claims, signed: Signed, exchange: Exchange
) -> None:
    merged = {name: value for name, value in (claims | changes).items() if value is not None}
    assert_refused(exchange(signed(merged)), *refusal)


def test_foreign_kid_gets_cozes_own_sentence(claims: Claims, signed: Signed, exchange: Exchange) -> None:
    response = exchange(signed(claims, kid="nobody"))
    assert_refused(response, 401, "invalid_client")
    assert response.json()["error_message"] == "invalid jwt: kid not been registred"


def test_signature_must_be_of_the_kid(
    claims: Claims, signed: Signed, exchange: Exchange, sandbox: SandboxProcess
) -> None:
    other = sandbox.credentials.browser_app
    kid = sandbox.credentials.server_app.public_key_id
    assert_refused(exchange(signed(claims, other, kid=kid)), 401, "invalid_client")


def test_one_app_cannot_speak_for_another(
    claims: Claims, signed: Signed, exchange: Exchange, sandbox: SandboxProcess
) -> None:
    assert_refused(exchange(signed(claims, sandbox.credentials.browser_app)), 401, "invalid_client")


def test_algorithm_comes_from_the_key(claims: Claims, exchange: Exchange, sandbox: SandboxProcess) -> None:
    app = sandbox.credentials.server_app
    for algorithm in ("HS256", "none", "nOnE"):
        header = {"alg": algorithm, "typ": "JWT", "kid": app.public_key_id}
        content = f"{encoded(header)}.{encoded(claims)}"
        mac = hmac.new(public_pem(app), content.encode(), hashlib.sha256).digest()
        signature = "" if algorithm != "HS256" else base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
        assert_refused(exchange(f"{content}.{signature}"), 401, "invalid_client")


def test_an_assertion_is_good_for_one_use(claims: Claims, signed: Signed, exchange: Exchange) -> None:
    assertion = signed(claims)
    assert exchange(assertion).status_code == 200
    assert_refused(exchange(assertion), 400, "invalid_request")


def test_a_bad_body_uses_no_assertion_up(claims: Claims, signed: Signed, exchange: Exchange) -> None:
    assertion = signed(claims)
    assert_refused(exchange(assertion, duration_seconds=86400), 400, "invalid_request")
    assert exchange(assertion).status_code == 200


@pytest.mark.parametrize(
    ("body", "error_code"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"duration_seconds": 0}, "invalid_request"),
        ({"duration_seconds": "60"}, "invalid_request"),
        ({"grant_type": None}, "invalid_request"),
        ({"scope": {"account_permission": {"permission_list": ["uploadFile"]}}}, "invalid_request"),
    ],
)
def test_bodies_are_checked(
    body: dict[str, Any], error_code: str, claims: Claims, signed: Signed, exchange: Exchange
) -> None:
    assert_refused(exchange(signed(claims), **body), 400, error_code)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b'{"a":"' + b"x" * 70_000 + b'"}'])
def test_a_body_that_is_no_request_is_refused(content: bytes, anonymous: httpx.Client) -> None:
    response = anonymous.post(
        "/api/permission/oauth2/token", content=content, headers={"content-type": "application/json"}
    )
    assert_refused(response, 400, "invalid_request")


def test_the_body_must_be_json_and_the_assertion_in_the_header(anonymous: httpx.Client) -> None:
    path, grant = (
        "/api/permission/oauth2/token",
        {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"},
    )
    assert_refused(anonymous.post(path, data=grant), 400, "invalid_request")
    assert_refused(anonymous.post(path, json=grant), 400, "invalid_request")
    garbled = anonymous.post(path, json=grant, headers={"authorization": "Bearer no-jwt"})
    assert_refused(garbled, 401, "invalid_client")


async def test_an_issued_token_ends_with_its_lifetime(signed: Signed) -> None:
    """The clock is passed in, so nobody has to wait."""
    moment = 1_800_000_000.0
    config, credentials = generate("sandbox.test")
    app = credentials.browser_app
    asked = {
        "iss": app.client_id,
        "aud": "sandbox.test",
        "iat": int(moment),
        "exp": int(moment) + 60,
        "jti": "j" * 32,
    }
    transport = httpx.ASGITransport(create_app(config, now=lambda: moment))
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox.test") as client:
        answer = await client.post(
            "/api/permission/oauth2/token",
            json={"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "duration_seconds": 60},
            headers={"authorization": f"Bearer {signed(asked, app)}"},
        )
        headers = {"authorization": f"Bearer {answer.json()['access_token']}"}
        early = await client.post("/v1/files/upload", files={"file": ("a.csv", b"1")}, headers=headers)
        moment += 60
        late = await client.post("/v1/files/upload", files={"file": ("a.csv", b"1")}, headers=headers)
    assert early.json()["code"] == 0
    assert (late.status_code, late.json()["code"]) == (401, 700012006)


def test_events_tell_of_exchanges_without_the_assertion(
    claims: Claims, signed: Signed, exchange: Exchange, last_event: Callable[[], dict[str, Any]]
) -> None:
    assertion = signed(claims)
    exchange(assertion, duration_seconds=120)
    event = last_event()
    assert (event["kind"], event["outcome"], event["status"]) == ("token", "issued", 200)
    assert (event["client_id"], event["duration_seconds"]) == (claims["iss"], 120)
    assert "authorization" in event["header_names"]
    assert assertion not in json.dumps(event)
    exchange(assertion)
    assert (last_event()["outcome"], last_event()["code"]) == ("refused", "invalid_request")
