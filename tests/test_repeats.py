"""Coze fails, then doesn't: the broker tries again as long as that can't store a file twice."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from broker.api.delivery import _Sending
from broker.errors import (
    OutcomeUnknown,
    Refusal,
    UpstreamAborted,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamUnreachable,
)
from broker.observe import events
from broker.transfer.pace import Pace
from broker.upstream.guard import Budget
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.passage import FOREVER
from tests.support.refusals import CLIENT, DROP_IN, PROXY, SHAPES, assert_refused
from tests.support.sandbox_control import SandboxControl

SMALL = b"a,b\n1,2\n"
LARGE = b"some,line\n" * 4_000_000
"""More than the network takes before anybody reads it."""


def send(broker: Broker, content: bytes, path: str = PROXY, credential: str | None = None) -> httpx.Response:
    headers = broker.auth(credential) | {"Origin": PAGE_ORIGIN}
    return CLIENT.post(broker.url + path, files={"file": ("a.csv", content)}, headers=headers)


def attempts(broker: Broker, answer: httpx.Response) -> int:
    return int(broker.record(answer.headers["x-request-id"])["attempts"])


@pytest.mark.parametrize("path", SHAPES)
def test_a_small_file_goes_again(broker: Broker, sandbox: SandboxControl, path: str) -> None:
    """It is whole in the broker's hands, and Coze says that it stored nothing."""
    sandbox.fail(path=DROP_IN, times=2, status=500, code=5000)
    answer = send(broker, SMALL, path)
    assert answer.status_code == 200, answer.text
    assert attempts(broker, answer) == 3
    (event,) = sandbox.events(kind="upload", outcome="stored")
    assert sandbox.file(event["file_id"])["sha256"] == hashlib.sha256(SMALL).hexdigest()


def test_a_one_use_token_is_spent_once_for_all_attempts(broker: Broker, sandbox: SandboxControl) -> None:
    sandbox.fail(path=DROP_IN, times=2, status=500, code=5000)
    token = broker.mint(size=len(SMALL), route="proxy")["access_token"]
    assert send(broker, SMALL, credential=token).status_code == 200


def test_there_is_an_end_to_trying(broker: Broker, sandbox: SandboxControl) -> None:
    sandbox.fail(path=DROP_IN, status=500, code=5000)
    answer = send(broker, SMALL)
    assert_refused(broker, answer, UpstreamFailed)
    assert attempts(broker, answer) == len(sandbox.events(kind="upload")) == 3
    assert broker.record(answer.headers["x-request-id"])["sent"] == "all"


ONCE: dict[str, tuple[dict[str, Any], bytes, type[Refusal]]] = {
    "a large file, an error": ({"status": 500, "code": 5000}, LARGE, UpstreamFailed),
    "a large file, closed midway": ({"abort_after_bytes": 100_000}, LARGE, UpstreamAborted),
    "a small file, closed midway": ({"abort_after_bytes": 40}, SMALL, OutcomeUnknown),
    "a small file, the answer lost": ({"abort_answer": True}, SMALL, OutcomeUnknown),
    "a small file, a gateway's error": ({"status": 502, "html": True}, SMALL, OutcomeUnknown),
    "a small file, Coze busy": ({"status": 429, "headers": {"Retry-After": "3"}}, SMALL, UpstreamBusy),
}


@pytest.mark.parametrize(("fault", "content", "refusal"), ONCE.values(), ids=ONCE)
def test_what_may_be_stored_or_is_gone_goes_once(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any], content: bytes, refusal: type[Refusal]
) -> None:
    sandbox.fail(path=DROP_IN, times=1, **fault)
    answer = send(broker, content)
    assert_refused(broker, answer, refusal)
    assert attempts(broker, answer) == len(sandbox.events(kind="upload")) == 1


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_a_coze_that_can_not_be_reached_is_called_again(folder: Path, content: bytes) -> None:
    """Nothing was sent, so the size does not matter."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"COZE_API_BASE": f"http://127.0.0.1:{port}", "COZE_API_TOKEN": "pat_of_the_tests"}
    with running_broker(folder, settings) as broker:
        answer = send(broker, content)
        assert_refused(broker, answer, UpstreamUnreachable)
        assert attempts(broker, answer) == 3


async def test_between_two_attempts_nothing_is_under_way() -> None:
    """Whoever stops the request then must not find that Coze may have the file."""
    event = events.Event()
    events.begin(event)
    pace = Pace(FOREVER)
    file = SimpleNamespace(start_over=lambda: True)
    seen: list[tuple[str | None, str]] = []

    async def attempt() -> None:
        seen.append((event.sent, pace._waiting_for))
        event.sent = "all"
        pace.wait_for("answer")
        raise UpstreamFailed

    journey: Any = SimpleNamespace(file=file, pace=pace)
    with pytest.raises(UpstreamFailed):
        await _Sending(journey, Budget(15), None, None).repeating()(attempt)
    assert seen == [(None, "client"), (None, "connection"), (None, "connection")]
    assert event.sent == "all"
