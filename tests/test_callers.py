"""Callers without an API key of their own to show: end users with an ID token, servers that sign."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import pytest

from broker.signing import SignedAuth, content_digest
from tests.support import needs
from tests.support.broker_process import PAGE_ORIGIN, Broker, run_command, running_broker
from tests.support.openid_provider import OpenIdProvider, running_openid_provider
from tests.support.sandbox_control import SandboxControl

CLIENT_ID = "app-ES256"
CONTENT = b"a,b\n1,2\n"
LARGE = CONTENT * 50_000
DOCUMENT = Path(__file__).parent.parent / "docs" / "signed-requests.md"
SCOPES = ("--scope=token:mint", "--scope=files:upload", "--scope=files:read")


def oidc_settings(issuer: str) -> dict[str, str]:
    return {"BROKER_OIDC_ISSUER": issuer, "BROKER_OIDC_AUDIENCE": CLIENT_ID}


@pytest.fixture(scope="module")
def module_broker(
    session_sandbox: SandboxControl,
    openid_provider: OpenIdProvider,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Broker]:
    """A broker that knows the OpenID provider."""
    folder = tmp_path_factory.mktemp("callers")
    settings = oidc_settings(openid_provider.issuer)
    with running_broker(folder, session_sandbox.environment, **settings) as broker:
        yield broker


@pytest.fixture
def broker(module_broker: Broker, sandbox: SandboxControl) -> Broker:
    return module_broker


# --- end users with an ID token -----------------------------------------------------------------------


def asked(broker: Broker, id_token: str, *, origin: str | None = PAGE_ORIGIN, **body: Any) -> httpx.Response:
    """``POST /token`` with an ID token, from a page."""
    headers = broker.auth(id_token) | ({"Origin": origin} if origin else {})
    return httpx.post(f"{broker.url}/token", json={"size": len(CONTENT), **body}, headers=headers)


def subject_of(receipt: str) -> str:
    subject: str = jwt.decode(receipt, options={"verify_signature": False})["sub"]
    return subject


def test_a_user_who_logged_in_uploads_through_the_broker(
    broker: Broker, sandbox: SandboxControl, openid_provider: OpenIdProvider
) -> None:
    """Who they are at the provider stands in the receipt and in the log; the ID token does not."""
    id_token = openid_provider.id_token("anna")
    answer = asked(broker, id_token, route="proxy")
    assert answer.status_code == 200, answer.text
    headers = broker.auth(answer.json()["access_token"]) | {"Origin": PAGE_ORIGIN}
    uploaded = httpx.post(
        answer.json()["upload_url"], files={"file": ("a.csv", CONTENT)}, headers=headers
    ).json()
    assert sandbox.file(uploaded["file_id"])["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert subject_of(uploaded["receipt"]) == "anna"
    record = broker.record(answer.headers["x-request-id"])
    assert (record["caller"], record["subject"]) == ("user", "anna")
    assert id_token.rpartition(".")[2] not in broker.log.read_text()


def test_a_user_who_logged_in_uploads_straight_to_coze(
    broker: Broker, sandbox: SandboxControl, openid_provider: OpenIdProvider
) -> None:
    token = asked(broker, openid_provider.id_token("anna"), file_name="a.csv").json()
    assert token["route"] == "direct"
    stored = httpx.post(
        token["upload_url"], files={"file": ("a.csv", CONTENT)}, headers=broker.auth(token["access_token"])
    ).json()
    completed = httpx.post(
        token["complete_url"],
        json={"file_id": stored["data"]["id"]},
        headers=broker.auth(token["complete_token"]) | {"Origin": PAGE_ORIGIN},
    )
    assert subject_of(completed.json()["receipt"]) == "anna"


def test_a_user_speaks_for_nobody_else(broker: Broker, openid_provider: OpenIdProvider) -> None:
    id_token = openid_provider.id_token("anna")
    assert asked(broker, id_token, subject="bob").json()["code"] == "subject_not_allowed"
    assert asked(broker, id_token, subject="anna").status_code == 200


def test_pages_of_other_origins_get_no_token_for_a_user(
    broker: Broker, openid_provider: OpenIdProvider
) -> None:
    """An ID token that leaked into another page is of no use there."""
    id_token = openid_provider.id_token("anna")
    for origin in ("http://evil.example", "null", PAGE_ORIGIN.upper()):
        assert asked(broker, id_token, origin=origin).json()["code"] == "origin_not_allowed"


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
def test_an_id_token_uploads_nothing_itself(
    broker: Broker, sandbox: SandboxControl, openid_provider: OpenIdProvider, path: str
) -> None:
    headers = broker.auth(openid_provider.id_token("anna"))
    answer = httpx.post(broker.url + path, files={"file": ("a.csv", CONTENT)}, headers=headers)
    assert answer.status_code == 401
    assert sandbox.events(kind="upload") == []


def test_what_is_no_id_token_for_us_is_refused(broker: Broker, openid_provider: OpenIdProvider) -> None:
    """One for another app of the provider; the provider's access token; one that somebody changed."""
    tokens = openid_provider.log_in("anna", client_id=CLIENT_ID, resource=openid_provider.api)
    changed = tokens["id_token"][:-8] + "AAAAAAAA"
    for token in (openid_provider.id_token("anna", "app-RS256"), tokens["access_token"], changed, "junk"):
        answer = asked(broker, token)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credential")


def test_without_its_provider_users_wait_and_servers_do_not(
    session_sandbox: SandboxControl, folder: Path
) -> None:
    """Nobody is let in whose word can't be checked; that is nobody else's trouble."""
    with running_openid_provider() as provider:
        id_token = provider.id_token("anna")
        provider.stop()
        settings = oidc_settings(provider.issuer)
        with running_broker(folder, session_sandbox.environment, **settings) as broker:
            answer = asked(broker, id_token)
            assert (answer.status_code, answer.json()["code"]) == (503, "identity_provider_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert broker.mint(size=1)
            assert httpx.get(f"{broker.url}/health").status_code == 200
            with running_openid_provider(urlsplit(provider.issuer).port or 0) as back:
                fresh = back.id_token("anna")
                session_sandbox.wait_for(lambda: asked(broker, fresh).status_code == 200, seconds=15)


def test_without_a_provider_in_the_settings_no_id_token_counts(
    session_broker: Broker, openid_provider: OpenIdProvider
) -> None:
    assert asked(session_broker, openid_provider.id_token("anna")).status_code == 401


# --- servers that sign --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signer(module_broker: Broker) -> dict[str, Any]:
    """A key, with its id and its secret for signing."""
    return module_broker.create_key(*SCOPES)


@pytest.fixture
def own_key(broker: Broker) -> dict[str, Any]:
    """A key for a test to spoil."""
    return broker.create_key(*SCOPES)


def signing(key: dict[str, Any]) -> SignedAuth:
    return SignedAuth(key["id"], key["signing_secret"])


def signed(broker: Broker, key: dict[str, Any], content: bytes, **headers: str) -> httpx.Request:
    """A signed upload of a bare file."""
    request = httpx.Request(
        "POST",
        f"{broker.url}/proxy/upload",
        content=content,
        headers={
            "Content-Type": "text/csv",
            "Content-Disposition": "attachment; filename*=UTF-8''a.csv",
            **headers,
        },
    )
    next(signing(key).auth_flow(request))
    return request


def send(request: httpx.Request, content: bytes | None = None) -> httpx.Response:
    """Send it; with other ``content`` in the place of what was signed."""
    with httpx.Client(timeout=30) as client:
        if content is None:
            return client.send(request)
        headers = [(name, value) for name, value in request.headers.items() if name != "content-length"]
        return client.post(request.url, content=content, headers=headers)


def test_a_server_signs_what_it_does(broker: Broker, sandbox: SandboxControl, signer: dict[str, Any]) -> None:
    """Mint, upload, look up: with a body, with a file, with a query; the key never leaves it."""
    with httpx.Client(base_url=broker.url, auth=signing(signer)) as server:
        assert server.post("/token", json={"size": 8}).status_code == 200
        uploaded = server.post("/proxy/upload", files={"file": ("a.csv", CONTENT)}).json()
        found = server.get("/v1/files/retrieve", params={"file_id": uploaded["file_id"]})
    assert sandbox.file(uploaded["file_id"])["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert found.json()["data"]["bytes"] == len(CONTENT)
    record = broker.record(found.headers["x-request-id"])
    assert (record["caller"], record["key_id"]) == ("signed_request", signer["id"])
    assert signer["signing_secret"] not in broker.log.read_text()


@pytest.mark.parametrize("size", [8, 3_000_000])
def test_the_command_line_signs(
    broker: Broker, sandbox: SandboxControl, signer: dict[str, Any], folder: Path, size: int
) -> None:
    path = folder / "标题 (1).csv"
    path.write_bytes((CONTENT * (size // 8))[:size])
    environment = {
        **broker.environment,
        "BROKER_URL": broker.url,
        "BROKER_KEY_ID": signer["id"],
        "BROKER_SIGNING_SECRET": signer["signing_secret"],
    }
    done = run_command("upload", str(path), "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    stored = sandbox.file(json.loads(done.stdout)["file_id"])
    assert stored["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    minted = run_command("token", "--size", "8", environment=environment)
    assert json.loads(minted.stdout)["access_token"]


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
def test_a_file_that_was_changed_on_its_way_is_not_stored(
    broker: Broker, sandbox: SandboxControl, signer: dict[str, Any], content: bytes
) -> None:
    """Not even where most of it is at Coze before its last byte comes."""
    changed = content[:-2] + b"3\n"
    answer = send(signed(broker, signer, content), changed)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature")
    assert sandbox.events(kind="upload", outcome="stored") == []


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
def test_a_form_that_was_changed_and_goes_on_behind_its_end_is_not_stored(
    broker: Broker, sandbox: SandboxControl, signer: dict[str, Any], content: bytes
) -> None:
    """The form's reader is content with the closing boundary; the signature is of the whole body."""
    form = httpx.Request("POST", broker.url, files={"file": ("a.csv", content)})
    body = form.read()
    request = signed(broker, signer, body, **{"Content-Type": form.headers["content-type"]})
    answer = send(request, body.replace(b"1,2", b"1,3") + b"\r\nepilogue " * 500)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature")
    assert sandbox.events(kind="upload", outcome="stored") == []


def test_a_signed_form_may_go_on_behind_its_end(
    broker: Broker, sandbox: SandboxControl, signer: dict[str, Any]
) -> None:
    form = httpx.Request("POST", broker.url, files={"file": ("a.csv", LARGE)})
    body = form.read() + b"\r\nepilogue"
    answer = send(signed(broker, signer, body, **{"Content-Type": form.headers["content-type"]}))
    assert answer.status_code == 200, answer.text
    assert sandbox.file(answer.json()["file_id"])["sha256"] == hashlib.sha256(LARGE).hexdigest()


def test_a_request_for_a_token_that_was_changed_mints_none(broker: Broker, signer: dict[str, Any]) -> None:
    request = httpx.Request("POST", f"{broker.url}/token", json={"size": 8})
    next(signing(signer).auth_flow(request))
    answer = send(request, json.dumps({"size": 8_000_000}).encode())
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature")


def test_a_signed_request_is_good_once(
    broker: Broker, sandbox: SandboxControl, signer: dict[str, Any]
) -> None:
    request = signed(broker, signer, CONTENT)
    assert send(request).status_code == 200
    assert send(request).json()["code"] == "signature_replayed"
    assert len(sandbox.events(kind="upload", outcome="stored")) == 1


def test_a_signature_is_a_use_of_its_key(sandbox: SandboxControl, folder: Path) -> None:
    with running_broker(folder, sandbox.environment) as broker:
        key = broker.create_key(*SCOPES)
        assert send(signed(broker, key, CONTENT)).status_code == 200
    shown = json.loads(broker.command("keys", "show", key["id"], "--json").stdout)
    assert shown["last_used_at"] is not None


def test_an_upload_that_is_repeated_is_signed_anew_and_stored_once(
    broker: Broker, sandbox: SandboxControl, signer: dict[str, Any]
) -> None:
    """Two rules that meet: one nonce for each request, one Idempotency-Key for all of an upload's."""
    key = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    answers = [send(signed(broker, signer, LARGE, **key)).json() for _ in range(3)]
    assert len({answer["file_id"] for answer in answers}) == 1
    assert len(sandbox.events(kind="upload", outcome="stored")) == 1


def test_a_key_that_is_revoked_signs_nothing_any_more(broker: Broker, own_key: dict[str, Any]) -> None:
    assert send(signed(broker, own_key, CONTENT)).status_code == 200
    assert broker.command("keys", "revoke", own_key["id"]).returncode == 0
    answer = send(signed(broker, own_key, CONTENT))
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_signature")


def test_after_a_rotation_the_old_secret_signs_as_long_as_it_may(
    broker: Broker, own_key: dict[str, Any]
) -> None:
    """Which of them did is written down."""
    rotated = json.loads(broker.command("keys", "rotate", own_key["id"], "--json").stdout)
    assert rotated["signing_secret"] != own_key["signing_secret"]
    for key in (own_key, rotated):
        answer = send(signed(broker, {**key, "id": own_key["id"]}, CONTENT))
        assert answer.status_code == 200
        assert broker.record(answer.headers["x-request-id"])["key_hint"] == key["hint"]


def test_a_publishable_key_signs_nothing(broker: Broker, signer: dict[str, Any]) -> None:
    """It has no secret to sign with: neither itself nor another's."""
    publishable = broker.create_key("--publishable", f"--origin={PAGE_ORIGIN}")
    assert "signing_secret" not in publishable
    for secret in (publishable["key"], signer["signing_secret"]):
        request = httpx.Request("POST", f"{broker.url}/token", json={"size": 8})
        next(SignedAuth(publishable["id"], secret).auth_flow(request))
        assert send(request).json()["code"] == "invalid_signature"


def test_the_key_itself_is_not_its_signing_secret(broker: Broker, signer: dict[str, Any]) -> None:
    """Who finds one has not found the other."""
    request = signed(broker, {**signer, "signing_secret": signer["key"]}, CONTENT)
    assert send(request).json()["code"] == "invalid_signature"
    bearer = broker.auth(signer["signing_secret"])
    assert httpx.post(f"{broker.url}/token", json={"size": 8}, headers=bearer).status_code == 401


def test_a_signature_and_a_credential_are_one_too_many(broker: Broker, signer: dict[str, Any]) -> None:
    request = signed(broker, signer, CONTENT)
    request.headers["Authorization"] = f"Bearer {signer['key']}"
    assert send(request).json()["code"] == "invalid_signature"


def test_a_signature_gives_no_more_than_its_key_has(broker: Broker) -> None:
    key = broker.create_key("--scope=token:mint")
    assert send(signed(broker, key, CONTENT)).json()["code"] == "wrong_scope"


def test_a_digest_is_no_signature(broker: Broker) -> None:
    headers = {"Content-Digest": content_digest(hashlib.sha256(CONTENT).digest())}
    answer = httpx.post(f"{broker.url}/proxy/upload", content=CONTENT, headers=headers)
    assert answer.json()["code"] == "missing_credential"


def test_the_documented_example_works(broker: Broker, signer: dict[str, Any]) -> None:
    """With curl and openssl alone, as it stands in the document."""
    needs.executable("curl")
    needs.executable("openssl")
    found = re.search(r"```sh\n(.+?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    environment = {
        **os.environ,
        "KEY_ID": signer["id"],
        "SIGNING_SECRET": signer["signing_secret"],
        "BROKER_URL": broker.url,
    }
    done = subprocess.run(
        ["sh", "-euc", found[1]], env=environment, capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["max_bytes"] == 1234
