"""Addresses that no public server has: what a name must not lead to unless the operator said that it may.

The ranges are IANA's special-purpose registries (RFC 6890) and the addresses at which clouds keep their
metadata. IPv6 addresses that carry an IPv4 address are judged by that.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_RANGES: dict[str, Iterable[str]] = {
    "unspecified": ("0.0.0.0/8", "::/128"),
    "loopback": ("127.0.0.0/8", "::1/128"),
    "metadata": ("169.254.169.254/32", "100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32"),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    "private": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
    "benchmarking": ("198.18.0.0/15", "2001:2::/48"),
    "documentation": (
        *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
        *("2001:db8::/32", "3fff::/20"),
    ),
    "reserved": ("192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4", "2001::/23"),
}
"""The first that fits is the one; benchmarking is where some local proxies make up addresses."""
_NETWORKS = tuple((kind, ip_network(text)) for kind, texts in _RANGES.items() for text in texts)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_CARRIES_IPV4 = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped, RFC 4291 §2.5.5.2
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052 §2.1
    (IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056 §2
)
"""Where in an address the IPv4 address is: so many bits from its end."""


def kind_of(address: str) -> str | None:
    """What kind of special address this is, in a word; None for one that a public server can have.

    Raises ``ValueError`` for what is no address.
    """
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        parsed = _carried(parsed) or parsed
    for kind, network in _NETWORKS:
        if parsed.version == network.version and parsed in network:
            return kind
    return "reserved" if isinstance(parsed, IPv6Address) and parsed not in _GLOBAL_UNICAST else None


def _carried(address: IPv6Address) -> IPv4Address | None:
    for network, bits in _CARRIES_IPV4:
        if address in network:
            return IPv4Address(int(address) >> bits & 0xFFFF_FFFF)
    return None
