"""The HTTP client for Coze, and what its errors mean.

httpx's API on aiohttp's transport: httpx's own pool scans all its connections for every request, which
collapses under hundreds of uploads, and it loses an answer that comes before the whole body was sent.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from broker import __version__
from broker.errors import (
    OutcomeUnknown,
    Refusal,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from broker.transfer.outgoing import Sent
from broker.upstream.connector import Connector

MAX_ANSWER_BYTES = 65_536
USER_AGENT = f"coze-upload-broker/{__version__}"

CLIENT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError)
"""What a call may raise: the transport lets some of aiohttp's own errors through."""

_TOO_SLOW = (TimeoutError, aiohttp.ServerTimeoutError)


def make_client(
    base_url: str, *, connector: Connector, read_timeout_seconds: float, proxy: httpx.Proxy | None = None
) -> httpx.AsyncClient:
    """A client that sends nothing but what it is told to, over HTTP/1.1 and the connector's connections.

    Nothing from the environment, no cookie kept, no redirect followed. The connector is closed with it.
    Must be made inside the event loop.
    """
    return httpx.AsyncClient(
        transport=_transport(connector, proxy),
        base_url=base_url,
        timeout=httpx.Timeout(
            connect=connector.connect_timeout_seconds, read=read_timeout_seconds, write=None, pool=None
        ),
        headers={"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"},
        # httpx would keep them, and send what one caller's answer brought with the next caller's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        trust_env=False,
    )


def _transport(connector: Connector, proxy: httpx.Proxy | None) -> AiohttpTransport:
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    return AiohttpTransport(verify=connector.ssl_context, trust_env=False, client=session, proxy=proxy)


def on_lost_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler. aiohttp leaves the task that writes a body to itself; when the
    connection ends first, its error is told to nobody, while the call's own error told everything.
    """
    if not isinstance(context.get("exception"), aiohttp.ClientConnectionError):
        loop.default_exception_handler(context)


def refusal_for(error: Exception, sent: Sent = "nothing") -> Refusal:
    """What the client's error means for the caller, given how much of a body had been sent.

    The transport calls many things a connect timeout, so it is the body that tells what happened.
    """
    log = _told(error)
    if sent == "all":
        return OutcomeUnknown(log=log)
    if isinstance(
        error, httpx.ReadError | httpx.DecodingError | httpx.RemoteProtocolError | aiohttp.ClientResponseError
    ):
        return UpstreamBadAnswer(log=log) if sent == "nothing" else UpstreamAborted(log=log)
    if sent == "part":
        return UpstreamAborted(log=log)
    return UpstreamTimeout(log=log) if _was_too_slow(error) else UpstreamUnreachable(log=log)


def _told(error: Exception) -> str:
    """For the operator, by aiohttp's name: the transport calls a refused connection a time-out, too."""
    cause = error.__cause__
    named = cause if isinstance(cause, aiohttp.ClientError) and not _was_too_slow(error) else error
    return f"{type(named).__name__}: {_words(named)}"


def _words(error: BaseException) -> str:
    """The error's own, where it has some: a connection that was only closed, or only waited for, has none."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror is None:
        return str(error).replace("[None]", f"[{type(error.os_error).__name__}]")
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))


def _was_too_slow(error: Exception) -> bool:
    if isinstance(error, TimeoutError):  # asyncio's own names as its cause that it cancelled what it ended
        return True
    cause = error.__cause__ or error
    if isinstance(cause, aiohttp.ClientError):
        return isinstance(cause, _TOO_SLOW)
    return isinstance(cause, httpx.TimeoutException | TimeoutError)


@dataclass(frozen=True)
class Answered:
    """An answer, whole. ``headers`` finds names in any case."""

    status: int
    headers: httpx.Headers
    content: bytes


async def timed_call(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> Answered:
    """``call`` for what carries no file: connecting and answering together have a limit, too."""
    limit = client.timeout
    async with asyncio.timeout((limit.connect or 0) + (limit.read or 0)):
        return await call(client, method, path, **request)


async def call(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> Answered:
    """Make a request and read its answer, up to the size that an answer may have.

    Raises one of :data:`CLIENT_ERRORS`, or :class:`UpstreamBadAnswer` for an answer too large to be one.
    """
    async with client.stream(method, path, **request) as response:
        parts, size = [], 0
        async for part in response.aiter_raw():
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise UpstreamBadAnswer(
                    log=f"more than {MAX_ANSWER_BYTES} bytes, status {response.status_code}"
                )
            parts.append(part)
        return Answered(response.status_code, response.headers, b"".join(parts))
