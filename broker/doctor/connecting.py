"""Connections by hand, so that each stage of one can be told from the next."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import httpx

from broker.doctor.way import Way
from broker.upstream import tls

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
REFUSED, SILENT, NO_ROUTE, DENIED = "refused", "no answer", "no route", "not allowed here"
CUT, FAILED = "cut off", "it can't be connected to"
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
_OF_KIND: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, SILENT),
    (ssl.SSLCertVerificationError, "its certificate does not verify"),
    (ssl.SSLError, "no TLS, or none that is still safe"),
    (socket.gaierror, "its name can't be resolved"),
)
_CUT = (ConnectionError, aiohttp.ServerDisconnectedError, asyncio.IncompleteReadError)


def trouble_of(error: BaseException) -> str:
    """An error of a connection in a few plain words; what others wrote into it stays out."""
    causes = list(_causes(error))
    words = [word for each in causes if (word := _word(each))]
    words += [os.strerror(each.errno).lower() for each in causes if isinstance(each, OSError) and each.errno]
    # Asked last: the client calls much else a time-out, too.
    is_late = any(isinstance(each, httpx.TimeoutException) for each in causes)
    return next(iter(words), SILENT if is_late else FAILED)


def _word(error: BaseException) -> str | None:
    if isinstance(error, aiohttp.ClientOSError):  # its number is that of the one it carries, TLS's own too
        return None
    found = next((word for kind, word in _OF_KIND if isinstance(error, kind)), None)
    if found is None and isinstance(error, OSError):
        found = _OF_ERRNO.get(error.errno or 0)
    return found or (CUT if isinstance(error, _CUT) else None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from; aiohttp's errors carry the system's or that of TLS."""
    while error is not None:
        yield error
        for name in ("os_error", "certificate_error"):
            if isinstance(carried := getattr(error, name, None), BaseException):
                yield carried
        error = error.__cause__ or error.__context__


def patience(way: Way) -> str:
    """Who waits how long, for whoever is told of a time-out."""
    limit = way.settings.broker_connect_timeout_seconds
    return f"{way.wait_seconds:g} s, by --timeout; the broker waits {limit:g} s"


verifying = functools.cache(tls.make_context)
"""What the broker verifies Coze with, made once: the built-in authorities, and those of a file."""


def looking() -> ssl.SSLContext:
    """For a look at a certificate that did not verify. Nothing secret may be sent over such a connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def opened(way: Way, heard: bytearray | None = None) -> AsyncIterator[Stream]:
    """A connection to Coze's port, the way that the broker would go; closed at the end. What an HTTP proxy
    answers is put into ``heard``.

    Raises ``OSError``, ``TimeoutError``, or ``python_socks.ProxyError``.
    """
    async with asyncio.timeout(way.wait_seconds):
        reader, writer = await (_direct(way) if way.proxy is None else _through(way, heard))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(Exception):
            await writer.wait_closed()


async def _through(way: Way, heard: bytearray | None) -> Stream:
    from broker.doctor.proxy_line import through_proxy  # few have a proxy, and this brings its library

    return await through_proxy(way, bytearray() if heard is None else heard)


async def _direct(way: Way) -> Stream:
    """To the first address that answers; which ones do was found out before."""
    trouble: OSError = OSError("no address")
    for address in way.addresses:
        try:
            return await asyncio.open_connection(address, way.target.port)
        except OSError as error:
            trouble = error
    raise trouble
