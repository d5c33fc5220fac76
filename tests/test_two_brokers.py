"""Two brokers on one Redis and one PostgreSQL: what one of them lets pass, the other knows of."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from broker.signing import SignedAuth
from tests.support.broker_process import Broker
from tests.support.pair import Pair, running_pair
from tests.support.raw_http import Connection, head
from tests.support.redis import RedisServer
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for

FILE = ("a.csv", b"a,b\n")
RACES = 1000
AT_ONCE = 16
SCOPES = ("--scope=token:mint", "--scope=files:upload", "--scope=keys:admin")


@pytest.fixture(scope="module")
def pair(
    session_sandbox: SandboxControl,
    session_redis: RedisServer,
    postgresql: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    session_redis.heal()
    settings = {"BROKER_MAX_INFLIGHT_UPLOADS_PER_SUBJECT": "3"}
    folder = tmp_path_factory.mktemp("pair")
    with running_pair(folder, session_sandbox.environment, postgresql, session_redis, **settings) as pair:
        yield pair


@pytest.fixture(autouse=True)
def healed(pair: Pair, sandbox: SandboxControl) -> Iterator[None]:
    pair.redis.heal()
    for broker in pair:
        wait_for(lambda broker=broker: httpx.get(f"{broker.url}/ready").status_code == 200)
    yield
    pair.redis.heal()


def upload(broker: Broker, credential: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {credential}"}
    return httpx.post(f"{broker.url}/proxy/upload", files={"file": FILE}, headers=headers)


def token(broker: Broker, **asked: Any) -> str:
    return str(broker.mint(**{"size": 4, "route": "proxy", **asked})["access_token"])


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "ok")


# --- one use ------------------------------------------------------------------------------------------


async def test_of_two_who_come_at_once_with_one_token_one_gets_in_each_time(
    pair: Pair, sandbox: SandboxControl
) -> None:
    won = []
    async with httpx.AsyncClient(timeout=60) as client:

        async def use(broker: Broker, text: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {text}"}
            return await client.post(f"{broker.url}/proxy/upload", files={"file": FILE}, headers=headers)

        async def race() -> None:
            minted = await client.post(
                f"{pair.one.url}/token", json={"size": 4, "route": "proxy"}, headers=pair.one.auth()
            )
            text = minted.json()["access_token"]
            answers = await asyncio.gather(use(pair.one, text), use(pair.other, text))
            assert sorted(map(code, answers)) == [(200, "ok"), (401, "token_used")]
            won.append(answers[0].status_code == 200)

        for _ in range(0, RACES, AT_ONCE):
            await asyncio.gather(*(race() for _ in range(AT_ONCE)))
    assert len(won) >= RACES
    # A race that the same one wins every time is none.
    assert 0 < sum(won) < len(won)


def test_a_token_for_three_uploads_is_good_for_three_at_both(pair: Pair) -> None:
    text = token(pair.one, uses=3)
    answers = [upload(broker, text) for broker in (pair.one, pair.other, pair.other, pair.one)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 401]


# --- revoked, rotated ---------------------------------------------------------------------------------


def test_a_key_that_one_revokes_is_refused_by_the_other_at_once(pair: Pair) -> None:
    created = pair.one.create_key(*SCOPES)
    auth = {"Authorization": f"Bearer {created['key']}"}
    assert upload(pair.other, created["key"]).status_code == 200
    assert httpx.delete(f"{pair.one.url}/keys/{created['id']}", headers=auth).status_code == 200
    assert code(upload(pair.other, created["key"])) == (401, "invalid_credential")
    assert code(upload(pair.one, created["key"])) == (401, "invalid_credential")


def test_a_key_that_the_command_line_revokes_is_refused_at_once(pair: Pair) -> None:
    created = pair.one.create_key(*SCOPES)
    assert upload(pair.other, created["key"]).status_code == 200
    assert pair.one.command("keys", "revoke", created["id"]).returncode == 0
    assert code(upload(pair.other, created["key"])) == (401, "invalid_credential")


def test_the_tokens_of_a_revoked_key_are_refused(pair: Pair) -> None:
    created = pair.one.create_key(*SCOPES)
    minted = [token(pair.one, key=created["key"]) for _ in range(2)]
    assert upload(pair.other, minted[0]).status_code == 200
    pair.one.command("keys", "revoke", created["id"])
    assert code(upload(pair.other, minted[1])) == (401, "revoked_credential")


@pytest.mark.parametrize("by", ["token", "subject", "key_id"])
def test_tokens_that_one_takes_back_are_refused_by_the_other(pair: Pair, by: str) -> None:
    created = pair.one.create_key(*SCOPES)
    auth = {"Authorization": f"Bearer {created['key']}"}
    text, before = (token(pair.one, key=created["key"], subject="user-42") for _ in range(2))
    assert upload(pair.other, before).status_code == 200
    form = {by: {"token": text, "subject": "user-42", "key_id": created["id"]}[by]}
    assert httpx.post(f"{pair.one.url}/token/revoke", data=form, headers=auth).status_code == 200
    assert code(upload(pair.other, text)) == (401, "revoked_credential")
    introspected = httpx.post(f"{pair.other.url}/token/introspect", data={"token": text}, headers=auth)
    assert introspected.json() == {"active": False}


def test_a_rotated_key_works_in_its_grace_at_both_and_not_after_it(pair: Pair) -> None:
    created = pair.one.create_key(*SCOPES)
    old = created["key"]
    auth = {"Authorization": f"Bearer {old}"}
    rotated = httpx.post(
        f"{pair.one.url}/keys/{created['id']}/rotate", json={"grace_seconds": 3}, headers=auth
    ).json()
    for broker in pair:
        assert upload(broker, old).status_code == 200
        assert upload(broker, rotated["key"]).status_code == 200
    for broker in pair:
        wait_for(lambda broker=broker: code(upload(broker, old)) == (401, "expired_credential"))
        assert upload(broker, rotated["key"]).status_code == 200


def test_a_running_upload_is_stopped_when_its_key_is_revoked(pair: Pair, sandbox: SandboxControl) -> None:
    created = pair.one.create_key(*SCOPES)
    with begun(pair.other, sandbox, created["key"]) as connection:
        pair.one.command("keys", "revoke", created["id"])
        answer = connection.answer()
    assert answer.status_code == 401
    assert sandbox.events(outcome="stored") == []


# --- limits -------------------------------------------------------------------------------------------


def test_a_limit_counts_what_both_let_pass(pair: Pair) -> None:
    created = pair.one.create_key("--scope=token:mint", "--requests=10", "--window-seconds=60")
    auth = {"Authorization": f"Bearer {created['key']}"}
    answers = [httpx.post(f"{broker.url}/token", json={"size": 4}, headers=auth) for broker in [*pair] * 6]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
    assert answers[0].headers["ratelimit-policy"] == '"key";q=10;w=60'
    assert answers[8].headers["ratelimit"].startswith('"key";r=1;t=')
    assert code(answers[-1]) == (429, "rate_limited")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 60


def test_uploads_in_flight_are_counted_together(pair: Pair, sandbox: SandboxControl) -> None:
    created = pair.one.create_key(*SCOPES, "--inflight=2")
    key = created["key"]
    with begun(pair.one, sandbox, key), begun(pair.other, sandbox, key):
        refused = upload(pair.one, key)
        assert code(refused) == (429, "too_many_uploads")
        assert refused.headers["retry-after"] == "2"
    wait_for(lambda: upload(pair.other, key).status_code == 200)


def begun(broker: Broker, sandbox: SandboxControl, key: str) -> Connection:
    """An upload that Coze has heard of, and that sends nothing more."""
    before = len(sandbox.events(kind="upload"))
    connection = Connection(broker.url)
    headers = broker.auth(key) | {"Content-Type": "text/csv", "Content-Length": "1000000"}
    connection.send(head("/proxy/upload", [*headers.items()]) + b"a,b\n" * 1024)
    sandbox.wait_for(lambda: len(sandbox.events(kind="upload")) > before)
    return connection


# --- Redis --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["kill", "pause", "refuse_writes"])
def test_without_redis_nothing_is_minted_or_used_and_it_is_said_fast(pair: Pair, trouble: str) -> None:
    text = token(pair.one)
    mark = len(pair.one.log_lines())
    getattr(pair.redis, trouble)()
    for _ in range(5):
        minted, seconds = timed(lambda: mint(pair.one))
        assert code(minted) == (503, "store_unavailable")
        assert seconds < 0.6  # 300 ms, and as much again for a busy machine
        assert code(upload(pair.one, text)) == (503, "store_unavailable")
    assert upload(pair.one, pair.one.secret_key).status_code == 200, "an API key needs no claim"
    ready = httpx.get(f"{pair.one.url}/ready")
    assert (ready.status_code, ready.json()["checks"]["redis"]) == (503, "store_unavailable")
    assert httpx.get(f"{pair.one.url}/health").status_code == 200
    pair.redis.heal()
    wait_for(lambda: httpx.get(f"{pair.one.url}/ready").status_code == 200)
    pair.one.mint(size=4)
    told = [line["event"] for line in pair.one.log_lines()[mark:] if "redis" in line["event"]]
    assert told == ["redis is down", "redis is back"]


def mint(broker: Broker) -> httpx.Response:
    return httpx.post(f"{broker.url}/token", json={"size": 4}, headers=broker.auth())


def timed(work: Any) -> tuple[Any, float]:
    started = time.monotonic()
    return work(), time.monotonic() - started


def test_a_used_token_is_not_good_again_after_a_flush(pair: Pair) -> None:
    used, unused = token(pair.one), token(pair.one)
    assert upload(pair.one, used).status_code == 200
    pair.redis.command("FLUSHALL")
    for broker in pair:
        data = {"token": unused}
        looked_at = httpx.post(f"{broker.url}/token/introspect", data=data, headers=broker.auth())
        assert looked_at.json() == {"active": False}
        assert code(upload(broker, used)) == (401, "expired_credential")
        assert code(upload(broker, unused)) == (401, "expired_credential")
    assert upload(pair.other, token(pair.one)).status_code == 200


def test_a_signature_is_not_good_again_after_a_flush(pair: Pair) -> None:
    """Nothing in it tells under which epoch it was made, so its nonce is where a flush can't reach it."""
    key = pair.one.create_key(*SCOPES)
    request = httpx.Request("GET", f"{pair.one.url}/keys")
    next(SignedAuth(key["id"], key["signing_secret"]).auth_flow(request))
    with httpx.Client() as client:
        assert client.send(request).status_code == 200
        pair.redis.command("FLUSHALL")
        assert code(client.send(request)) == (401, "signature_replayed")


def test_tokens_are_taken_back_while_redis_is_away(pair: Pair) -> None:
    text = token(pair.one)
    pair.redis.kill()
    revoked = httpx.post(f"{pair.one.url}/token/revoke", data={"token": text}, headers=pair.one.auth())
    assert revoked.status_code == 200
    pair.redis.heal()
    for broker in pair:
        wait_for(lambda broker=broker: httpx.get(f"{broker.url}/ready").status_code == 200)
        assert upload(broker, text).status_code == 401


def test_places_come_back_when_a_broker_dies(
    session_sandbox: SandboxControl,
    pair: Pair,
    sandbox: SandboxControl,
    postgresql: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The last test of this file that needs both, since one of them is gone then."""
    folder = tmp_path_factory.mktemp("dying")
    with running_pair(folder, session_sandbox.environment, postgresql, pair.redis) as dying:
        created = dying.one.create_key(*SCOPES, "--inflight=2")
        key = created["key"]
        with begun(dying.other, sandbox, key), begun(dying.other, sandbox, key):
            assert code(upload(dying.one, key)) == (429, "too_many_uploads")
            dying.other.process.send_signal(signal.SIGKILL)
            killed_at = time.monotonic()
            wait_for(lambda: upload(dying.one, key).status_code == 200, seconds=45)
            seconds = time.monotonic() - killed_at
    assert seconds > 1, "not before its lease was over"
