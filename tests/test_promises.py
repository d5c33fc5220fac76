"""What a caller is told holds: of retrying, of what is stored, of how long it may take."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.observe import logs
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n1,2\n"
TOKEN_PATH = "/api/permission/oauth2/token"


def upload(broker: Broker, credential: str, name: str = "a.csv", **headers: str) -> httpx.Response:
    return httpx.post(
        f"{broker.url}/proxy/upload",
        headers={"Authorization": f"Bearer {credential}", **headers},
        files={"file": (name, CSV, "text/csv")},
        timeout=30,
    )


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, str(response.json()["code"])


def test_a_token_is_not_spent_on_an_upload_that_never_began(folder: Path, sandbox: SandboxControl) -> None:
    """Coze gave no credential, so it never heard of the file: the same token works a moment later."""
    with running_broker(folder, sandbox.environment) as broker:
        token = broker.mint(size=len(CSV), route="proxy")["access_token"]
        sandbox.fail(path=TOKEN_PATH, status=500)
        assert code(upload(broker, token)) == (502, "upstream_failed")
        sandbox.heal()
        sandbox.wait_for(lambda: upload(broker, token).status_code == 200)


def test_a_full_house_does_not_spend_the_token(folder: Path, sandbox: SandboxControl) -> None:
    slots = {"BROKER_MAX_UPSTREAM_CONNECTIONS": "1", "BROKER_POOL_WAIT_SECONDS": "0.3"}
    with running_broker(folder, sandbox.environment, **slots) as broker:
        upload(broker, broker.secret_key)  # has the server's token fetched
        token = broker.mint(size=len(CSV), route="proxy")["access_token"]
        with begun_upload(broker):
            full = upload(broker, token)
            assert code(full) == (503, "no_free_slot")
            assert full.headers["retry-after"] == str(full.json()["retry_after_seconds"])
            assert code(upload(broker, token, "a.png")) == (415, "file_content_mismatch")
        sandbox.wait_for(lambda: upload(broker, token).status_code == 200)


def test_without_a_credential_nothing_was_sent_and_it_is_said_so(
    folder: Path, sandbox: SandboxControl
) -> None:
    """A token endpoint that never answers is a time-out, not an outcome that nobody knows."""
    short = {"BROKER_READ_TIMEOUT_SECONDS": "1", "BROKER_CONNECT_TIMEOUT_SECONDS": "1"}
    with running_broker(folder, sandbox.environment, **short) as broker:
        sandbox.fail(path=TOKEN_PATH, never_answer=True)
        answer = upload(broker, broker.secret_key)
        assert code(answer) == (504, "upstream_timeout")
        assert answer.json()["retryable"] is True


def test_a_page_hears_of_the_other_route_in_time(folder: Path, sandbox: SandboxControl) -> None:
    """With the usual settings; the helper waits half a minute for a token."""
    with running_broker(folder, sandbox.environment) as broker:
        sandbox.fail(path=TOKEN_PATH, never_answer=True)
        response = httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth(), timeout=20)
    assert (response.json()["route"], response.json()["reason"]) == ("proxy", "direct_unavailable")


def test_a_token_request_that_stops_midway_is_given_up(folder: Path, sandbox: SandboxControl) -> None:
    with running_broker(folder, sandbox.environment, BROKER_CLIENT_IDLE_SECONDS="0.5") as broker:
        host, port = broker.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            head = f"POST /token HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {broker.secret_key}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            connection.sendall(head.encode())
            answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"client_too_slow"' in answer


@pytest.mark.parametrize("path", ["/token/", "/proxy/upload/", "/v1/files/upload/", "/health/"])
def test_nobody_is_sent_to_another_address(broker: Broker, path: str) -> None:
    """A redirect would be built from the Host header; a client would take its credential along."""
    response = httpx.post(f"{broker.url}{path}", headers={**broker.auth(), "Host": "attacker.example"})
    assert response.status_code == 404
    assert "location" not in response.headers


@pytest.mark.parametrize("origin", ["null", "https://app.example/path", "x" * 500])
def test_a_token_is_bound_to_an_origin_or_to_none(broker: Broker, origin: str) -> None:
    response = httpx.post(
        f"{broker.url}/token", json={"size": 1}, headers={**broker.auth(), "Origin": origin}
    )
    assert code(response) == (403, "origin_not_allowed")


def test_the_longest_token_that_is_minted_is_also_taken(broker: Broker) -> None:
    token = broker.mint(
        size=len(CSV),
        route="proxy",
        subject="😀" * 200,
        content_type=f"text/{'c' * 127}",
        sha256="0" * 64,
        origin=PAGE_ORIGIN,
    )
    answer = upload(broker, token["access_token"], Origin=PAGE_ORIGIN)
    assert code(answer) == (415, "type_not_granted")


def test_a_lookup_that_coze_refuses_says_nothing_of_files(broker: Broker, sandbox: SandboxControl) -> None:
    sandbox.fail(path="/v1/files/retrieve", code=4000)
    answer = httpx.get(f"{broker.url}/v1/files/retrieve?file_id=1", headers=broker.auth())
    assert (answer.status_code, answer.json()["code"]) == (422, 4000)
    assert "extension" not in answer.json()["msg"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_trace_in_the_log_shows_no_values(log_format: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Local variables of the frames would show whatever credential was at hand."""
    before = logging.getLogger().handlers[:]
    logs.configure(log_format)
    try:
        _fail_with("cub_sk_canary")
    except ValueError as error:
        logs.unexpected(error)
    finally:
        logging.getLogger().handlers[:] = before
    shown = capfd.readouterr().err
    assert "ValueError" in shown
    assert "canary" not in shown.replace('_fail_with("cub_sk_canary")', "")


@pytest.mark.parametrize("kind", ["sk", "pk", "ss"])
def test_a_secret_of_ours_is_not_logged_whoever_writes_it(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger().handlers[:]
    logs.configure("json")
    try:
        logs.warning("what others wrote", detail=f"it said cub_{kind}_Canary-4711_x, and went on")
    finally:
        logging.getLogger().handlers[:] = before
    shown = capfd.readouterr().err
    assert f"it said cub_{kind}_(redacted), and went on" in shown
    assert "Canary" not in shown


def _fail_with(secret: str) -> None:
    assert secret
    raise ValueError("something went wrong")


@contextmanager
def begun_upload(broker: Broker) -> Iterator[None]:
    """An upload that has its slot and sends nothing more."""
    host, port = broker.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        head = f"POST /proxy/upload HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {broker.secret_key}\r\n"
        head += "Content-Type: text/csv\r\nContent-Length: 1000000\r\n\r\n" + "a,b\n" * 1024
        connection.sendall(head.encode())
        time.sleep(0.3)
        yield


def test_a_credential_that_coze_repeats_is_not_logged(broker: Broker, sandbox: SandboxControl) -> None:
    token = broker.environment["COZE_API_TOKEN"]
    sandbox.fail(path="/v1/files/upload", status=401, code=4100, msg=f"invalid token {token}")
    answer = upload(broker, broker.secret_key)
    assert code(answer) == (502, "upstream_credential_refused")
    record = broker.record(answer.headers["x-request-id"])
    assert "invalid token pat_(redacted)" in record["log"]
    assert token not in broker.log.read_text()


@pytest.mark.parametrize("path", ["/v1/bots", "/v3/chat", "/open_api/knowledge/document/list"])
def test_cozes_clients_can_read_the_refusal_of_a_path(broker: Broker, path: str) -> None:
    answer = httpx.post(f"{broker.url}{path}", headers=broker.auth())
    assert (answer.status_code, answer.json()["code"]) == (404, 4200)
    assert answer.json()["msg"]


def test_a_misspelt_setting_is_noticed(folder: Path, sandbox: SandboxControl) -> None:
    with running_broker(folder, sandbox.environment, BROKER_ALOWED_ORIGINS="https://a.example") as broker:
        assert any("BROKER_ALOWED_ORIGINS" in line.get("detail", "") for line in broker.log_lines())
