"""Whose request it is, as far as can be known: the caller's IP address behind a counted number of proxies.

A proxy appends the address that a request came to it from to ``X-Forwarded-For``. So the last of its entries
is the word of the proxy nearest to us, the one before that of the next, and what stands left of those that
we know is whatever the caller chose to write. Nothing else is believed: not ``Forwarded`` (RFC 7239), not
``X-Real-IP``, no name with underscores, and without a proxy not ``X-Forwarded-For`` either.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable

HEADER = b"x-forwarded-for"
MAX_ENTRY_LENGTH = 64
UNKNOWN = "unknown"
_IPV6_PREFIX_LENGTH = 64
_WITH_PORT = re.compile(r"\[([^\[\]]+)\](?::\d{1,5})?|([0-9.]+):\d{1,5}")
"""``[::1]:8080``, ``[::1]`` or ``192.0.2.1:8080``."""


def client_address(
    peer: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]], trusted_proxies: int
) -> str | None:
    """The caller's IP address, IPv4 wherever it is one; None where there is none, as on a Unix socket.

    ``peer`` and ``headers`` as in an ASGI scope, ``trusted_proxies`` counted from the right. What has fewer
    entries, or no address at that place, did not come by the way that was counted: then the answer is the
    peer, which nobody can invent.
    """
    own = _normalised(peer[0]) if peer else None
    if not trusted_proxies:
        return own
    chain = b",".join(value for name, value in headers if name == HEADER)
    entries = chain.rsplit(b",", trusted_proxies)
    entry = entries[-trusted_proxies].strip(b" \t") if len(entries) >= trusted_proxies else b""
    if len(entry) > MAX_ENTRY_LENGTH:
        return own
    return _normalised(entry.decode("latin-1")) or own


@functools.lru_cache(maxsize=1024)
def bucket_of(address: str | None) -> str:
    """What an address counts for in limits: an IPv6 one for its /64, which is what one caller is given.

    All that have no address share one bucket.
    """
    ip = _parsed(address or "")
    if ip is None:
        return UNKNOWN
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ipaddress.IPv6Network((int(ip), _IPV6_PREFIX_LENGTH), strict=False))


@functools.lru_cache(maxsize=1024)
def _normalised(text: str) -> str | None:
    ip = _parsed(text)
    return None if ip is None else str(ip)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a text, without the port that some proxies add and without its zone, which means nothing
    to anyone else; an IPv4 address that is written as an IPv6 one (RFC 4291 §2.5.5.2) is what it is.
    """
    with_port = _WITH_PORT.fullmatch(text)
    bare = (with_port[1] or with_port[2]) if with_port else text
    try:
        ip = ipaddress.ip_address(bare)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    return ip.ipv4_mapped or ipaddress.IPv6Address(int(ip))
