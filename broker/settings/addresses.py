"""Origins, addresses of this machine, and how they are written."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - names addresses
"""Addresses to listen on that are none to be reached at, and what reaches them from this machine."""


def origin_of(url: str) -> str:
    """The origin of a URL as a browser writes it: lower case, no port where it is the usual one."""
    parts = urlsplit(url)
    usual_port = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, usual_port) else f":{parts.port}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else (parts.hostname or "")
    return f"{parts.scheme}://{host}{port}"


def http_url(host: str, port: int) -> str:
    """The address of a server on this machine; an IPv6 address gets its brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_origin(value: str) -> bool:
    """Whether ``value`` is exactly what a browser would send in ``Origin``; ``*`` and ``null`` are not."""
    match = _ORIGIN.fullmatch(value)
    try:
        return match is not None and origin_of(value) == value and _is_host(match["host"])
    except ValueError:
        return False


# Browsers write a host in ASCII; a wildcard is no host, and would match nothing.
_ORIGIN = re.compile(r"https?://(?P<host>[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:]+\])(:[0-9]+)?")
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)\.?")
MAX_HOST_LENGTH = 253


def _is_host(host: str) -> bool:
    """Whether browsers write a host so: addresses in their one form (RFC 5952, WHATWG URL §3.5).

    Raises ``ValueError`` for an address that is none.
    """
    if host.startswith("["):
        address = ipaddress.IPv6Address(host[1:-1])
        return address.ipv4_mapped is not None or str(address) == host[1:-1]
    if _ENDS_IN_A_NUMBER.fullmatch(host):
        return str(ipaddress.IPv4Address(host)) == host
    return len(host) <= MAX_HOST_LENGTH


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def not_an_origin(value: str) -> str:
    """What to tell whoever wrote ``value`` where an origin belongs."""
    return (
        f"{value!r} is not an origin. Write it as a browser does, "
        "like https://app.example.com; '*' is never allowed."
    )
