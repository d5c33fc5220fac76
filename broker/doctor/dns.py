"""Step ``dns``: what is Coze's address, by the system's resolver and by DNS over HTTPS (RFC 8484)?"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from broker.doctor.connecting import SILENT, trouble_of
from broker.doctor.finding import Finding, failed, ok, warning
from broker.doctor.way import Way
from broker.settings.hosts import LOOPBACK, canonical, is_address, is_localhost
from broker.upstream.address_ranges import kind_of
from broker.upstream.client import CLIENT_ERRORS
from broker.upstream.resolver import with_scope
from broker.upstream.way import Way as UpstreamWay

if TYPE_CHECKING:
    from broker.upstream.doh import DnsError

MAX_SHOWN = 6
MAX_ADDRESSES = 16
USE_DOH = (
    "Set UPSTREAM_DOH_URL to a DNS-over-HTTPS resolver that you trust, or write Coze's address into "
    "UPSTREAM_HOSTS, or mend the resolver of this machine."
)
USE_DOH_BY_ADDRESS = (
    "Set UPSTREAM_DOH_URL to a DNS-over-HTTPS resolver that you trust, by its IP address (its name would be "
    "looked up in the same way, unless UPSTREAM_HOSTS has it), or write Coze's address into UPSTREAM_HOSTS, "
    "or mend the resolver of this machine."
)
OTHER_DOH = (
    "Take another UPSTREAM_DOH_URL, by its IP address, or none; or write Coze's address into UPSTREAM_HOSTS."
)
USE_PROXY = "If browsers here go through a proxy, set UPSTREAM_PROXY."
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
    """Of the broker's own DNS over HTTPS, by which it goes; None where it has none."""
    compared: Answers | None
    """Of another one, which the broker does not ask; None where none was named."""
    may_be_private: bool

    @property
    def used(self) -> Answers:
        """What the broker would go by."""
        return self.system if self.doh is None else self.doh

    @property
    def others(self) -> dict[str, Answers]:
        """What else was said, by who said it."""
        said = {"the system": None if self.doh is None else self.system, self.name_of_compared: self.compared}
        return {name: answers for name, answers in said.items() if answers is not None}

    @property
    def name_of_used(self) -> str:
        return "the system" if self.doh is None else "DNS over HTTPS"

    @property
    def name_of_compared(self) -> str:
        return "DNS over HTTPS" if self.doh is None else "--doh"

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
    way.compared_addresses = asked.usable_of(asked.compared)[:MAX_ADDRESSES]
    way.may_be_lied_to = asked.doh is None and asked.compared is None
    # A proxy goes to the addresses, or finds others: this machine need not get there.
    finding = judged(asked, has_route=way.proxy is not None or has_route(asked.usable))
    if way.proxy is None or not way.proxy.resolves_names or finding.status == "ok":
        return finding
    means = f"{finding.means} The proxy resolves the name, so that does no harm."
    return warning(finding.found, means.strip(), **finding.facts)


def judged(asked: Asked, *, has_route: bool = True) -> Finding:
    """What the answers mean. ``has_route``: whether the system knows a way to any of the addresses."""
    facts = _facts(asked)
    if not asked.used.addresses:
        return _nothing(asked, facts)
    if not asked.usable:
        return _poisoned(asked, facts)
    if not has_route and _is_ipv6_alone(asked):
        return failed(
            f"{asked.host} has IPv6 addresses only: {asked.used}",
            "This machine has no route to them.",
            "Give the machine IPv6, set UPSTREAM_PROXY, or write an IPv4 address into UPSTREAM_HOSTS.",
            **facts,
        )
    return _good(asked, facts)


def _is_ipv6_alone(asked: Asked) -> bool:
    return all(":" in each for each in asked.used.addresses)


def _nothing(asked: Asked, facts: dict[str, Any]) -> Finding:
    who = "The system's resolver" if asked.doh is None else "DNS over HTTPS"
    found = f"{who} has no address for {asked.host}: {asked.used}"
    cure = OTHER_DOH if asked.doh is not None else USE_DOH
    other = next((each for each in asked.others.values() if each.addresses), None)
    if other is not None:
        found += f"; another resolver says {other}"
        return failed(found, "The resolver that the broker asks is wrong or kept off.", cure, **facts)
    if asked.used.trouble in ("nxdomain", "empty"):
        means = "COZE_API_BASE is misspelt, or a resolver on the way hides the name."
        do = f"Check COZE_API_BASE. Ask another resolver: --doh URL. {cure} {USE_PROXY}"
        return failed(found, means, do, **facts)
    do = OTHER_DOH if asked.doh is not None else USE_DOH_BY_ADDRESS
    return failed(found, "Names can't be resolved from this machine.", f"{do} {USE_PROXY}", **facts)


def _poisoned(asked: Asked, facts: dict[str, Any]) -> Finding:
    kinds = {address: kind_of(address) for address in asked.used.addresses}
    said = _listed(f"{address} ({kind})" for address, kind in kinds.items())
    found = f"{asked.host} is said to be {said}, which is no public address"
    if asked.compared is not None:
        found += f"; {asked.name_of_compared} says {asked.compared}"
    if "benchmarking" in kinds.values():
        return failed(found, *_made_up(asked), **facts)
    return failed(
        found,
        "The answer is poisoned, or the name is one of your own network. The broker goes to private "
        "addresses only if it is told to.",
        f"{USE_DOH if asked.doh is None else OTHER_DOH} If the host is your own, name it in "
        "UPSTREAM_PRIVATE_HOSTS.",
        **facts,
    )


def _made_up(asked: Asked) -> tuple[str, str]:
    means = (
        "A local proxy program (Clash, sing-box …) answers in place of DNS with made-up addresses, and takes "
        "connections to them; the broker goes to no such address."
    )
    doh = "UPSTREAM_DOH_URL" if asked.doh is None else "another UPSTREAM_DOH_URL"
    return means, (
        f"Set UPSTREAM_PROXY to that program's port, or {doh}; or name the host in UPSTREAM_PRIVATE_HOSTS if "
        "it is meant to be so."
    )


def _good(asked: Asked, facts: dict[str, Any]) -> Finding:
    found = f"{asked.host} is {asked.used}"
    if asked.compared is not None and not asked.compared.addresses:
        means = f"{asked.name_of_compared} did not help: {asked.compared}. The broker does not ask it."
        return warning(found, means, "Try another --doh URL.", **facts)
    if disagreeing := _disagreeing(asked):
        return _disagreement(asked, disagreeing, facts)
    if odd := sorted(set(asked.used.addresses) - set(asked.usable)):
        return warning(found, f"{_listed(odd)} is no public address; the broker leaves it out.", **facts)
    if _is_ipv6_alone(asked):
        return warning(found, "It has IPv6 addresses only.", "", **facts)
    return ok(found, **facts)


def _disagreeing(asked: Asked) -> list[str]:
    used = set(asked.used.addresses)
    return [name for name, answers in asked.others.items() if not used & set(answers.addresses)]


def _disagreement(asked: Asked, names: list[str], facts: dict[str, Any]) -> Finding:
    said = {asked.name_of_used: asked.used} | {name: asked.others[name] for name in names}
    doubted = "The system's answer" if "the system" in said else "An answer"
    by_other = asked.name_of_compared in names
    do = "If a later step fails, go by the other: set UPSTREAM_DOH_URL to it." if by_other else ""
    return warning(
        f"The resolvers disagree: {', '.join(f'{name} says {answers}' for name, answers in said.items())}",
        f"{doubted} is poisoned, or they were given different servers of Coze's. A server that is not Coze's "
        "can't pass the step tls.",
        do,
        **facts,
    )


def _facts(asked: Asked) -> dict[str, Any]:
    said = {"system": asked.system, "doh": asked.doh, "compared": asked.compared}
    addresses = {name: None if each is None else list(each.addresses) for name, each in said.items()}
    troubles = {
        f"{name}_trouble": None if each is None else each.trouble or None for name, each in said.items()
    }
    return {**addresses, **troubles, "used": "system" if asked.doh is None else "doh"}


def _listed(addresses: Iterable[str]) -> str:
    every = list(addresses)
    more = f" and {len(every) - MAX_SHOWN} more" if len(every) > MAX_SHOWN else ""
    return ", ".join(every[:MAX_SHOWN]) + more


# --- asking ---------------------------------------------------------------------------------------------


def _fixed(way: Way) -> tuple[tuple[str, ...], str] | None:
    """Addresses that nobody has to be asked for, and where they come from."""
    host = way.target.host
    if is_address(host):
        return (host,), f"{host} is an address, and needs no DNS"
    by_hand = way.settings.upstream_hosts.get(canonical(host))
    if by_hand:
        return by_hand, f"UPSTREAM_HOSTS says that {host} is {_listed(by_hand)}"
    return (LOOPBACK, f"{host} is this machine, and needs no DNS") if is_localhost(host) else None


async def _ask(way: Way) -> Asked:
    host = way.target.host
    own = way.settings.upstream_doh_url
    system, doh, compared = await asyncio.gather(
        system_answers(host, way.wait_seconds),
        _doh(way, own, host) if own else _nobody(),
        _doh(way, way.doh_url, host) if way.doh_url not in ("", own) else _nobody(),
    )
    may_be_private = canonical(host) in way.settings.upstream_private_hosts
    return Asked(host, system, doh, compared, may_be_private)


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
    """Of both families, even where this machine has no address of one (the broker's own ``AI_ADDRCONFIG``):
    else a name with IPv6 addresses alone would be told as one that has none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        trouble = {socket.EAI_NONAME: "nxdomain", socket.EAI_NODATA: "empty"}.get(error.errno or 0, "failed")
        return Answers(trouble=trouble)
    except (OSError, UnicodeError):
        return Answers(trouble="failed")
    return Answers(tuple(dict.fromkeys(with_scope(address) for *_, address in found)))


async def _doh(way: Way, url: str, host: str) -> Answers:
    """As the broker asks: by its fixed addresses, its authorities, and what it takes for an answer."""
    from broker.upstream.doh import DnsError

    settings = way.settings
    line = UpstreamWay(hosts=settings.upstream_hosts, doh_url=url, ca_file=settings.upstream_ca_file)
    lookup = line.lookup(way.wait_seconds, "doctor_dns")
    try:
        async with asyncio.timeout(way.wait_seconds):
            return Answers(tuple(await lookup(host)))
    except TimeoutError:
        return Answers(trouble="silent")
    except DnsError as error:
        return Answers(trouble=_trouble_of(error, urlsplit(url).hostname or ""))
    finally:
        await lookup.aclose()


def _trouble_of(error: DnsError, server: str) -> str:
    if error.trouble == "not DNS":
        return f"what {server} answers is not DNS"
    if error.trouble != "failed" or not isinstance(error.__cause__, CLIENT_ERRORS):
        return error.trouble
    word = trouble_of(error.__cause__)
    return "silent" if word == SILENT else f"{server} can't be asked ({word})"


def has_route(addresses: Iterable[str]) -> bool:
    """Whether the system knows a way to any of these addresses; nothing is sent to find out."""
    return any(_is_routed(each) for each in addresses)


def _is_routed(address: str) -> bool:
    try:  # a kernel without IPv6 gives no such socket
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 443))
    except OSError:
        return False
    return True
