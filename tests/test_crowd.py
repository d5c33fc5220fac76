"""A thousand uploads at once, quick ones and slow ones: each is let in or told when to come again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker_process import Broker, running_broker
from tests.support.left_behind import nothing_left_behind
from tests.support.raw_http import head
from tests.support.refusals import PROXY
from tests.support.sandbox_control import SandboxControl

UPLOADS = 1000
SLOW_EVERY = 10
SLOW_PIECES = 20
SLOW_SECONDS = 0.1
"""Between two pieces."""
SECONDS = 120
PIECE = b"1,2\n" * 1000


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """A connection is an open file, of which a process may often have 1,024; a broker inherits this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_everybody_in_a_crowd_gets_an_answer(folder: Path, sandbox: SandboxControl) -> None:
    """There is room for a few, and little time to wait for it: the others hear so, and none is left over."""
    few = {"BROKER_MAX_UPSTREAM_CONNECTIONS": "16", "BROKER_POOL_WAIT_SECONDS": "1"}
    with running_broker(folder, sandbox.environment, **few) as broker, nothing_left_behind():
        async with asyncio.timeout(SECONDS):
            answers = await asyncio.gather(*(upload(broker, number) for number in range(UPLOADS)))
    outcomes = Counter(answers)
    print(outcomes)
    assert set(outcomes) <= {"stored", "told when to come again"}, outcomes
    assert outcomes["stored"] >= 16, outcomes
    sandbox.wait_for(lambda: not sandbox.events(kind="upload", outcome="open"))
    assert len(sandbox.events(kind="upload", outcome="stored")) == outcomes["stored"]


async def upload(broker: Broker, number: int) -> str:
    """One of the crowd: what came of it."""
    pieces = SLOW_PIECES if number % SLOW_EVERY == 0 else 1
    host, port = broker.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(head(PROXY, [*(broker.auth() | of_csv(len(PIECE) * pieces)).items()]))
        sending = asyncio.ensure_future(send(writer, pieces))
        status, headers, body = await answer_from(reader)
        await sending
    finally:
        writer.close()
    return judged(status, headers, body, hashlib.sha256(PIECE * pieces).hexdigest())


def of_csv(length: int) -> dict[str, str]:
    return {
        "Content-Type": "text/csv",
        "Content-Disposition": 'attachment; filename="a.csv"',
        "Content-Length": str(length),
        "Connection": "close",
    }


async def send(writer: asyncio.StreamWriter, pieces: int) -> None:
    """The body, piece by piece; a refusal may come before its end."""
    for number in range(pieces):
        await asyncio.sleep(SLOW_SECONDS if number else 0)
        if writer.is_closing():
            return
        writer.write(PIECE)


async def answer_from(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def judged(status: int, headers: dict[str, str], body: bytes, sha256: str) -> str:
    told = json.loads(body)
    if status == 200:
        return "stored" if told["sha256"] == sha256 else "stored, but what?"
    if status == 503 and int(headers.get("retry-after", "0")) >= 1 and told["retryable"]:
        return "told when to come again"
    return f"{status} {told}"
