"""From a host's name to addresses that may be connected to.

A name may lead to a public server only, unless the operator named it: DNS rebinding leads nowhere, nor to the
metadata services of clouds. The check is on the very addresses that are then connected to.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection, Mapping
from typing import Protocol

from aiohttp.abc import AbstractResolver, ResolveResult

from broker.settings.hosts import LOOPBACK, canonical, is_address, is_localhost
from broker.upstream.address_ranges import kind_of


class Lookup(Protocol):
    """Whom to ask."""

    async def __call__(self, host: str) -> list[str]:
        """The host's addresses, at least one. Raises ``OSError``."""

    async def aclose(self) -> None:
        """Close what is open."""


class AddressRefusedError(OSError):
    """A name leads to no address but such as no public server has."""


class Resolver(AbstractResolver):
    """What the settings say of a host, else what ``lookup`` says; without ``lookup``, the name itself: a
    proxy will find out.

    ``localhost`` is this machine; nobody is asked for it (RFC 6761 §6.3). ``own_hosts`` are the operator's in
    any case: they are looked up in the system, and may be anywhere.
    ``private_hosts`` may be anywhere, too. A lookup may take ``timeout_seconds``.
    """

    def __init__(
        self,
        lookup: Lookup | None,
        *,
        hosts: Mapping[str, tuple[str, ...]],
        private_hosts: Collection[str],
        own_hosts: Collection[str],
        timeout_seconds: float,
    ) -> None:
        self._lookup = lookup
        self._hosts = hosts
        self._own_hosts = set(own_hosts)
        self._may_be_anywhere = self._own_hosts | set(private_hosts)
        self._timeout_seconds = timeout_seconds

    def fixed(self, host: str) -> tuple[str, ...]:
        """The addresses that the settings give a host; none for most."""
        return self._hosts.get(canonical(host), ())

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses to connect to. Raises ``OSError``, ``TimeoutError`` among them, whose text is for the
        operator.
        """
        found = [_result(host, port, address) for address in await self._addresses(host)]
        fitting = [each for each in found if family in (socket.AF_UNSPEC, each["family"])]
        if not fitting:
            raise OSError(None, f"{host} has no address of the family that is asked for")
        return fitting

    async def close(self) -> None:
        """Close what the lookup has open."""
        if self._lookup is not None:
            await self._lookup.aclose()

    async def _addresses(self, host: str) -> list[str]:
        fixed = [host] if is_address(host) else list(self.fixed(host))
        if fixed:
            return fixed
        if is_localhost(host) and (self._lookup is not None or canonical(host) in self._own_hosts):
            return list(LOOPBACK)
        lookup = SystemLookup() if canonical(host) in self._own_hosts else self._lookup
        if lookup is None:
            return [host]
        async with asyncio.timeout(self._timeout_seconds):
            return self._checked(host, await lookup(host))

    def _checked(self, host: str, addresses: list[str]) -> list[str]:
        if canonical(host) in self._may_be_anywhere:
            return addresses
        kinds = {address: kind_of(address) for address in addresses}
        public = [address for address, kind in kinds.items() if kind is None]
        if not public:
            said = ", ".join(f"{address} ({kind})" for address, kind in kinds.items())
            raise AddressRefusedError(
                None,
                f"DNS says that {host} is at {said}, where no public server is. If that is right, name the "
                "host in UPSTREAM_PRIVATE_HOSTS",
            )
        return public


class SystemLookup:
    """What the system's resolver says."""

    async def __call__(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except UnicodeError as error:
            raise OSError(None, f"{host[:60]!r} is no name that DNS can have") from error
        return list(dict.fromkeys(with_scope(address) for *_, address in found))

    async def aclose(self) -> None:
        """Nothing is open."""


def with_scope(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    """An IPv6 address in a link's own range is of use with its scope alone."""
    host, scope = str(address[0]), address[3] if len(address) > 3 else 0  # noqa: PLR2004 - IPv6's fourth
    return f"{host}%{scope}" if scope and "%" not in host else host


def _result(host: str, port: int, address: str) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(
        hostname=host, host=address, port=port, family=family, proto=socket.IPPROTO_TCP, flags=0
    )
