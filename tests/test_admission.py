"""Admission: who is let in, who waits, who is sent away at once, and whose turn it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from broker.errors import NoFreeSlot, TooManyUploads
from broker.transfer.admission import Admission
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import Connection, head
from tests.support.refusals import CLIENT, PROXY, SHAPES, assert_refused
from tests.support.sandbox_control import SandboxControl

SETTLE = 5
"""Rounds of the event loop after which nothing is left to do."""


async def settle() -> None:
    for _ in range(SETTLE):
        await asyncio.sleep(0)


class Uploads:
    """Uploads that hold their slot until they are told to end; ``order`` is the order of their turns."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.order: list[str] = []

    async def begin(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def _run(self, name: str) -> None:
        async with self._admission.slot(key_id=name[0]):
            self.order.append(name)
            await self._ends[name].wait()


async def test_first_come_first_served_for_one_key() -> None:
    uploads = Uploads(Admission(max_running=1))
    await uploads.begin("a1", "a2", "a3")
    for name in ("a1", "a2", "a3"):
        await uploads.end(name)
    assert uploads.order == ["a1", "a2", "a3"]


async def test_keys_take_turns() -> None:
    uploads = Uploads(Admission(max_running=1))
    await uploads.begin("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    while len(uploads.order) < 7:
        await uploads.end(uploads.order[-1])
    assert uploads.order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_one_who_gives_up_waiting_loses_nobodys_slot() -> None:
    admission = Admission(max_running=1)
    uploads = Uploads(admission)
    await uploads.begin("a1", "a2", "b1")
    uploads.tasks["a2"].cancel()
    await settle()
    assert admission.waiting == 1
    await uploads.end("a1")
    await uploads.end("b1")
    assert uploads.order == ["a1", "b1"]


async def test_those_who_gave_up_leave_nothing_behind() -> None:
    admission = Admission(max_running=1)
    uploads = Uploads(admission)
    await uploads.begin("a1", *(f"a{number}" for number in range(2, 100)))
    for name in [name for name in uploads.tasks if name != "a1"]:
        uploads.tasks[name].cancel()
    await settle()
    assert not admission._queues
    await uploads.end("a1")
    await uploads.begin("b1")
    assert uploads.order == ["a1", "b1"]


async def test_a_turn_that_comes_too_late_is_passed_on() -> None:
    """The slot is given and the upload cancelled in the same round of the event loop."""
    uploads = Uploads(Admission(max_running=1))
    await uploads.begin("a1", "a2", "b1")
    uploads._ends["a1"].set()
    while not uploads.tasks["a1"].done():
        await asyncio.sleep(0)
    uploads.tasks["a2"].cancel()
    await settle()
    assert uploads.order in (["a1", "b1"], ["a1", "a2", "b1"])
    await uploads.end("b1")
    await uploads.begin("a3")
    assert uploads.order[-1] == "a3"


async def test_no_slot_is_lost_or_made_whatever_happens() -> None:
    chance = random.Random(7)
    admission = Admission(max_running=3)
    running = most = 0

    async def upload(key_id: str) -> None:
        nonlocal running, most
        async with admission.slot(key_id):
            running += 1
            most = max(most, running)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                running -= 1

    tasks = []
    for _ in range(2000):
        tasks.append(asyncio.create_task(upload(chance.choice("abc"))))
        if chance.random() < 0.4:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (running, admission.waiting, admission._free, most) == (0, 0, 3, 3)


def test_beyond_the_bound_is_refused_at_once() -> None:
    admission = Admission(max_running=1, max_inflight=2)
    with admission.admitted():
        with admission.admitted(), pytest.raises(NoFreeSlot) as refused, admission.admitted():
            pass
        assert refused.value.retry_after_seconds == 2
        with admission.admitted():
            assert admission.inflight == 2
    assert admission.inflight == 0


def test_without_bounds_all_are_let_in() -> None:
    admission = Admission(max_running=1)
    with ExitStack() as uploads:
        for _ in range(5000):
            uploads.enter_context(admission.admitted())
        assert admission.inflight == 5000


# --- over HTTP ----------------------------------------------------------------------------------------


def begin(broker: Broker, sandbox: SandboxControl, key: str) -> Connection:
    """An upload that was let in, has reached Coze, and sends nothing more."""
    before = len(sandbox.events(kind="upload"))
    connection = Connection(broker.url)
    headers = broker.auth(key) | {"Content-Type": "text/csv", "Content-Length": "1000000"}
    connection.send(head(PROXY, [*headers.items()]) + b"a,b\n" * 1024)
    sandbox.wait_for(lambda: len(sandbox.events(kind="upload")) > before)
    return connection


def send(broker: Broker, key: str, path: str = PROXY) -> httpx.Response:
    headers = broker.auth(key) | {"Origin": PAGE_ORIGIN}
    return CLIENT.post(broker.url + path, files={"file": ("a.csv", b"a,b\n")}, headers=headers)


@pytest.fixture
def narrow(sandbox: SandboxControl, folder: Path) -> Iterator[Broker]:
    """A broker that lets four uploads in at once, and three of one key."""
    settings = {"BROKER_MAX_INFLIGHT_UPLOADS": "4", "BROKER_MAX_INFLIGHT_UPLOADS_PER_KEY": "3"}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        broker.extra["other_key"] = broker.create_key("--scope=files:upload", "--scope=token:mint")["key"]
        yield broker


@pytest.mark.parametrize("path", SHAPES)
def test_one_upload_too_many_of_a_key_is_refused_and_another_key_has_room(
    narrow: Broker, sandbox: SandboxControl, path: str
) -> None:
    mine, other = narrow.secret_key, narrow.extra["other_key"]
    with ExitStack() as uploads:
        for _ in range(3):
            uploads.enter_context(begin(narrow, sandbox, mine))
        refused = send(narrow, mine, path)
        assert refused.headers["retry-after"] == "2"
        assert "retry-after" in refused.headers["access-control-expose-headers"].lower()
        assert_refused(narrow, refused, TooManyUploads, path)
        assert send(narrow, other).status_code == 200
        uploads.enter_context(begin(narrow, sandbox, other))
        assert_refused(narrow, send(narrow, other, path), NoFreeSlot, path)
        assert httpx.get(f"{narrow.url}/ready").status_code == 200
        narrow.mint(key=other, size=1)
    sandbox.wait_for(lambda: send(narrow, mine).status_code == 200)


def test_a_token_counts_for_the_key_that_minted_it_and_is_not_spent(
    narrow: Broker, sandbox: SandboxControl
) -> None:
    token = narrow.mint(size=4, route="proxy")["access_token"]
    with ExitStack() as uploads:
        for _ in range(3):
            uploads.enter_context(begin(narrow, sandbox, narrow.secret_key))
        assert_refused(narrow, send(narrow, token), TooManyUploads)
    sandbox.wait_for(lambda: send(narrow, token).status_code == 200)
