"""Origins, addresses of this machine, and how they are written."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from broker.settings import hosts

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - names addresses
"""Addresses to listen on that are none to be reached at, and what reaches them from this machine."""


def origin_of(url: str) -> str:
    """The origin of a URL as a browser writes it: lower case, no port where it is the usual one."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{_authority(parts, parts.hostname or '')}"


def authority_of(url: str) -> str:
    """The host of a good address in the form that hosts are compared in, with its port where that is not the
    usual one.
    """
    return _authority(urlsplit(url), hostname_of(url))


def _authority(parts: SplitResult, host: str) -> str:
    usual_port = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, usual_port) else f":{parts.port}"
    return f"[{host}]{port}" if ":" in host else f"{host}{port}"


def web_address(url: str) -> SplitResult:
    """The parts of an address like ``https://host[:port]/path``.

    Raises ``ValueError`` with what is wrong as the end of a sentence, if that can be said in short; it
    repeats nothing of the address, which may hold a secret.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError from None
    # urlsplit passes over line ends, and over a sign that nothing stands behind.
    if not _VISIBLE_ASCII.fullmatch(url) or parts.netloc.endswith(":") or any(sign in url for sign in "?#"):
        raise ValueError
    if "@" in parts.netloc or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError
    if port == 0:
        raise ValueError(": nothing listens on port 0")
    if "%" in parts.hostname:
        raise ValueError(": a zone (%) is of one machine alone")
    if (plain := hosts.plain_ipv4(parts.hostname)) is not None:
        raise ValueError(f": write the host as {plain}")
    if not hosts.is_host(parts.hostname):
        raise ValueError(": no host has such a name")
    return parts


def hostname_of(url: str) -> str:
    """The host in a good address, in the form that hosts are compared in; empty where there is none."""
    return hosts.canonical(urlsplit(url).hostname or "")


def masked(url: str) -> str:
    """An address, good or bad, as it may be shown: without name, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not scheme.isalnum():
        scheme, separator, rest = "", "", url
    end = min((rest.index(sign) for sign in "?#" if sign in rest), default=len(rest))
    head, sign, tail = rest[:end], rest[end : end + 1], rest[end + 1 :]
    if "@" in tail:  # then the sign may be a password's
        return f"{scheme}{separator}{HIDDEN}"
    _, at, host = head.rpartition("@")
    return f"{scheme}{separator}{HIDDEN + at if at else ''}{host}{sign}{HIDDEN if sign else ''}"


HIDDEN = "(not shown)"
_VISIBLE_ASCII = re.compile("[!-~]+")


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


def is_this_machine(host: str) -> bool:
    """The same of a host that the way to Coze leads to: there ``localhost``, and what ends in it, is never
    asked of DNS.
    """
    return is_loopback(host) or hosts.is_localhost(host)


def not_an_origin(value: str) -> str:
    """What to tell whoever wrote ``value`` where an origin belongs."""
    return (
        f"{value!r} is not an origin. Write it as a browser does, "
        "like https://app.example.com; '*' is never allowed."
    )
