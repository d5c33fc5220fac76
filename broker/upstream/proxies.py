"""Through a SOCKS5 proxy (RFC 1928, RFC 1929). HTTP proxies are aiohttp's own trade."""

from __future__ import annotations

import functools
import socket
import ssl
from typing import Any

import aiohappyeyeballs
import aiohttp
from aiohttp.abc import ResolveResult
from python_socks import ProxyError, ProxyType
from python_socks.async_.asyncio import Proxy as SocksClient

from broker.settings import Proxy
from broker.upstream.connector import NEXT_ADDRESS_SECONDS, Connector, proxy_refused
from broker.upstream.race import first_of
from broker.upstream.resolver import Resolver


class SocksConnector(Connector):
    """Connects through ``proxy``. It is told what the resolver found: an address, or the name itself."""

    def __init__(
        self,
        proxy: Proxy,
        resolver: Resolver,
        ssl_context: ssl.SSLContext,
        *,
        connect_timeout_seconds: float,
        counted_as: str = "coze",
    ) -> None:
        super().__init__(
            resolver, ssl_context, connect_timeout_seconds=connect_timeout_seconds, counted_as=counted_as
        )
        self._socks = SocksClient(
            proxy_type=ProxyType.SOCKS5,
            host=proxy.host,
            port=proxy.port,
            username=proxy.username,
            password=proxy.password,
            rdns=True,
            forward=_WayToProxy(resolver),
        )

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: Any, req: aiohttp.ClientRequest, **options: Any
    ) -> Any:
        """A socket through the proxy, and on it what a direct one would get: TLS with the host itself."""
        attempts = [
            functools.partial(self._tunnel, address[0], address[1], req) for *_, address in addr_infos
        ]
        try:
            tunnel = await first_of(
                attempts, within_seconds=self.connect_timeout_seconds, drop=socket.socket.close
            )
            return await self._wrap_existing_connection(*args, req=req, sock=tunnel, **options)
        except (aiohttp.ClientConnectorError, TimeoutError):
            # All that there was to try was tried; aiohttp would begin anew with those behind the first.
            addr_infos.clear()
            raise

    async def _tunnel(self, host: str, port: int, req: aiohttp.ClientRequest) -> socket.socket:
        try:
            return await self._socks.connect(host, port, timeout=self.connect_timeout_seconds)
        except TimeoutError:
            raise
        except Exception as error:  # whatever strange bytes make of the library
            raise proxy_refused(req, _meaning(error)) from None


def _meaning(error: Exception) -> str:
    """Only errors of the line and the library's own have words to be shown: others may repeat a password."""
    said = str(error)[:200] if isinstance(error, OSError | ProxyError) else ""
    return getattr(error, "strerror", None) or said or type(error).__name__


class _WayToProxy(SocksClient):
    """How the library reaches the proxy: by our own resolver, the next address beside the first."""

    def __init__(self, resolver: Resolver) -> None:
        self._own_resolver = resolver

    async def connect(self, dest_host: str, dest_port: int, *_: Any, **__: Any) -> socket.socket:
        found = await self._own_resolver.resolve(dest_host, dest_port)
        return await aiohappyeyeballs.start_connection(
            [_address_info(each) for each in found],
            happy_eyeballs_delay=NEXT_ADDRESS_SECONDS,
            interleave=1,
        )


def _address_info(found: ResolveResult) -> Any:
    host, port, is_ipv6 = found["host"], found["port"], found["family"] == socket.AF_INET6
    address = (host, port, 0, 0) if is_ipv6 else (host, port)
    return found["family"], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address
