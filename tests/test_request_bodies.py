"""A body goes past the parser to the application, and how it was cut on its way never shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from broker.connection import Connection
from tests.support.broker_process import Broker
from tests.support.raw_http import FORM_TYPE, chunked, form, head, part
from tests.support.raw_http import Connection as Client
from tests.support.sandbox_control import SandboxControl

GET = head("/next", [], method="GET")
UPGRADE = [
    ("Connection", "Upgrade, HTTP2-Settings"),
    ("Upgrade", "h2c"),
    ("HTTP2-Settings", "AAEAAEAAAAIAAAAB"),
]
CASES = {
    "a body and the next request": head("/", [("Content-Length", "10")]) + b"0123456789" + GET,
    "a body that looks like a request": head("/", [("Content-Length", str(len(GET)))]) + GET + GET,
    "two bodies": (head("/", [("Content-Length", "4")]) + b"abcd") * 2 + GET,
    "an empty line between": head("/", [("Content-Length", "4")]) + b"abcd\r\n" + GET,
    "no body": head("/", [("Content-Length", "0")]) + GET,
    "a length with zeros and blanks": head("/", [("Content-Length", "0004 ")]) + b"abcd" + GET,
    "chunks": head("/", [("Transfer-Encoding", "chunked")]) + chunked([b"ab", b"cd"]) + GET,
    "a body of a GET": head("/", [("Content-Length", "4")], method="GET") + b"abcd" + GET,
    "the last request": head("/", [("Content-Length", "4"), ("Connection", "close")]) + b"abcd" + GET,
    "the last of an old client": b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nabcd" + GET,
    "an offer to upgrade": head("/", [("Content-Length", "4"), *UPGRADE]) + b"abcd" + GET,
    "an offer without a body": head("/", UPGRADE, "GET") + GET,
    "noise behind a body": head("/", [("Content-Length", "4")]) + b"abcd\x16\x03\x01\r\n\r\n",
}
ANSWERED = {
    "a body and the next request": [b"0123456789", b""],
    "a body that looks like a request": [GET, b""],
    "two bodies": [b"abcd", b"abcd", b""],
    "an empty line between": [b"abcd", b""],
    "no body": [b"", b""],
    "a length with zeros and blanks": [b"abcd", b""],
    "chunks": [b"abcd", b""],
    "a body of a GET": [b"abcd", b""],
    "the last request": [b"abcd"],
    "the last of an old client": [b"abcd"],
    "an offer to upgrade": [b"abcd", b""],
    "an offer without a body": [b"", b""],
    "noise behind a body": [b"abcd"],
}
"""The bodies that the application answered with, one for each request."""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it got."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        assert type(message["body"]) is bytes
        body, more = body + message["body"], message["more_body"]
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


class Watched(Connection):
    """Notes how much was read at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sizes: list[int] = []

    def data_received(self, data: bytes) -> None:
        self.sizes.append(len(data))
        super().data_received(data)


class Echoing:
    """A connection to the echo, whose reads are cut by hand: a socket would cut them as it likes."""

    def __init__(self, connection: Watched, client: socket.socket) -> None:
        self.connection = connection
        self._client = client

    async def read(self, pieces: Iterable[bytes], *, between: int = 0) -> None:
        """What the transport would do for each read; ``between`` two of them the loop goes round so often."""
        for piece in pieces:
            if not self.connection.transport.is_closing():
                self.connection.data_received(piece)
            for _ in range(between):
                await asyncio.sleep(0)

    async def send(self, data: bytes) -> None:
        """Through the socket, as a client does."""
        await asyncio.get_running_loop().sock_sendall(self._client, data)

    async def answered(self, requests: int = 0) -> bytes:
        """All that was answered, once so many requests were and nothing more comes."""
        loop = asyncio.get_running_loop()
        while self.connection.tasks or self.connection.server_state.total_requests < requests:
            await asyncio.sleep(0)
        self.connection.transport.close()
        answer = b""
        while part_of_it := await loop.sock_recv(self._client, 65_536):
            answer += part_of_it
        return answer


@asynccontextmanager
async def echoing() -> AsyncIterator[Echoing]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    config = uvicorn.Config(echo, ws="none", log_config=None, access_log=False)
    state = ServerState()
    _, connection = await loop.create_connection(
        lambda: Watched(config=config, server_state=state, app_state={}, _loop=loop), sock=ours
    )
    try:
        yield Echoing(connection, theirs)
    finally:
        connection.transport.abort()
        theirs.close()


def bodies(answers: bytes) -> list[bytes]:
    """The bodies of all answers with status 200."""
    found = []
    while answers.startswith(b"HTTP/1.1 200 "):
        first, _, rest = answers.partition(b"\r\n\r\n")
        length = int(first.partition(b"content-length: ")[2].split()[0])
        found.append(rest[:length])
        answers = rest[length:]
    return found


@pytest.mark.parametrize("between", [0, 10], ids=["at once", "one after the other"])
@pytest.mark.parametrize("case", CASES)
async def test_a_cut_anywhere_changes_nothing(case: str, between: int) -> None:
    request = CASES[case]
    for cut in range(1, len(request)):
        async with echoing() as wire:
            await wire.read([request[:cut], request[cut:]], between=between)
            assert bodies(await wire.answered()) == ANSWERED[case], f"cut at {cut}"


@pytest.mark.parametrize("case", CASES)
async def test_single_bytes_are_as_good_as_one_piece(case: str) -> None:
    for size in (1, 2, 3, len(CASES[case])):
        async with echoing() as wire:
            await wire.read(CASES[case][at : at + size] for at in range(0, len(CASES[case]), size))
            assert bodies(await wire.answered()) == ANSWERED[case], f"in pieces of {size}"


async def test_noise_behind_a_body_is_told_from_the_body() -> None:
    """Wherever the cut is, the request is answered, and then what is no HTTP is refused."""
    request = CASES["noise behind a body"]
    for cut in range(1, len(request)):
        async with echoing() as wire:
            await wire.read([request[:cut], request[cut:]])
            answer = await wire.answered()
            assert answer.partition(b"abcd")[2].startswith(b"HTTP/1.1 400 "), f"cut at {cut}"
            assert b'"malformed_request"' in answer


@pytest.mark.parametrize("noise", [b"\r\n", b"\r\n\r\n"])
async def test_blank_lines_do_not_keep_a_connection_open(noise: bytes) -> None:
    """Only a request does: the time that an idle connection has goes on."""
    async with echoing() as wire:
        await wire.read([GET], between=20)
        waiting = wire.connection.timeout_keep_alive_task
        assert waiting is not None
        await wire.read([noise], between=20)
        assert wire.connection.timeout_keep_alive_task is waiting
        await wire.read([GET], between=20)
        assert waiting.cancelled()
        assert wire.connection.timeout_keep_alive_task is not None


async def test_many_offers_to_upgrade_in_one_piece() -> None:
    async with echoing() as wire:
        await wire.read([CASES["an offer without a body"].removesuffix(GET) * 600])
        assert len(wire.connection.pipeline) == 599
        assert wire.connection._postponed is None


async def test_a_piece_is_passed_on_as_it_came() -> None:
    """No copy is made of what the application takes as fast as it comes."""
    async with echoing() as wire:
        await wire.read([head("/", [("Content-Length", "200000")])])
        piece = bytes(100_000)
        await wire.read([piece])
        held: object = wire.connection.cycle.body
        assert held is piece
        message: Any = await wire.connection.cycle.receive()
        assert message["body"] is piece


async def test_reading_stops_while_the_application_is_behind() -> None:
    """After the first pieces at once; a file that is being passed on may be behind by a little."""
    async with echoing() as wire:
        await wire.read([head("/", [("Content-Length", "1000000")])])
        for size in (1000, 1000):
            await wire.read([bytes(size)])
            assert is_paused(wire)
            await settled(lambda: not is_paused(wire))
        await wire.read([bytes(60_000)])
        assert not is_paused(wire)
        await wire.read([bytes(60_000)])
        assert is_paused(wire)
        await settled(lambda: not is_paused(wire))
        wire.connection.connection_lost(None)


def is_paused(wire: Echoing) -> bool:
    return wire.connection.flow.read_paused


async def settled(condition: Callable[[], bool]) -> None:
    """Lets the loop go round until the condition holds."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came true")


async def test_reads_grow_while_the_application_keeps_up() -> None:
    async with echoing() as wire:
        connection = wire.connection
        await wire.read([head("/", [("Content-Length", "1000000")])], between=10)
        sizes = []
        for _ in range(12):
            sizes.append(connection.read_bytes)
            await wire.read([b"x"])
            assert connection.read_bytes == 16_384, "while it is behind"
            await settled(lambda: not connection.cycle.body)
        assert sizes == [16_384] * 2 + [131_072] * 8 + [524_288] * 2
        connection.connection_lost(None)


async def test_a_transport_reads_no_more_than_it_is_told() -> None:
    """Through a real socket: what stands in it comes in the sizes that were asked for."""
    request = head("/", [("Content-Length", "60000")]) + bytes(60_000)
    async with echoing() as wire:
        await wire.send(request)
        assert bodies(await wire.answered(requests=1)) == [bytes(60_000)]
    assert wire.connection.sizes[:2] == [16_384, 16_384]
    assert sum(wire.connection.sizes) == len(request)


async def test_a_client_that_awaits_the_go_ahead_gets_it() -> None:
    async with echoing() as wire:
        await wire.read([head("/", [("Content-Length", "4"), ("Expect", "100-continue")])], between=10)
        await wire.read([b"ab", b"cd", GET], between=10)
        answers = await wire.answered()
    first, _, rest = answers.partition(b"\r\n\r\n")
    assert first == b"HTTP/1.1 100 Continue"
    assert bodies(rest) == [b"abcd", b""]


async def test_a_body_that_ends_early_is_no_body() -> None:
    async with echoing() as wire:
        await wire.read([head("/", [("Content-Length", "10")]) + b"012", b"345"], between=10)
        wire.connection.connection_lost(None)
        assert await wire.answered() == b""


def test_several_uploads_on_one_connection(broker: Broker, sandbox: SandboxControl) -> None:
    """Forms, bare files and chunks by turns, each larger than a read, and small requests between them."""
    with Client(broker.url) as connection:
        for number in range(3):
            for kind, framed in uploads(broker, b"a,b\n%d\n" % number * 100_000):
                connection.send(framed)
                answer = connection.answer()
                assert answer.status_code == 200, (kind, answer.text)
                stored = sandbox.file(answer.json()["file_id"])
                assert stored["sha256"] == hashlib.sha256(b"a,b\n%d\n" % number * 100_000).hexdigest()
            connection.send(head("/health", [], method="GET"))
            assert connection.answer().json()["status"] == "ok"


def uploads(broker: Broker, content: bytes) -> Iterable[tuple[str, bytes]]:
    """The same file in every framing, as whole requests."""
    authorization = ("Authorization", f"Bearer {broker.secret_key}")
    body = form(part(content))
    yield (
        "form",
        head(
            "/proxy/upload",
            [authorization, ("Content-Type", FORM_TYPE), ("Content-Length", str(len(body)))],
        )
        + body,
    )
    bare = [authorization, ("Content-Type", "text/csv")]
    yield "bare", head("/proxy/upload", [*bare, ("Content-Length", str(len(content)))]) + content
    yield (
        "chunks",
        head("/proxy/upload", [*bare, ("Transfer-Encoding", "chunked")])
        + chunked([content[:1000], content[1000:]]),
    )


def test_a_request_behind_an_upload_is_one_of_its_own(broker: Broker, sandbox: SandboxControl) -> None:
    """Sent in one go; the second has no credential, and doesn't get the first one's (RFC 9112 §9.3.2)."""
    _, upload = next(iter(uploads(broker, b"a,b\n" * 100_000)))
    naked = head("/proxy/upload", [("Content-Type", "text/csv"), ("Content-Length", "4")]) + b"a,b\n"
    with Client(broker.url) as connection:
        connection.send(upload + naked)
        first, second = connection.socket.makefile("rb").read().split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200 ")
    assert second.startswith(b"401 ")
    assert json.loads(second.partition(b"\r\n\r\n")[2])["code"] == "missing_credential"
