"""aiohttp's connector with the rules of the way to Coze.

Parts of it that have no public name are replaced, as every connector for proxies has to; the tests of this
way run over real sockets and fail when a new release of aiohttp calls them otherwise.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import http
import ssl
from typing import Any

import aiohttp
from aiohttp import hdrs

from broker.observe import snapshot
from broker.upstream.race import first_of
from broker.upstream.resolver import Resolver

CACHE_SECONDS = 10
"""How long a host's addresses are kept; whoever comes meanwhile shares one lookup."""
KEEPALIVE_SECONDS = 30
NEXT_ADDRESS_SECONDS = 0.25
"""How long an address may take before the next one is tried beside it (RFC 8305 §5)."""


class Connector(aiohttp.TCPConnector):
    """Connects directly, or through an HTTP proxy where the request has one."""

    def __init__(
        self,
        resolver: Resolver,
        ssl_context: ssl.SSLContext,
        *,
        connect_timeout_seconds: float,
        counted_as: str = "coze",
    ) -> None:
        super().__init__(
            ssl=ssl_context,
            resolver=resolver,
            limit=0,  # how many there may be is for the user to bound
            keepalive_timeout=KEEPALIVE_SECONDS,
            ttl_dns_cache=CACHE_SECONDS,
            happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
            interleave=1,
        )
        self.resolver = resolver
        self.ssl_context = ssl_context
        self.connect_timeout_seconds = connect_timeout_seconds
        snapshot.count(f"{counted_as}_connections_in_use", lambda: len(self._acquired))
        snapshot.count(f"{counted_as}_connections_idle", self._idle)

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, those of the resolver too."""
        await super().close(abort_ssl=abort_ssl)
        await self.resolver.close()

    async def connect(self, req: aiohttp.ClientRequest, *rest: Any, **options: Any) -> Any:
        """A connection, old or new. Names, addresses one after another, the proxy's handshake and TLS have
        one time-out together; aiohttp's own has each address begin anew.
        """
        async with asyncio.timeout(self.connect_timeout_seconds):
            return await super().connect(req, *rest, **options)

    def _idle(self) -> int:
        """How many connections wait for use; one that Coze closed stays in aiohttp's pool for a while."""
        return sum(each.is_connected() for pool in self._conns.values() for each, _ in pool)

    async def _create_proxy_connection(self, req: aiohttp.ClientRequest, *rest: Any) -> Any:
        """The proxy gets an address, not the name, of a host whose addresses the settings fix."""
        host = req.url.raw_host or ""
        requests = [_at(req, address) for address in self.resolver.fixed(host)] or [req]
        return await first_of(
            [functools.partial(self._through_proxy, request, *rest) for request in requests],
            within_seconds=self.connect_timeout_seconds,
            drop=lambda connection: connection[0].abort(),
        )

    async def _through_proxy(self, req: aiohttp.ClientRequest, *rest: Any) -> Any:
        try:
            return await super()._create_proxy_connection(req, *rest)
        except aiohttp.ClientResponseError as error:
            # What it carries would show the proxy's password: neither it nor the proxy's own words go on.
            refused = proxy_refused(req, _meaning(error))
        raise refused


def proxy_refused(req: aiohttp.ClientRequest, meaning: str) -> aiohttp.ClientProxyConnectionError:
    """The error for a proxy that does not let us through."""
    return aiohttp.ClientProxyConnectionError(req.connection_key, OSError(None, f"the proxy: {meaning}"))


def _at(req: aiohttp.ClientRequest, address: str) -> aiohttp.ClientRequest:
    """The same request to be sent to ``address``; it is still the host's certificate that counts."""
    moved = copy.copy(req)
    moved.url = req.url.with_host(address)
    moved.server_hostname = req.server_hostname or req.url.raw_host
    moved.headers = req.headers.copy()
    moved.headers[hdrs.HOST] = f"{moved.url.host_subcomponent}:{moved.url.port}"  # RFC 9110 §9.3.6
    return moved


def _meaning(error: aiohttp.ClientResponseError) -> str:
    if not isinstance(error, aiohttp.ClientHttpProxyError):
        return "its answer is no HTTP"
    if error.status == http.HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return "407, it wants a name and a password, or not these"
    try:
        return f"{error.status} {http.HTTPStatus(error.status).phrase}"
    except ValueError:
        return str(error.status)
