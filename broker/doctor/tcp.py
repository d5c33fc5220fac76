"""Step ``tcp``: which of Coze's addresses take a connection, of IPv4 and of IPv6?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.doctor.connecting import DENIED, NO_ROUTE, REFUSED, SILENT, patience, trouble_of
from broker.doctor.finding import Finding, failed, ok, skipped, warning
from broker.doctor.way import Way


@dataclass(frozen=True)
class Attempt:
    """At one address: it took ``seconds``, or there was ``trouble``."""

    seconds: float = 0.0
    trouble: str = ""

    def __str__(self) -> str:
        return self.trouble or f"{self.seconds * 1000:.0f} ms"


Attempts = Mapping[str, Attempt]


async def examine(way: Way) -> Finding:
    """Puts the addresses that answer first. Where a proxy applies, the direct way need not be open."""
    if not way.addresses and way.proxy is not None:
        return skipped("no address is known, and the proxy needs none")
    attempts = await _try(way, way.addresses)
    others = [each for each in way.compared_addresses if each not in attempts]
    works_elsewhere = not _open(attempts) and bool(_open(await _try(way, others)))
    finding = judged(
        way.target.port, attempts, works_elsewhere=works_elsewhere, may_be_lied_to=way.may_be_lied_to
    )
    if any(each.trouble == SILENT for each in attempts.values()):
        finding = replace(finding, found=f"{finding.found} ({patience(way)})")
    way.addresses = tuple(sorted(way.addresses, key=lambda each: bool(attempts[each].trouble)))
    if finding.status == "failed" and way.proxy:
        return warning(finding.found, "A proxy applies, so nothing goes this way.", **finding.facts)
    return finding


def judged(
    port: int, attempts: Attempts, *, works_elsewhere: bool = False, may_be_lied_to: bool = False
) -> Finding:
    """What the attempts mean."""
    shown = "; ".join(f"{address}: {attempt}" for address, attempt in attempts.items())
    found = f"port {port}: {shown}"
    facts = {
        "port": port,
        "addresses": {
            address: {"milliseconds": round(each.seconds * 1000, 1), "trouble": each.trouble or None}
            for address, each in attempts.items()
        },
    }
    working = _open(attempts)
    if not working:
        troubles = {each.trouble for each in attempts.values()}
        means, do = _why(port, troubles)
        if works_elsewhere:
            means = "The addresses from --doh can be reached: the resolver's answer is poisoned or stale."
            do = "Set UPSTREAM_DOH_URL to that of --doh, or write a working address into UPSTREAM_HOSTS."
        elif may_be_lied_to and troubles & {REFUSED, SILENT}:
            do = f"{do[:-1]}; or DNS lies: compare with --doh URL."
        return failed(found, means, do, **facts)
    if all(each.trouble in ("", NO_ROUTE) for each in attempts.values()):
        return ok(found, **facts)  # most machines have one of IPv4 and IPv6
    if len(working) < len(attempts):
        return warning(found, _half_open(attempts), "", **facts)
    return ok(found, **facts)


def _half_open(attempts: Attempts) -> str:
    closed = {":" in address for address, each in attempts.items() if each.trouble}
    works = {":" in address for address in _open(attempts)}
    if closed == {True} and works == {False}:
        return "IPv6 does not work from here, IPv4 does. The broker tries both and takes what works."
    if closed == {False} and works == {True}:
        return "IPv4 does not work from here, IPv6 does. The broker tries both and takes what works."
    return "Some addresses don't answer; the broker goes on to the next."


def _why(port: int, troubles: set[str]) -> tuple[str, str]:
    if troubles == {REFUSED}:
        means = "Something answers there and wants no connection: nothing listens, or a firewall rejects."
        return means, f"Check host and port of COZE_API_BASE, and the firewall's rules for port {port}."
    if troubles == {SILENT}:
        means = "Packets vanish: a firewall or a security group filters them, or the addresses are wrong."
        return means, f"Let this machine out to port {port}, or set UPSTREAM_PROXY to a proxy that gets out."
    if troubles == {NO_ROUTE}:
        means = "This machine knows no way there: it has no internet, or none of this address family."
        return means, "Give it a route or a NAT gateway, or set UPSTREAM_PROXY."
    if troubles == {DENIED}:
        return "This machine's own firewall or sandbox forbids the connection.", "Allow it there."
    return "None of the addresses can be reached.", "Let this machine out, or set UPSTREAM_PROXY."


def _open(attempts: Attempts) -> list[str]:
    return [address for address, each in attempts.items() if not each.trouble]


async def _try(way: Way, addresses: tuple[str, ...] | list[str]) -> dict[str, Attempt]:
    """All at once, so that they take no longer than the slowest."""
    tried = await asyncio.gather(*(_attempt(each, way.target.port, way.wait_seconds) for each in addresses))
    return dict(zip(addresses, tried, strict=True))


async def _attempt(address: str, port: int, wait_seconds: float) -> Attempt:
    started = time.monotonic()
    try:
        async with asyncio.timeout(wait_seconds):
            _, writer = await asyncio.open_connection(address, port)
    except OSError as error:  # a time-out is one
        return Attempt(trouble=trouble_of(error))
    writer.transport.abort()
    return Attempt(time.monotonic() - started)
