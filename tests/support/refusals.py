"""What every refusal has, whoever it is made for and in whatever shape it comes."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx

from broker.errors import Refusal
from tests.support.broker_process import PAGE_ORIGIN, Broker
from tests.support.sandbox_control import SandboxControl

PROXY = "/proxy/upload"
DROP_IN = "/v1/files/upload"
SHAPES = (PROXY, DROP_IN)
"""Our own route answers with problem+json, Coze's with Coze's envelope."""

_SECRETS = re.compile(
    r"cub_(?:[sp]k|ss)_\w{20}|eyJ[\w-]{8,}\.[\w-]{8}|(pat|sat|czs)_[\w-]{12}|PRIVATE KEY|Bearer [\w.-]{12}"
)


CLIENT = httpx.Client(timeout=30, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
"""One for all: making a client reads every certificate authority of the machine."""


def heal(sandbox: SandboxControl) -> SandboxControl:
    """The sandbox without faults and memories, for hundreds of tests on end."""
    for what in ("faults", "events"):
        CLIENT.delete(f"{sandbox.url}/_sandbox/{what}").raise_for_status()
    return sandbox


def record_of(broker: Broker, request_id: str, seconds: float = 5.0) -> dict[str, Any]:
    """The log's record of a request; looks at whole lines from the end, and parses one."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        for line in reversed(whole_lines(broker)):
            if request_id in line and '"event": "request"' in line:
                record: dict[str, Any] = json.loads(line)
                return record
        time.sleep(0.02)
    raise AssertionError(f"no record of request {request_id}")


def whole_lines(broker: Broker) -> list[str]:
    """The log's lines; the last one may be half written still, and is left out then."""
    return broker.log.read_text().split("\n")[:-1]


def assert_refused(
    broker: Broker, answer: httpx.Response, refusal: type[Refusal], path: str = PROXY
) -> dict[str, object]:
    """The answer is this refusal in the path's shape, with its headers, and the log says the same.

    The request must have had ``PAGE_ORIGIN`` as its origin. Returns the answer's JSON.
    """
    body: dict[str, object] = answer.json()
    assert answer.status_code == refusal.status, answer.text
    assert answer.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert answer.headers["cache-control"] == "no-store"
    request_id = answer.headers["x-request-id"]
    if path == DROP_IN:
        _assert_envelope(answer, body, refusal)
    else:
        _assert_problem(answer, body, refusal)
    assert_says_nothing(answer.text + str(answer.headers), broker)
    record = record_of(broker, request_id)
    assert (record["code"], record["status"]) == (refusal.code, refusal.status), record
    return body


def assert_no_secret(text: str) -> None:
    """No key, token or private key stands in the text."""
    found = _SECRETS.search(text)
    assert found is None, text[max(0, found.start() - 80) : found.end()]


def assert_says_nothing(text: str, broker: Broker) -> None:
    """Neither a secret nor where Coze is stands in an answer."""
    assert_no_secret(text)
    assert broker.environment["COZE_API_BASE"].removeprefix("http://") not in text


def _assert_problem(answer: httpx.Response, body: dict[str, object], refusal: type[Refusal]) -> None:
    assert answer.headers["content-type"] == "application/problem+json"
    wait = {"retry_after_seconds"} if "retry-after" in answer.headers else set()
    assert set(body) == {"type", "title", "status", "detail", "code", "request_id", "retryable"} | wait
    assert (body["code"], body["status"]) == (refusal.code, refusal.status), answer.text
    assert (body["title"], body["retryable"]) == (refusal.title, refusal.retryable)
    assert str(body["type"]).endswith(f":{refusal.code}")
    assert body["request_id"] == answer.headers["x-request-id"]
    if wait:
        assert answer.headers["retry-after"] == str(body["retry_after_seconds"])


def _assert_envelope(answer: httpx.Response, body: dict[str, object], refusal: type[Refusal]) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert set(body) == {"code", "msg", "detail"}
    assert body["code"] == refusal.coze_code, answer.text
    assert body["msg"]
    assert body["detail"] == {"logid": answer.headers["x-tt-logid"]}
