"""Servers on loopback that stand for the way to Coze: Coze itself, proxies, a DNS server over HTTPS."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import socket
import ssl
import threading
import urllib.parse
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dns.message
import pytest

from tests.support.dns_answers import answer_to, kind_of, name_of

Handler = Callable[[Reader, Writer], Awaitable[None]]


class Network:
    """Serves in a thread of its own, so that a test may wait for a broker."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def serve(
        self,
        handler: Handler,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        on: socket.socket | None = None,
    ) -> int:
        """Serve from now on, ``on`` a socket that listens already, if there is one; the port."""
        at: dict[str, Any] = {"host": host, "port": port} if on is None else {"sock": on}

        async def begin() -> asyncio.Server:
            return await asyncio.start_server(self._guarded(handler), ssl=tls, **at)

        server = asyncio.run_coroutine_threadsafe(begin(), self._loop).result(10)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Serve nothing any more."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _guarded(self, handler: Handler) -> Handler:
        async def guarded(reader: Reader, writer: Writer) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                    await handler(reader, writer)
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        return guarded

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.sleep(0.01)


@pytest.fixture
def network() -> Iterator[Network]:
    """One for this test alone."""
    network = Network()
    yield network
    network.close()


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose queue of connections is full: a SYN gets no answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family, backlog=0) as full,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(3):
            filling = stack.enter_context(socket.socket(family))
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        yield int(full.getsockname()[1])


@dataclass(frozen=True)
class Request:
    """As it came; names of headers in lower case, in order."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def __getitem__(self, name: str) -> str | None:
        return dict(self.headers).get(name)


async def read_head(reader: Reader) -> Request:
    """A request without its body."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    method, target, _ = lines[0].split(" ")
    pairs = (line.partition(":") for line in lines[1:])
    return Request(method, target, [(name.lower(), value.strip()) for name, _, value in pairs])


def answer(body: Any, *headers: str, status: str = "200 OK") -> bytes:
    """An answer that leaves the connection open."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *headers, "", ""]).encode()
        + content
    )


@dataclass
class Coze:
    """Answers each request with ``reply``."""

    reply: bytes = field(default_factory=lambda: answer({"code": 0}))
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    protocols: list[str | None] = field(default_factory=list)
    """What TLS agreed on, for each connection (ALPN)."""
    received_bytes: int = 0

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        tls = writer.get_extra_info("ssl_object")
        self.protocols.append(tls.selected_alpn_protocol() if tls else None)
        while True:
            request = await read_head(reader)
            await self._drop_body(request, reader)
            self.requests.append(request)
            writer.write(self.reply)
            await writer.drain()

    async def _drop_body(self, request: Request, reader: Reader) -> None:
        left = int(request["content-length"] or 0)
        while left:
            piece = await reader.read(min(left, 262_144))
            if not piece:
                raise EOFError
            left -= len(piece)
            self.received_bytes += len(piece)


@dataclass
class Proxying:
    """What proxies have in common. ``names`` says where it finds what it is asked for."""

    names: dict[str, int] | None = field(default_factory=dict)
    """Ports on this machine, by ``host:port``; with None each name is this machine's."""
    asked: list[str] = field(default_factory=list)
    credential: tuple[str, str] | None = None
    connections: int = 0
    silent: Collection[str] = ()
    """What it gets no answer from, and says nothing of."""
    waiting: int = 0
    """How many wait for such an answer."""

    async def wait_for(self, target: str, reader: Reader) -> None:
        """Until the one who asked leaves, where the target is silent."""
        if target in self.silent:
            self.waiting += 1
            try:
                await reader.read()
            finally:
                self.waiting -= 1
            raise EOFError

    def knows(self, target: str) -> bool:
        """Whether it finds what it is asked for."""
        return self.names is None or target in self.names

    async def pass_on(self, target: str, reader: Reader, writer: Writer) -> None:
        """To and fro until either side ends."""
        port = int(target.rpartition(":")[2]) if self.names is None else self.names[target]
        there_reader, there = await asyncio.open_connection("127.0.0.1", port)
        try:
            copying = [
                asyncio.create_task(_copy(reader, there)),
                asyncio.create_task(_copy(there_reader, writer)),
            ]
            await asyncio.wait(copying, return_when=asyncio.FIRST_COMPLETED)
            for task in copying:
                task.cancel()
        finally:
            there.transport.abort()


async def _copy(reader: Reader, writer: Writer) -> None:
    while piece := await reader.read(262_144):
        writer.write(piece)
        await writer.drain()


@dataclass
class ConnectProxy(Proxying):
    """An HTTP proxy that knows CONNECT (RFC 9110 §9.3.6); ``says`` instead when that is set."""

    says: bytes | None = None
    heads: list[Request] = field(default_factory=list)

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        request = await read_head(reader)
        self.heads.append(request)
        self.asked.append(request.target)
        await self.wait_for(request.target, reader)
        refusal = self._refusal(request)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n" if refusal is None else refusal)
        await writer.drain()
        if refusal is None:
            await self.pass_on(request.target, reader, writer)

    def _refusal(self, request: Request) -> bytes | None:
        if self.says is not None:
            return self.says
        if request.method != "CONNECT":
            return b"HTTP/1.1 405 Only CONNECT\r\n\r\n"
        if self.credential is not None:
            right = base64.b64encode(":".join(self.credential).encode()).decode()
            if request["proxy-authorization"] != f"Basic {right}":
                said = request["proxy-authorization"] or "nothing"
                return f"HTTP/1.1 407 not {said}\r\nProxy-Authenticate: Basic\r\n\r\n".encode()
        return None if self.knows(request.target) else b"HTTP/1.1 502 Bad Gateway\r\n\r\n"


@dataclass
class SocksProxy(Proxying):
    """SOCKS5 with or without a password (RFC 1928, RFC 1929); ``says`` instead when that is set."""

    says: bytes | None = None

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        methods = await reader.readexactly((await reader.readexactly(2))[1])
        if self.says is not None:
            writer.write(self.says)
            return
        if not await self._let_in(methods, reader, writer):
            return
        target = await _socks_target(reader)
        self.asked.append(target)
        await self.wait_for(target, reader)
        known = self.knows(target)
        writer.write(b"\x05%c\x00\x01\x00\x00\x00\x00\x00\x00" % (0 if known else 5))
        await writer.drain()
        if known:
            await self.pass_on(target, reader, writer)

    async def _let_in(self, methods: bytes, reader: Reader, writer: Writer) -> bool:
        if self.credential is None:
            writer.write(b"\x05\x00")
            return True
        if 2 not in methods:
            writer.write(b"\x05\xff")
            return False
        writer.write(b"\x05\x02")
        await reader.readexactly(1)
        given = [(await reader.readexactly((await reader.readexactly(1))[0])).decode() for _ in range(2)]
        is_right = tuple(given) == self.credential
        writer.write(b"\x01%c" % (not is_right))
        return is_right


async def _socks_target(reader: Reader) -> str:
    _, _, _, kind = await reader.readexactly(4)
    size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
    raw = await reader.readexactly(size)
    host = raw.decode() if kind == 3 else str(ipaddress.ip_address(raw))
    port = int.from_bytes(await reader.readexactly(2), "big")
    return f"{host}:{port}"


@dataclass
class DohServer:
    """Answers questions over HTTPS (RFC 8484 §4.1, GET) from ``records``."""

    records: dict[str, list[str] | str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    reply: Callable[[dns.message.Message], bytes] | None = None
    """Instead of an answer's bytes."""
    hold: dict[str, threading.Event] = field(default_factory=dict)
    """By the kind of question, what its answer waits for."""

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        while True:
            request = await read_head(reader)
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(request.target).query)["dns"][0]
            question = dns.message.from_wire(base64.urlsafe_b64decode(query + "=" * (-len(query) % 4)))
            kind = kind_of(question)
            self.asked.append((name_of(question), kind))
            while kind in self.hold and not self.hold[kind].is_set():
                await asyncio.sleep(0.01)
            writer.write(self.reply(question) if self.reply else doh_answer(self._answer(question)))
            await writer.drain()

    def _answer(self, question: dns.message.Message) -> bytes:
        return answer_to(question, self.records, self.aliases).to_wire()


def doh_answer(wire: bytes, media_type: str = "application/dns-message", status: str = "200 OK") -> bytes:
    """A DNS message in an answer."""
    return answer(wire, f"Content-Type: {media_type}", status=status)
