"""Hosts and their addresses, as an operator writes them down."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
MAX_NAME_LENGTH = 253


def canonical(name: str) -> str:
    """A host's name in the one form that it is compared in."""
    return name.lower().rstrip(".")


def is_host_name(name: str) -> bool:
    """Whether ``name``, in its canonical form, can be a host's name in DNS; an address is none."""
    return len(name) <= MAX_NAME_LENGTH and bool(_NAME.fullmatch(name)) and not is_address(name)


LOOPBACK = ("127.0.0.1", "::1")
"""What a name of this machine means, whoever is asked."""


def is_localhost(name: str) -> bool:
    """Whether a name means this machine, so that no DNS server may be asked for it (RFC 6761 §6.3)."""
    return f".{canonical(name)}".endswith(".localhost")


def is_host(text: str) -> bool:
    """Whether a URL may name its host so: by a name, or by an address that is one on every machine, in a form
    that every client takes.
    """
    if is_host_name(text.lower().removesuffix(".")):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def plain_ipv4(text: str) -> str | None:
    """What an IPv4 address means that is not written as four numbers: ``10.1`` is 10.0.0.1; else None."""
    try:
        plain = socket.inet_ntoa(socket.inet_aton(text)) if _OLD_IPV4.fullmatch(text) else text
    except OSError:
        return None
    return None if plain == text else plain


def is_address(text: str) -> bool:
    """Whether ``text`` is an IP address, the old ways to write one (``127.1``, ``0x7f000001``) included."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return bool(_OLD_IPV4.fullmatch(text))
    return True


_OLD_IPV4 = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}")


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """Fixed addresses: ``name=address address, name=address``.

    Raises ``ValueError`` that says what is wrong, as the rest of a sentence.
    """
    hosts: dict[str, tuple[str, ...]] = {}
    for entry in filter(None, map(str.strip, text.split(","))):
        name, equals, addresses = entry.partition("=")
        name = canonical(name.strip())
        if not equals or not is_host_name(name):
            raise ValueError(f"{entry[:60]!r} is not written like api.coze.cn=203.0.113.7 203.0.113.8")
        if name in hosts:
            raise ValueError(f"{name!r} stands there twice; write all of its addresses behind one =")
        hosts[name] = tuple(_addresses(name, addresses.split()))
    return hosts


def _addresses(name: str, addresses: list[str]) -> Iterator[str]:
    if not addresses:
        raise ValueError(f"{name!r} has no address")
    for address in addresses:
        try:
            parsed = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise ValueError(f"{address[:60]!r} is no IP address") from None
        if parsed.is_multicast or parsed.is_unspecified or str(parsed) == "255.255.255.255" or "%" in address:
            raise ValueError(f"{address[:60]!r} is no address that can be connected to")
        yield str(parsed)
