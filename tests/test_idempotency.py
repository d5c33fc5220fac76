"""An upload with an ``Idempotency-Key`` may be sent as often as one likes: Coze gets it once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import (
    IdempotencyKeyReused,
    InvalidRequest,
    OutcomeUnknown,
    TokenUsed,
    UpstreamFailed,
)
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import FORM_TYPE, Connection, form, head, part
from tests.support.refusals import CLIENT, DROP_IN, PROXY, SHAPES, assert_refused
from tests.support.sandbox_control import SandboxControl

SMALL = b"a,b\n1,2\n"
LARGE = b"some,line\n" * 30_000
"""More than is kept to be sent again."""


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


def send(
    broker: Broker,
    key: str | None,
    content: bytes = SMALL,
    *,
    path: str = PROXY,
    credential: str | None = None,
    name: str = "a.csv",
    **headers: str,
) -> httpx.Response:
    headers |= broker.auth(credential) | {"Origin": PAGE_ORIGIN}
    if key is not None:
        headers["Idempotency-Key"] = key
    return CLIENT.post(broker.url + path, files={"file": (name, content)}, headers=headers)


def beginning(broker: Broker, key: str) -> bytes:
    """An upload of ``LARGE`` as far as that, and with more to come."""
    return _head(broker, key, 1_000_000) + part(b"", file_name=b"a.csv")[:-2] + LARGE


def whole(broker: Broker, key: str) -> bytes:
    """An upload of ``SMALL``."""
    body = form(part(SMALL, file_name=b"a.csv"))
    return _head(broker, key, len(body)) + body


def _head(broker: Broker, key: str, length: int) -> bytes:
    headers = {"Content-Type": FORM_TYPE, "Content-Length": str(length), "Idempotency-Key": key}
    return head(PROXY, [*(broker.auth() | headers).items()])


def stored(sandbox: SandboxControl) -> list[dict[str, Any]]:
    return sandbox.events(kind="upload", outcome="stored")


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("path", SHAPES)
def test_the_same_upload_gets_the_same_answer(
    broker: Broker, sandbox: SandboxControl, key: str, path: str, content: bytes
) -> None:
    first = send(broker, key, content, path=path)
    assert first.status_code == 200, first.text
    assert "idempotency-replayed" not in first.headers
    for _ in range(2):
        again = send(broker, key, content, path=path)
        assert (again.status_code, again.json()) == (200, first.json())
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" in again.headers["access-control-expose-headers"].lower()
        record = broker.record(again.headers["x-request-id"])
        assert (record["replayed"], record["bytes_received"]) == (True, len(content))
        assert "sent" not in record
    assert len(stored(sandbox)) == 1


def test_the_key_counts_with_quotes_and_without(broker: Broker, sandbox: SandboxControl, key: str) -> None:
    answers = [send(broker, text).json() for text in (key, f'"{key}"')]
    assert answers == [answers[0]] * 2
    assert len(stored(sandbox)) == 1


OTHERS = {"name": {"name": "b.csv"}, "content": {"content": b"1,2\na,b\n"}, "size": {"content": SMALL + b"3"}}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("path", SHAPES)
def test_another_upload_under_the_same_key_is_refused(
    broker: Broker, sandbox: SandboxControl, key: str, path: str, other: dict[str, Any]
) -> None:
    send(broker, key, path=path)
    assert_refused(broker, send(broker, key, path=path, **other), IdempotencyKeyReused, path)
    assert send(broker, key, path=path).status_code == 200
    assert len(stored(sandbox)) == 1


def test_what_one_caller_sends_says_nothing_of_another(
    broker: Broker, sandbox: SandboxControl, key: str
) -> None:
    other = broker.create_key("--scope=files:upload")["key"]
    tokens = [
        broker.mint(size=len(SMALL), route="proxy", subject=subject)["access_token"]
        for subject in ("ann", "bob")
    ]
    ids = {
        send(broker, key, credential=credential).json()["file_id"] for credential in (None, other, *tokens)
    }
    assert len(ids) == len(stored(sandbox)) == 4


def test_a_used_token_gets_its_answer_again(broker: Broker, sandbox: SandboxControl, key: str) -> None:
    """And so does a fresh one of the same subject's; not without the key, and not under another."""
    token, fresh = (
        broker.mint(size=len(SMALL), route="proxy", subject="ann")["access_token"] for _ in range(2)
    )
    first = send(broker, key, credential=token)
    assert send(broker, key, credential=token).json() == first.json()
    assert send(broker, key, credential=fresh).json() == first.json()
    for other in (None, key + "x"):
        assert_refused(broker, send(broker, other, credential=token), TokenUsed)
    assert len(stored(sandbox)) == 1


@pytest.mark.parametrize("at_once", [2, 8])
def test_of_those_that_come_at_once_one_is_stored(
    broker: Broker, sandbox: SandboxControl, key: str, at_once: int
) -> None:
    sandbox.fail(path=DROP_IN, delay_seconds=0.5)
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda _: send(broker, key), range(at_once)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == at_once - 1
    assert len(stored(sandbox)) == 1


def test_an_upload_that_failed_may_be_sent_again(broker: Broker, sandbox: SandboxControl, key: str) -> None:
    sandbox.fail(path=DROP_IN, code=5000, status=500, times=1)
    assert_refused(broker, send(broker, key, LARGE), UpstreamFailed)
    assert send(broker, key, LARGE).status_code == 200
    assert len(stored(sandbox)) == 1


def test_another_file_may_follow_one_that_failed(broker: Broker, sandbox: SandboxControl, key: str) -> None:
    sandbox.fail(path=DROP_IN, code=4304, status=400, times=1)
    assert send(broker, key).status_code == 415
    assert send(broker, key, name="b.csv").status_code == 200


@pytest.fixture(scope="module")
def hasty_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that waits a second for Coze's answer."""
    settings = {"BROKER_READ_TIMEOUT_SECONDS": "1"}
    with running_broker(tmp_path_factory.mktemp("hasty"), session_sandbox.environment, **settings) as broker:
        yield broker


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
def test_an_outcome_that_nobody_knows_is_not_tried_again(
    hasty_broker: Broker, sandbox: SandboxControl, key: str, content: bytes
) -> None:
    """Coze stored the file and its answer never came: whoever asks again gets no second file."""
    sandbox.fail(path=DROP_IN, never_answer=True, times=1)
    assert_refused(hasty_broker, send(hasty_broker, key, content), OutcomeUnknown)
    assert_refused(hasty_broker, send(hasty_broker, key, content), OutcomeUnknown)
    assert len(sandbox.events(kind="upload")) == 1
    assert_refused(hasty_broker, send(hasty_broker, key, content + b"x"), IdempotencyKeyReused)
    assert send(hasty_broker, key + "-new", content).status_code == 200


def test_a_client_that_left_midway_sends_its_file_again(
    broker: Broker, sandbox: SandboxControl, key: str
) -> None:
    with Connection(broker.url) as connection:
        connection.send(beginning(broker, key))
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
    assert send(broker, key, LARGE).status_code == 200
    assert len(stored(sandbox)) == 1


def test_a_line_that_went_dead_without_a_word_is_waited_for(
    folder: Path, sandbox: SandboxControl, key: str
) -> None:
    """The phone changed its network: the broker hears nothing of it, and the second try comes at once."""
    one = {"BROKER_CLIENT_IDLE_SECONDS": "1"}
    with running_broker(folder, sandbox.environment, **one) as broker, Connection(broker.url) as dead:
        dead.send(beginning(broker, key))
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        assert send(broker, key, LARGE).status_code == 200
    assert len(stored(sandbox)) == 1


def test_a_client_that_leaves_between_two_attempts_leaves_no_doubt(
    broker: Broker, sandbox: SandboxControl, key: str
) -> None:
    """Coze said that it has nothing of the file, so it may be sent again."""
    sandbox.fail(path=DROP_IN, code=5000, status=500, times=3)
    with Connection(broker.url) as connection:
        connection.send(whole(broker, key))
        sandbox.wait_for(lambda: sandbox.events(kind="upload", status=500))
    sandbox.wait_for(lambda: send(broker, key).status_code == 200)
    assert len(stored(sandbox)) == 1


def test_an_answer_that_nobody_waits_for_is_kept(broker: Broker, sandbox: SandboxControl, key: str) -> None:
    """The client left when all was sent; whoever asks again gets what Coze said."""
    sandbox.fail(path=DROP_IN, delay_seconds=0.7, times=1)
    with Connection(broker.url) as connection:
        connection.send(whole(broker, key))
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        time.sleep(0.1)
    again = send(broker, key)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (200, "true")
    assert len(stored(sandbox)) == 1


def test_answers_outlive_the_process(folder: Path, sandbox: SandboxControl, key: str) -> None:
    with running_broker(folder, sandbox.environment) as broker:
        first = send(broker, key)
        secret = broker.secret_key
    with running_broker(folder, sandbox.environment) as broker:
        again = send(broker, key, credential=secret)
    assert again.headers["idempotency-replayed"] == "true"
    # The port is another one, and so is the receipt's issuer.
    assert again.json() | {"receipt": ""} == first.json() | {"receipt": ""}


def test_a_killed_process_leaves_a_row_that_says_so(folder: Path, sandbox: SandboxControl, key: str) -> None:
    """Until its lease is out nobody knows whether it is still at work."""
    sandbox.fail(path=DROP_IN, delay_seconds=30)
    with running_broker(folder, sandbox.environment) as broker, ThreadPoolExecutor(1) as pool:
        pool.submit(send, broker, key)
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        time.sleep(0.2)
        broker.process.kill()
        broker.process.wait()
        secret = broker.secret_key
    with running_broker(folder, sandbox.environment) as broker:
        answer = send(broker, key, credential=secret)
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_progress")
    assert answer.headers["retry-after"] == str(answer.json()["retry_after_seconds"])


UNUSABLE = {
    "empty": "",
    "too long": "k" * 256,
    "half a quote": '"key',
    "two words": "a key",
    "not ASCII": "é",
}


@pytest.mark.parametrize("text", UNUSABLE.values(), ids=UNUSABLE)
def test_a_key_that_can_not_be_used_is_refused(broker: Broker, sandbox: SandboxControl, text: str) -> None:
    headers = broker.auth() | {"Origin": PAGE_ORIGIN, "Idempotency-Key": text}
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    answer = CLIENT.post(broker.url + PROXY, files={"file": ("a.csv", SMALL)}, headers=raw)
    assert_refused(broker, answer, InvalidRequest)
    assert not sandbox.events(kind="upload")


def test_two_keys_are_refused(broker: Broker) -> None:
    headers = [*(broker.auth() | {"Origin": PAGE_ORIGIN}).items()]
    headers += [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    answer = CLIENT.post(broker.url + PROXY, files={"file": ("a.csv", SMALL)}, headers=headers)
    assert_refused(broker, answer, InvalidRequest)


def test_a_page_may_send_the_header(broker: Broker) -> None:
    asked = {
        "Origin": PAGE_ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,idempotency-key,repr-digest",
    }
    answer = CLIENT.options(broker.url + PROXY, headers=asked)
    assert answer.status_code == 200
    assert "idempotency-key" in answer.headers["access-control-allow-headers"].lower()
