"""The way to Coze as the settings lay it: whose addresses, through which proxy, with whose certificates."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from broker.settings import Proxy, Settings
from broker.settings.hosts import canonical
from broker.upstream import tls
from broker.upstream.client import USER_AGENT, make_client
from broker.upstream.connector import Connector
from broker.upstream.resolver import Lookup, Resolver, SystemLookup


@dataclass(frozen=True)
class Way:
    """How connections are made; by default by the system's resolver, to public addresses, directly."""

    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    private_hosts: tuple[str, ...] = ()
    doh_url: str = ""
    proxy: Proxy | None = None
    ca_file: Path | None = None

    @classmethod
    def of_settings(cls, settings: Settings) -> Way:
        """The way that checked settings lay."""
        return cls(
            hosts=settings.upstream_hosts,
            private_hosts=settings.upstream_private_hosts,
            doh_url=settings.upstream_doh_url,
            proxy=settings.coze_proxy,
            ca_file=settings.upstream_ca_file,
        )

    def client(
        self,
        base_url: str,
        *,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
        counted_as: str = "coze",
    ) -> httpx.AsyncClient:
        """A client that goes this way; snapshots count its connections under a name. Must be made inside the
        event loop.
        """
        return make_client(
            base_url,
            connector=self._connector(connect_timeout_seconds, counted_as),
            proxy=None if self.proxy is None or self.proxy.is_socks else _http_proxy(self.proxy),
            read_timeout_seconds=read_timeout_seconds,
        )

    def _connector(self, connect_timeout_seconds: float, counted_as: str) -> Connector:
        resolver = Resolver(
            None if self._is_looked_up_by_proxy else self.lookup(connect_timeout_seconds),
            hosts=self.hosts,
            private_hosts=self.private_hosts,
            own_hosts=() if self.proxy is None else (canonical(self.proxy.host),),
            timeout_seconds=connect_timeout_seconds,
        )
        context = tls.make_context(self.ca_file)
        if self.proxy is None or not self.proxy.is_socks:
            return Connector(
                resolver, context, connect_timeout_seconds=connect_timeout_seconds, counted_as=counted_as
            )
        from broker.upstream.proxies import SocksConnector  # noqa: PLC0415 - few have such a proxy

        return SocksConnector(
            self.proxy,
            resolver,
            context,
            connect_timeout_seconds=connect_timeout_seconds,
            counted_as=counted_as,
        )

    @property
    def _is_looked_up_by_proxy(self) -> bool:
        return self.proxy is not None and self.proxy.resolves_names

    def lookup(self, timeout_seconds: float, counted_as: str = "dns") -> Lookup:
        """Who is asked for addresses wherever no proxy finds them; to be closed by whoever calls. The
        connections of DNS over HTTPS have ``timeout_seconds``, and their name in snapshots. Must be made
        inside the event loop.
        """
        if not self.doh_url:
            return SystemLookup()
        from broker.upstream.doh import DohLookup  # noqa: PLC0415 - it needs dnspython, which takes its time

        # The DNS server's own name is the operator's word, and is looked up where all others are not.
        host = canonical(urlsplit(self.doh_url).hostname or "")
        way = Way(hosts=self.hosts, private_hosts=(host,), ca_file=self.ca_file)
        client = way.client(
            self.doh_url,
            connect_timeout_seconds=timeout_seconds,
            read_timeout_seconds=timeout_seconds,
            counted_as=counted_as,
        )
        return DohLookup(client, self.doh_url)


def _http_proxy(proxy: Proxy) -> httpx.Proxy:
    """As the transport wants it. The password is in a header, since an error shows what is in an address; the
    name is the broker's, since the transport's tells its version and Python's.
    """
    headers = {"User-Agent": USER_AGENT}
    if proxy.username is None:
        return httpx.Proxy(proxy.address, headers=headers)
    pair = f"{proxy.username}:{proxy.password or ''}".encode()
    basic = f"Basic {base64.b64encode(pair).decode()}"  # RFC 7617 §2
    return httpx.Proxy(proxy.address, headers={**headers, "Proxy-Authorization": basic})
