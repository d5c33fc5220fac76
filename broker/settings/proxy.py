"""The proxy that Coze is reached through: from a setting, or from the environment as all clients read it."""

from __future__ import annotations

import ipaddress
import re
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from broker.settings import hosts

PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
WORDS = ("environment", "none")
"""What stands for a proxy's address in the setting."""
ALIASES = {"socks": "socks5h"}
"""What GNOME puts into ``ALL_PROXY``."""
_VISIBLE_ASCII = re.compile(r"[!-~]+")
MAX_CREDENTIAL_BYTES = 255
"""The longest name or password that SOCKS has room for (RFC 1929 §2)."""


class SocksCredentialError(ValueError):
    """A name and a password that can't be told to a SOCKS proxy: it would be asked as if there were none."""

    def __init__(self) -> None:
        super().__init__("a SOCKS proxy is told a name and a password, both in ASCII, or neither")


@dataclass(frozen=True)
class Proxy:
    """A proxy; ``scheme`` is ``http``, ``https``, ``socks5`` or ``socks5h``."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """Where it is, without what it is told in confidence."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def resolves_names(self) -> bool:
        """Whether it is given Coze's name and asks DNS itself; else it is given an address."""
        return self.scheme != "socks5"

    @property
    def is_socks(self) -> bool:
        return self.scheme.startswith("socks")


def parse(url: str) -> Proxy:
    """The proxy at ``url``; one without a scheme is an HTTP proxy.

    Raises ``ValueError``, silent about it; :class:`SocksCredentialError` has a sentence that can be shown.
    """
    if not _VISIBLE_ASCII.fullmatch(url):  # urlsplit passes over line ends
        raise ValueError
    parts = urlsplit(url if "://" in url else f"http://{url}")
    scheme = ALIASES.get(parts.scheme, parts.scheme)
    host, port = parts.hostname or "", parts.port
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment)
    if scheme not in PORTS or port == 0 or not is_bare or not hosts.is_host(host):
        raise ValueError
    username, password = _credential(parts.username), _credential(parts.password)
    if username and ":" in username:  # RFC 7617 §2 has no room for it
        raise ValueError
    if scheme.startswith("socks"):
        _check_for_socks(username or "", password or "")
    return Proxy(scheme, host.rstrip("."), port or PORTS[scheme], username, password)


def _check_for_socks(username: str, password: str) -> None:
    """What python-socks sends: both or nothing, and in ASCII."""
    if bool(username) != bool(password) or not (username + password).isascii():
        raise SocksCredentialError


def masked(setting: str) -> str:
    """The setting as it may be shown: a word as it is, an address without its name and password."""
    if setting in WORDS:
        return setting
    try:
        proxy = parse(setting)
    except ValueError:
        return "(set, not shown)"
    return proxy.address if proxy.username is None else proxy.address.replace("//", "//(not shown)@")


def of_environment(host: str, port: int) -> tuple[str, str] | None:
    """The variable that names a proxy for https to ``host``, and its value; None where there is none.

    Lower case wins over upper case. ``HTTP_PROXY`` is for plain http, which goes to loopback alone.
    """
    given = urllib.request.getproxies_environment()
    name = next((name for name in ("https", "all") if given.get(name)), None)
    if name is None or is_exempt(host, port, given.get("no", "")):
        return None
    return f"{name.upper()}_PROXY", given[name]


def is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether ``NO_PROXY`` names the host: a name or one above it, an address, a network, or ``*``."""
    return any(_names(entry.strip().lower(), host.lower().rstrip("."), port) for entry in no_proxy.split(","))


def _names(entry: str, host: str, port: int) -> bool:
    if entry in ("*", ""):
        return entry == "*"
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, its_port = entry.rpartition(":")
    if colon and its_port.isdigit() and not name.endswith(":"):
        return int(its_port) == port and _names(name, host, port)
    suffix = entry.removeprefix("*").strip(".")
    return bool(suffix) and (host == suffix or host.endswith(f".{suffix}"))


def _credential(value: str | None) -> str | None:
    if value is None:
        return None
    credential = unquote(value, errors="strict")
    if len(credential.encode()) > MAX_CREDENTIAL_BYTES or not credential.isprintable():
        raise ValueError
    return credential
