"""Step ``dns``: what is Coze's address, by the system's resolver and by DNS over HTTPS (RFC 8484)?"""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from broker.doctor.connecting import trouble_of
from broker.doctor.finding import Finding, failed, ok, warning
from broker.doctor.way import Way
from broker.errors import Refusal
from broker.settings.hosts import LOOPBACK, canonical, is_localhost
from broker.upstream.address_ranges import kind_of
from broker.upstream.client import CLIENT_ERRORS, call
from broker.upstream.way import Way as UpstreamWay

DOH_TYPE = "application/dns-message"
MAX_SHOWN = 6
MAX_ADDRESSES = 16
USE_DOH = (
    "Set UPSTREAM_DOH_URL to a DNS-over-HTTPS resolver that you trust, or write Coze's address into "
    "UPSTREAM_HOSTS, or mend the resolver of this machine."
)
_TROUBLE = {
    "nxdomain": "there is no such name",
    "empty": "the name has no address",
    "silent": "no answer in time",
    "failed": "the resolver failed or can't be reached",
}


@dataclass(frozen=True)
class Answers:
    """What one resolver said: addresses, or what its trouble was (a key of the table above)."""

    addresses: tuple[str, ...] = ()
    trouble: str = ""

    def __str__(self) -> str:
        return _listed(self.addresses) if self.addresses else _TROUBLE.get(self.trouble, self.trouble)


@dataclass(frozen=True)
class Asked:
    """All that is needed to judge, so that judging needs no network."""

    host: str
    system: Answers
    doh: Answers | None
    """None where none was asked."""
    doh_decides: bool
    """Whether the broker itself asks it."""
    may_be_private: bool
    has_ipv6_route: bool

    @property
    def used(self) -> Answers:
        """What the broker would go by."""
        return self.doh if self.doh_decides and self.doh is not None else self.system

    @property
    def usable(self) -> tuple[str, ...]:
        """Those of its addresses that the broker would connect to."""
        return self.usable_of(self.used)

    def usable_of(self, answers: Answers | None) -> tuple[str, ...]:
        """Those of any resolver's."""
        addresses = () if answers is None else answers.addresses
        return tuple(each for each in addresses if self.may_be_private or kind_of(each) is None)


async def examine(way: Way) -> Finding:
    """Sets the way's addresses. Where a proxy applies that resolves names itself, trouble is no failure."""
    fixed = _fixed(way)
    if fixed is not None:
        way.addresses = fixed[0]
        return ok(fixed[1], addresses=list(fixed[0]))
    asked = await _ask(way)
    way.addresses = asked.usable[:MAX_ADDRESSES]
    way.doh_addresses = asked.usable_of(asked.doh)[:MAX_ADDRESSES]
    finding = judged(asked)
    if finding.status == "failed" and way.proxy is not None and way.proxy.resolves_names:
        return warning(
            finding.found,
            f"{finding.means} The proxy resolves the name, so that does no harm.",
            **finding.facts,
        )
    return finding


def judged(asked: Asked) -> Finding:
    """What the answers mean."""
    facts = _facts(asked)
    if not asked.used.addresses:
        return _nothing(asked, facts)
    if not asked.usable:
        return _poisoned(asked, facts)
    if not asked.has_ipv6_route and all(":" in each for each in asked.used.addresses):
        return failed(
            f"{asked.host} has IPv6 addresses only: {asked.used}",
            "This machine has no route to the IPv6 internet.",
            "Give the machine IPv6, set UPSTREAM_PROXY, or write an IPv4 address into UPSTREAM_HOSTS.",
            **facts,
        )
    return _good(asked, facts)


def _nothing(asked: Asked, facts: dict[str, Any]) -> Finding:
    who = "DNS over HTTPS" if asked.doh_decides else "The system's resolver"
    found = f"{who} has no address for {asked.host}: {asked.used}"
    other = asked.system if asked.doh_decides else asked.doh
    if other is not None and other.addresses:
        found += f"; another resolver says {other}"
        means = "The resolver that the broker asks is wrong or kept off."
        do = "Take another UPSTREAM_DOH_URL, or none." if asked.doh_decides else USE_DOH
        return failed(found, means, do, **facts)
    if asked.used.trouble in ("nxdomain", "empty"):
        means = "COZE_API_BASE is misspelt, or a resolver on the way hides the name."
        return failed(
            found, means, f"Check COZE_API_BASE. Ask another resolver: --doh URL. {USE_DOH}", **facts
        )
    return failed(found, "Names can't be resolved from this machine.", USE_DOH, **facts)


def _poisoned(asked: Asked, facts: dict[str, Any]) -> Finding:
    kinds = {address: kind_of(address) for address in asked.used.addresses}
    said = _listed(f"{address} ({kind})" for address, kind in kinds.items())
    found = f"{asked.host} is said to be {said}, which is no public address"
    if asked.doh is not None and not asked.doh_decides:
        found += f"; DNS over HTTPS says {asked.doh}"
    if "benchmarking" in kinds.values():
        return failed(
            found,
            "A local proxy program (Clash, sing-box …) answers in place of DNS with made-up addresses, and "
            "takes connections to them; the broker goes to no such address.",
            "Set UPSTREAM_PROXY to that program's port, or UPSTREAM_DOH_URL; or name the host in "
            "UPSTREAM_PRIVATE_HOSTS if it is meant to be so.",
            **facts,
        )
    return failed(
        found,
        "The answer is poisoned, or the name is one of your own network. The broker goes to private "
        "addresses only if it is told to.",
        f"{USE_DOH} If the host is your own, name it in UPSTREAM_PRIVATE_HOSTS.",
        **facts,
    )


def _good(asked: Asked, facts: dict[str, Any]) -> Finding:
    found = f"{asked.host} is {asked.used}"
    if asked.doh is not None and not asked.doh.addresses:
        means = f"DNS over HTTPS did not help: {asked.doh}. The broker does not ask it."
        return warning(found, means, "Try another --doh URL.", **facts)
    if not asked.system.addresses or (
        asked.doh and not set(asked.doh.addresses) & set(asked.system.addresses)
    ):
        return warning(
            f"The resolvers disagree: the system says {asked.system}, DNS over HTTPS says {asked.doh}",
            "The system's answer is poisoned, or they were given different servers of Coze's. A server that "
            "is not Coze's can't pass the step tls.",
            "" if asked.doh_decides else "If a later step fails, go by DNS over HTTPS: set UPSTREAM_DOH_URL.",
            **facts,
        )
    if odd := sorted(set(asked.used.addresses) - set(asked.usable)):
        return warning(found, f"{_listed(odd)} is no public address; the broker leaves it out.", **facts)
    if all(":" in each for each in asked.used.addresses):
        return warning(found, "It has IPv6 addresses only.", "", **facts)
    return ok(found, **facts)


def _facts(asked: Asked) -> dict[str, Any]:
    return {
        "system": list(asked.system.addresses),
        "system_trouble": asked.system.trouble or None,
        "doh": None if asked.doh is None else list(asked.doh.addresses),
        "doh_trouble": None if asked.doh is None else asked.doh.trouble or None,
        "used": "doh" if asked.doh_decides else "system",
    }


def _listed(addresses: Iterable[str]) -> str:
    every = list(addresses)
    more = f" and {len(every) - MAX_SHOWN} more" if len(every) > MAX_SHOWN else ""
    return ", ".join(every[:MAX_SHOWN]) + more


# --- asking ---------------------------------------------------------------------------------------------


def _fixed(way: Way) -> tuple[tuple[str, ...], str] | None:
    """Addresses that nobody has to be asked for, and where they come from."""
    host = way.target.host
    if way.target.address is not None:
        return (host,), f"{host} is an address, and needs no DNS"
    by_hand = way.settings.upstream_hosts.get(canonical(host))
    if by_hand:
        return by_hand, f"UPSTREAM_HOSTS says that {host} is {_listed(by_hand)}"
    return (LOOPBACK, f"{host} is this machine, and needs no DNS") if is_localhost(host) else None


async def _ask(way: Way) -> Asked:
    host = way.target.host
    own = way.settings.upstream_doh_url
    url = way.doh_url or own
    system, doh = await asyncio.gather(
        system_answers(host, way.wait_seconds), _doh(way, url, host) if url else _nobody()
    )
    return Asked(
        host=host,
        system=system,
        doh=doh,
        doh_decides=bool(own) and url == own,
        may_be_private=canonical(host) in way.settings.upstream_private_hosts,
        has_ipv6_route=has_ipv6_route(),
    )


async def _nobody() -> None:
    return None


async def system_answers(host: str, wait_seconds: float) -> Answers:
    """What programs on this machine are told. In a thread that nobody waits for: it can't be stopped."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[Answers] = loop.create_future()

    def tell(answers: Answers) -> None:
        if not told.done():
            told.set_result(answers)

    def ask() -> None:
        answers = _resolved(host)
        try:
            loop.call_soon_threadsafe(tell, answers)
        except RuntimeError:
            return  # the loop is gone: nobody waits any more

    threading.Thread(target=ask, daemon=True, name="resolver").start()
    try:
        async with asyncio.timeout(wait_seconds):
            return await told
    except TimeoutError:
        return Answers(trouble="silent")


def _resolved(host: str) -> Answers:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        trouble = {socket.EAI_NONAME: "nxdomain", socket.EAI_NODATA: "empty"}.get(error.errno or 0, "failed")
        return Answers(trouble=trouble)
    except (OSError, UnicodeError):
        return Answers(trouble="failed")
    return Answers(tuple(dict.fromkeys(str(each[4][0]) for each in found)))


async def _doh(way: Way, url: str, host: str) -> Answers:
    """By the broker's own kind of client: its fixed addresses, its authorities."""
    server = canonical(urlsplit(url).hostname or "")
    settings = way.settings
    line = UpstreamWay(settings.upstream_hosts, private_hosts=(server,), ca_file=settings.upstream_ca_file)
    client = line.client(
        url,
        connect_timeout_seconds=way.wait_seconds,
        read_timeout_seconds=way.wait_seconds,
        counted_as="doctor_dns",
    )
    async with client:
        asked = (_doh_answers(client, url, host, kind, way.wait_seconds) for kind in ("A", "AAAA"))
        both = await asyncio.gather(*asked)
    addresses = tuple(address for each in both for address in each.addresses)
    return Answers(addresses, "" if addresses else both[0].trouble)


async def _doh_answers(
    client: httpx.AsyncClient, url: str, host: str, kind: str, wait_seconds: float
) -> Answers:
    """Of one family; the broker, too, goes by the one when there is no answer for the other."""
    try:
        async with asyncio.timeout(wait_seconds):
            return await _doh_query(client, url, host, kind)
    except TimeoutError:
        return Answers(trouble="silent")
    except CLIENT_ERRORS as error:
        return Answers(trouble=f"{urlsplit(url).hostname} can't be asked ({trouble_of(error)})")
    except (Refusal, ValueError):
        return Answers(trouble=f"what {urlsplit(url).hostname} answers is not DNS")


async def _doh_query(client: httpx.AsyncClient, url: str, host: str, kind: str) -> Answers:
    """One question (RFC 8484 §4.1). Raises ``ValueError`` for what is no answer to it."""
    import dns.exception
    import dns.message
    import dns.rcode

    try:
        query = dns.message.make_query(host, kind, id=0).to_wire()
        asked = {"dns": base64.urlsafe_b64encode(query).rstrip(b"=").decode()}  # by GET, as the broker does
        answered = await call(client, "GET", url, params=asked, headers={"Accept": DOH_TYPE})
        message = dns.message.from_wire(answered.content)
        if answered.status != httpx.codes.OK or not isinstance(message, dns.message.QueryMessage):
            raise ValueError(f"status {answered.status}")
        if message.rcode() != dns.rcode.NOERROR:
            return Answers(trouble="nxdomain" if message.rcode() == dns.rcode.NXDOMAIN else "failed")
        rows = message.resolve_chaining().answer
    except dns.exception.DNSException as error:
        raise ValueError("no DNS message") from error
    found = () if rows is None else tuple(row.to_text() for row in rows)
    return Answers(found, "" if found else "empty")


def has_ipv6_route() -> bool:
    """Whether the system knows a way to the IPv6 internet; nothing is sent to find out."""
    try:  # a kernel without IPv6 gives no such socket
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:4860:4860::8888", 53))
    except OSError:
        return False
    return True
