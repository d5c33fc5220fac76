"""The way to Coze as far as it is known: what the settings say, and what one step leaves to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
from cryptography.exceptions import UnsupportedAlgorithm

from broker.settings import Settings, web_address
from broker.settings.hosts import canonical
from broker.settings.proxy import Proxy

if TYPE_CHECKING:
    from broker.doctor.calling import Reply
    from broker.doctor.exchange import Exchanged

OTHER_REGION = {
    "api.coze.cn": "https://api.coze.com",
    "api.coze.com": "https://api.coze.cn",
}
"""Coze's two clouds know nothing of each other's accounts."""


@dataclass(frozen=True)
class Target:
    """Where Coze is by the settings."""

    host: str
    port: int
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Target:
        """Raises ``ValueError`` for what is no address like ``https://host[:port]``."""
        parts = web_address(url)
        is_tls = parts.scheme == "https"
        return cls(canonical(parts.hostname or ""), parts.port or (443 if is_tls else 80), is_tls)

    @property
    def origin(self) -> str:
        """As people write it; no path, no name, no password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.is_tls else 80)
        return f"{'https' if self.is_tls else 'http'}://{host}{'' if usual else f':{self.port}'}"


@dataclass
class Way:
    """One examination's knowledge; each step reads what those before it wrote."""

    settings: Settings
    doh_url: str = ""
    wait_seconds: float = 5.0
    """How long any one connection, handshake or answer may take."""
    other_region: Mapping[str, str] = field(default_factory=lambda: OTHER_REGION)

    addresses: tuple[str, ...] = ()
    """Of the host, in the order in which the broker would try them."""
    compared_addresses: tuple[str, ...] = ()
    """Others, of a DNS server that the broker does not ask, for a look at whether they can be reached."""
    may_be_lied_to: bool = False
    """Whether the addresses are the word of one resolver, which nobody was asked to confirm."""
    client: httpx.AsyncClient | None = None
    """The broker's own client: lent by a broker that runs, else made once the way is open."""
    is_lent: bool = False
    tokens: dict[str, str] = field(default_factory=dict)
    """Access tokens that Coze gave, by whose they are: ``server``, ``browser``."""

    @property
    def target(self) -> Target:
        """Where Coze is. Raises ``ValueError`` as long as the settings don't say."""
        return Target.of(self.settings.coze_api_base)

    @property
    def proxy(self) -> Proxy | None:
        """The proxy that applies; one that is not set well does not."""
        try:
            return self.settings.coze_proxy
        except ValueError:
            return None

    @property
    def has_broken_app(self) -> bool:
        """Whether an OAuth app is set and not whole; the step settings says what it lacks."""
        try:
            apps = self.settings.server_app, self.settings.browser_app
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm):  # its private key can't be read
            return True
        return not all(app.client_id and app.public_key_id for app in apps if app is not None)

    @property
    def goes_direct(self) -> bool:
        """Whether pages are meant to send files straight to Coze."""
        if self.settings.broker_direct_max_bytes == 0 or self.settings.broker_scan == "all":
            return False
        return self.has_broken_app or self.settings.browser_app is not None

    @property
    def coze(self) -> httpx.AsyncClient:
        """The client, for steps behind the one that opened it."""
        if self.client is None:
            raise RuntimeError("the way is not open yet")
        return self.client

    anonymous: Reply | None = None
    """What Coze said to a look-up without a credential."""
    clock_ahead_seconds: float | None = None
    """How far this machine's clock is ahead of Coze's; None as long as that is not known."""
    exchanges: dict[str, Exchanged] = field(default_factory=dict)
    """What each app's token exchange came to, by whose they are, like ``tokens``."""

    @property
    def other_url(self) -> str | None:
        """The other region's address, where this is one of Coze's own."""
        return self.other_region.get(self.target.origin.partition("://")[2])
