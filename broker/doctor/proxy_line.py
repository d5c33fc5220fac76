"""A connection to Coze's port by way of the proxy that applies, made as the broker makes it."""

from __future__ import annotations

import asyncio
import functools
import socket
from typing import Any

import aiohappyeyeballs
from python_socks import ProxyType
from python_socks.async_.asyncio.v2 import Proxy as ProxyClient
from python_socks.async_.asyncio.v2._stream import AsyncioSocketStream

from broker.doctor.connecting import Stream, verifying
from broker.doctor.way import Way
from broker.settings import Proxy
from broker.settings.hosts import LOOPBACK, canonical, is_localhost
from broker.upstream.connector import NEXT_ADDRESS_SECONDS
from broker.upstream.race import first_of


async def through_proxy(way: Way, heard: bytearray) -> Stream:
    """What the proxy says in HTTP is put into ``heard``. Raises what the library raises (``ProxyError`` …),
    and ``OSError`` where there is no connection to the proxy.
    """
    applies = way.settings.coze_proxy
    if applies is None:
        raise ValueError("no proxy applies")
    client = _client(way, applies, heard)
    told = way.addresses if _is_told_an_address(way) else (way.target.host,)
    stream = await first_of(
        [functools.partial(client.connect, each, way.target.port, timeout=way.wait_seconds) for each in told],
        within_seconds=way.wait_seconds,
        drop=lambda late: late.writer.transport.abort(),
    )
    return stream.reader, stream.writer


def _client(way: Way, applies: Proxy, heard: bytearray) -> ProxyClient:
    username, password = applies.username, applies.password
    if not applies.is_socks and username is not None:
        # The library writes Latin-1; the broker UTF-8, and a password even where there is none.
        username, password = (each.encode().decode("latin-1") for each in (username, password or ""))
    return ProxyClient(
        ProxyType.SOCKS5 if applies.is_socks else ProxyType.HTTP,
        applies.host,
        applies.port,
        username,
        password,
        rdns=applies.resolves_names if applies.is_socks else None,
        proxy_ssl=verifying(way.settings.upstream_ca_file) if applies.scheme == "https" else None,
        forward=_WayToProxy(way, applies, heard),
    )


def _is_told_an_address(way: Way) -> bool:
    """As the broker does it: of a proxy that resolves no names, and of a host whose addresses are fixed."""
    applies = way.proxy
    is_fixed = canonical(way.target.host) in way.settings.upstream_hosts
    return bool(way.addresses) and (is_fixed or applies is None or not applies.resolves_names)


class _WayToProxy(ProxyClient):
    """How the library reaches the proxy: at the addresses that the settings give its name, else by the
    system's resolver. Its certificate is that of the name in any case.
    """

    def __init__(self, way: Way, applies: Proxy, heard: bytearray) -> None:
        name = canonical(applies.host)
        self._known = way.settings.upstream_hosts.get(name, LOOPBACK if is_localhost(name) else ())
        self._wait_seconds = way.wait_seconds
        self._heard = heard

    async def connect(self, dest_host: str, dest_port: int, *_: Any, **__: Any) -> AsyncioSocketStream:
        reader, writer = await first_of(
            [functools.partial(_opened, each, dest_port) for each in self._known or (dest_host,)],
            within_seconds=self._wait_seconds,
            drop=lambda late: late[1].transport.abort(),
        )
        return _HeardStream(reader, writer, self._heard)


async def _opened(host: str, port: int) -> Stream:
    """At the first of the host's addresses that answers. Not asyncio's own option: a broker that runs has
    uvloop, which does not know it.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    opened = await aiohappyeyeballs.start_connection(
        found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1
    )
    return await asyncio.open_connection(sock=opened)


class _HeardStream(AsyncioSocketStream):
    """Keeps what is read from it: the library tells of a refusal no more than its number. Its class has no
    public name; the tests of proxies fail when a new release calls it otherwise.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray) -> None:
        super().__init__(asyncio.get_running_loop(), reader, writer)
        self._heard = heard

    async def read(self, max_bytes: int = 65_536) -> bytes:
        piece = await super().read(max_bytes)
        self._heard += piece
        return piece
