"""Connections by hand, so that each stage of one can be told from the next."""

from __future__ import annotations

import asyncio
import errno
import functools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from broker.doctor.way import Way
from broker.settings.hosts import canonical
from broker.upstream import tls

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REFUSED, SILENT, NO_ROUTE, DENIED = "refused", "no answer", "no route", "not allowed here"
_OF_ERRNO = {
    errno.ECONNREFUSED: REFUSED,
    errno.ECONNRESET: "reset",
    errno.ETIMEDOUT: SILENT,
    errno.ENETUNREACH: NO_ROUTE,
    errno.EHOSTUNREACH: NO_ROUTE,
    errno.EADDRNOTAVAIL: NO_ROUTE,
    errno.EACCES: DENIED,
    errno.EPERM: DENIED,
}


def trouble_of(error: BaseException) -> str:
    """An error of a connection in a word or two; what others wrote into it stays out."""
    if isinstance(error, TimeoutError):
        return SILENT
    if isinstance(error, OSError) and error.errno in _OF_ERRNO:
        return _OF_ERRNO[error.errno]
    return type(error).__name__


verifying = functools.cache(tls.make_context)
"""What the broker verifies Coze with, made once: the built-in authorities, and those of a file."""


def looking() -> ssl.SSLContext:
    """For a look at a certificate that did not verify. Nothing secret may be sent over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def opened(way: Way) -> AsyncIterator[Stream]:
    """A connection to Coze's port, the way that the broker would go; closed at the end.

    Raises ``OSError``, ``TimeoutError``, or ``python_socks.ProxyError``.
    """
    async with asyncio.timeout(way.wait_seconds):
        reader, writer = await (_direct(way) if way.proxy is None else through_proxy(way))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(Exception):
            await writer.wait_closed()


async def through_proxy(way: Way) -> Stream:
    """A connection by way of the proxy that applies. Raises what the library raises: ``ProxyError`` …"""
    from python_socks import ProxyType
    from python_socks.async_.asyncio.v2 import Proxy

    applies = way.settings.coze_proxy
    if applies is None:
        raise ValueError("no proxy applies")
    proxy = Proxy(
        ProxyType.SOCKS5 if applies.is_socks else ProxyType.HTTP,
        applies.host,
        applies.port,
        applies.username,
        applies.password,
        rdns=applies.resolves_names if applies.is_socks else None,
        proxy_ssl=verifying(way.settings.upstream_ca_file) if applies.scheme == "https" else None,
    )
    told = way.addresses[0] if _is_told_an_address(way) else way.target.host
    stream = await proxy.connect(told, way.target.port, timeout=way.wait_seconds)
    return stream.reader, stream.writer


def _is_told_an_address(way: Way) -> bool:
    """As the broker does it: of a proxy that resolves no names, and of a host whose addresses are fixed."""
    applies = way.proxy
    is_fixed = canonical(way.target.host) in way.settings.upstream_hosts
    return bool(way.addresses) and (is_fixed or applies is None or not applies.resolves_names)


async def _direct(way: Way) -> Stream:
    """To the first address that answers; which ones do was found out before."""
    trouble: OSError = OSError("no address")
    for address in way.addresses:
        try:
            return await asyncio.open_connection(address, way.target.port)
        except OSError as error:
            trouble = error
    raise trouble
