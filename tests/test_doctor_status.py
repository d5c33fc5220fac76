"""The short form in a running broker: ``/ready`` and ``GET /api/v1/test/connection``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from broker import settings as broker_settings
from broker.doctor.examination import Step, all_of
from broker.doctor.finding import Finding
from broker.doctor.reachability import (
    FORGOTTEN_SECONDS,
    GLANCE_SECONDS,
    KEPT_SECONDS,
    QUIET_SECONDS,
    Reachability,
)
from broker.doctor.way import Way
from tests.support.authority import Authority
from tests.support.broker_process import Broker, running_broker
from tests.support.doctor import HOST, never_answering
from tests.support.network import ConnectProxy, Coze, Network, SocksProxy, answer
from tests.support.raw_http import ScriptedUpstream, answering
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for

PATH = "/api/v1/test/connection"
UNKNOWN_TOKEN = {"code": 700012006, "msg": "access token invalid"}


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream(answering(UNKNOWN_TOKEN, "401 Unauthorized"))
    yield upstream
    upstream.close()


@pytest.fixture
def lonely(folder: Path, upstream: ScriptedUpstream) -> Iterator[Broker]:
    """A broker whose Coze is ``upstream``."""
    coze = {"COZE_API_BASE": upstream.url, "COZE_API_TOKEN": "pat_0123456789"}
    with running_broker(folder, coze) as broker:
        yield broker


def test_coze_can_be_reached(broker: Broker) -> None:
    key = broker.create_key("--scope=chat")["key"]
    answer = httpx.get(broker.url + PATH, headers=broker.auth(key))
    body = answer.json()
    assert (answer.status_code, body["success"], body["message"]) == (200, True, "Coze can be reached.")
    assert body["data"]["failed_step"] is None
    assert [each["step"] for each in body["data"]["steps"]] == ["dns", "tcp", "proxy", "tls", "http"]


KINDS = ["http", "https", "socks5", "socks5h"]


@pytest.mark.parametrize(
    ("kind", "is_good"), [("", True), *((kind, is_good) for kind in KINDS for is_good in (True, False))]
)
def test_coze_is_looked_for_on_the_way_that_uploads_take(
    network: Network, authority: Authority, folder: Path, kind: str, *, is_good: bool
) -> None:
    """Over TLS, and through a proxy of each kind; one that knows no way to Coze is what is told."""
    says = answer(UNKNOWN_TOKEN, "X-Tt-Logid: 1", status="401 Unauthorized")
    port = network.serve(Coze(says), authority.context(HOST))
    known = {f"{host}:{port}": port for host in (HOST, "127.0.0.1")} if is_good else {}
    proxy = SocksProxy(names=known) if kind.startswith("socks") else ConnectProxy(names=known)
    proxy_port = network.serve(proxy, authority.context("127.0.0.1") if kind == "https" else None)
    settings = {
        "COZE_API_BASE": f"https://{HOST}:{port}",
        "COZE_API_TOKEN": "pat_0123456789",
        "UPSTREAM_CA_FILE": str(authority.file),
        "UPSTREAM_HOSTS": f"{HOST}=127.0.0.1",
        "UPSTREAM_PROXY": f"{kind}://127.0.0.1:{proxy_port}" if kind else "none",
    }
    with running_broker(folder, settings) as broker:
        body = httpx.get(broker.url + PATH, headers=broker.auth(), timeout=30).json()
    assert body["data"]["failed_step"] == (None if is_good else "proxy"), body
    assert "fault" not in body["message"]
    assert bool(proxy.asked) is bool(kind)


def test_coze_is_away_and_the_broker_stays_ready(lonely: Broker, upstream: ScriptedUpstream) -> None:
    """A balancer that took brokers away for it would take all of them."""
    with upstream.gone():
        body = httpx.get(lonely.url + PATH, headers=lonely.auth()).json()
        ready = httpx.get(lonely.url + "/ready")
    assert (body["success"], body["data"]["failed_step"]) == (False, "tcp")
    assert "can't be reached" in body["message"]
    assert (ready.status_code, ready.json()["ready"], ready.json()["coze"]) == (200, True, "tcp")


def test_many_that_ask_at_once_are_one_load(lonely: Broker, upstream: ScriptedUpstream) -> None:
    """One connection for TCP and one for HTTP; afterwards the answer is kept."""
    upstream.does(upstream.script)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=lonely.url, headers=lonely.auth(), timeout=30) as client:
            first = await asyncio.gather(*(client.get(PATH) for _ in range(20)))
            return [*first, await client.get(PATH)]

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200] * 21
    assert len({answer.json()["data"]["checked_at"] for answer in answers}) == 1
    assert upstream.connections <= 2


def test_nobody_without_a_servers_key_may_ask(broker: Broker) -> None:
    """The refusal has this surface's envelope."""
    pages = {"Origin": broker.origin, **broker.auth(broker.publishable_key)}
    for headers, status, code in (({}, 401, "missing_credential"), (pages, 403, "wrong_scope")):
        answer = httpx.get(broker.url + PATH, headers=headers)
        body = answer.json()
        assert (answer.status_code, body["success"], body["data"]["code"]) == (status, False, code)
        assert body["message"]
        assert body["data"]["request_id"] == answer.headers["x-request-id"]


def test_no_address_is_taken_from_the_request(broker: Broker, upstream: ScriptedUpstream) -> None:
    query = {"url": upstream.url, "base_url": upstream.url, "host": upstream.url}
    headers = {**broker.auth(), "X-Forwarded-Host": upstream.url.removeprefix("http://")}
    body = httpx.get(broker.url + PATH, params=query, headers=headers).json()
    assert body["data"]["upstream"] == broker.environment["COZE_API_BASE"]
    assert upstream.connections == 0


def test_ready_does_not_wait_for_coze(folder: Path) -> None:
    """Coze takes connections and says nothing. Whoever waited for that would hear that ``http`` failed: the
    answer that began to look, and those while it looks, say that they don't know.
    """
    silent = ScriptedUpstream(never_answering)
    coze = {"COZE_API_BASE": silent.url, "COZE_API_TOKEN": "pat_0123456789"}
    with running_broker(folder, coze) as broker:

        def told() -> str:
            return str(httpx.get(f"{broker.url}/ready").json()["coze"])

        before: list[str] = []

        def somebody_looks() -> bool:
            before.append(told())
            return silent.connections > 0

        wait_for(somebody_looks, QUIET_SECONDS + 20)
        assert set(before) == {"unknown"}
        wait_for(lambda: told() == "http")
    silent.close()


async def test_ready_asks_coze_seldom_and_not_right_after_a_start(
    sandbox: SandboxControl, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for name, value in {**sandbox.environment, "BROKER_DATA_DIR": str(folder)}.items():
        monkeypatch.setenv(name, value)
    now = [1000.0]
    async with httpx.AsyncClient(base_url=sandbox.url) as client:
        reachability = Reachability(broker_settings.load(), client, now=lambda: now[0])

        async def asked() -> tuple[str, int]:
            told = reachability.glance()
            if reachability._running is not None:
                await reachability._running
            return told, len(sandbox.events(kind="retrieve"))

        assert await asked() == ("unknown", 0)
        now[0] += QUIET_SECONDS
        assert await asked() == ("unknown", 1)
        now[0] += KEPT_SECONDS
        assert await asked() == ("ok", 1)
        now[0] += GLANCE_SECONDS
        assert await asked() == ("ok", 2)
        now[0] += FORGOTTEN_SECONDS
        assert await asked() == ("unknown", 3), "a night without a question"
        assert await asked() == ("ok", 3)
        await reachability.aclose()


async def test_a_walk_is_over_in_its_time_though_every_step_has_more(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that is under way then has failed, and so have those after it."""

    async def never(_: Way) -> Finding:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setenv("COZE_API_BASE", upstream.url)
    way = Way(broker_settings.read(), wait_seconds=60)
    steps = [Step("one", 97, never), Step("two", 98, never), Step("three", 99, never, needs=("two",))]
    started = time.monotonic()
    results = await all_of(way, steps, max_seconds=0.2)
    assert time.monotonic() - started < 10
    assert [each.finding.status for each in results] == ["failed", "failed", "skipped"]
