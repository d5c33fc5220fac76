"""One sandbox process for these tests, and a client for each."""

import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jwt
import pytest

from broker.sandbox.credentials import AppCredentials
from broker.sandbox.launch import SandboxProcess, in_subprocess

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"


@pytest.fixture(scope="session")
def sandbox() -> Iterator[SandboxProcess]:
    with in_subprocess() as running:
        yield running


@pytest.fixture
def anonymous(sandbox: SandboxProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.base_url, timeout=30) as client:
        client.delete("/_sandbox/faults")
        client.delete("/_sandbox/events")
        yield client
        client.delete("/_sandbox/faults")


@pytest.fixture
def client(anonymous: httpx.Client, sandbox: SandboxProcess) -> httpx.Client:
    anonymous.headers["authorization"] = f"Bearer {sandbox.credentials.api_token}"
    return anonymous


@pytest.fixture
def order(client: httpx.Client) -> Callable[..., None]:
    def order_fault(**fault: Any) -> None:
        client.put("/_sandbox/faults", json={"times": 1} | fault).raise_for_status()

    return order_fault


@pytest.fixture
def last_event(anonymous: httpx.Client) -> Callable[[], dict[str, Any]]:
    """The newest event once it is settled: a broken connection is noticed a moment later."""

    def newest() -> dict[str, Any]:
        deadline = time.monotonic() + 5
        while True:
            events: list[dict[str, Any]] = anonymous.get("/_sandbox/events").json()["events"]
            if events and (events[-1]["outcome"] != "open" or time.monotonic() > deadline):
                return events[-1]
            assert time.monotonic() < deadline, "no event came"
            time.sleep(0.02)

    return newest


@pytest.fixture
def claims(sandbox: SandboxProcess) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": sandbox.credentials.server_app.client_id,
        "aud": sandbox.base_url.removeprefix("http://"),
        "iat": now,
        "exp": now + 600,
        "jti": secrets.token_hex(16),
    }


@pytest.fixture
def signed(sandbox: SandboxProcess) -> Callable[..., str]:
    def sign(claims: dict[str, Any], app: AppCredentials | None = None, *, kid: str | None = None) -> str:
        owner = app or sandbox.credentials.server_app
        headers = {"kid": kid or owner.public_key_id}
        return jwt.encode(claims, owner.private_key_pem, algorithm="RS256", headers=headers)

    return sign


@pytest.fixture
def exchange(anonymous: httpx.Client) -> Callable[..., httpx.Response]:
    def ask(assertion: str, **body: Any) -> httpx.Response:
        return anonymous.post(
            "/api/permission/oauth2/token",
            headers={"authorization": f"Bearer {assertion}"},
            json={"grant_type": JWT_BEARER} | body,
        )

    return ask
