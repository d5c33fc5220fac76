"""The way to Coze: names, addresses that may be connected to, and who is believed to be Coze."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.message
import httpx
import pytest

from broker.errors import Refusal, UpstreamTimeout, UpstreamUnreachable
from broker.settings import Settings
from broker.upstream import tls
from broker.upstream.address_ranges import kind_of
from broker.upstream.client import CLIENT_ERRORS, Answered, call, refusal_for
from broker.upstream.doh import DnsError, Trouble
from broker.upstream.resolver import Lookup, Resolver, SystemLookup
from broker.upstream.way import Way
from tests.support.authority import DAY, Authority
from tests.support.broker_process import running_broker
from tests.support.network import Coze, DohServer, Network, answer, black_hole, doh_answer
from tests.support.waiting import until

NAME = "coze.test"


@asynccontextmanager
async def client_of(way: Way, base_url: str, seconds: float = 5.0) -> AsyncIterator[httpx.AsyncClient]:
    client = way.client(base_url, connect_timeout_seconds=seconds, read_timeout_seconds=seconds)
    try:
        yield client
    finally:
        await client.aclose()


async def ask(way: Way, base_url: str, seconds: float = 5.0) -> Answered:
    async with client_of(way, base_url, seconds) as client:
        return await call(client, "GET", "/")


async def refused(way: Way, base_url: str, seconds: float = 5.0) -> Refusal:
    """What a caller is told, and in ``log`` the operator."""
    with pytest.raises(CLIENT_ERRORS) as raised:
        await ask(way, base_url, seconds)
    return refusal_for(raised.value)


# --- fixed addresses ------------------------------------------------------------------------------------


async def test_a_host_with_fixed_addresses_needs_no_dns(network: Network, authority: Authority) -> None:
    """It is asked for by its name, in TLS as in HTTP, and its certificate must be the name's."""
    coze = Coze()
    port = network.serve(coze, authority.context(NAME))
    way = Way(hosts={NAME: ("127.0.0.1",)}, ca_file=authority.file)
    assert (await ask(way, f"https://{NAME}:{port}")).status == 200
    assert coze.requests[0]["host"] == f"{NAME}:{port}"


async def test_the_next_fixed_address_is_taken_when_one_is_dead(network: Network) -> None:
    port = network.serve(Coze(), host="127.0.0.2")
    way = Way(hosts={NAME: ("127.0.0.1", "127.0.0.2")})
    assert (await ask(way, f"http://{NAME}:{port}")).status == 200


@pytest.mark.parametrize("dead", ["::1", "127.0.0.3"])
async def test_an_address_that_swallows_everything_does_not_hold_up_the_next(
    network: Network, dead: str
) -> None:
    """RFC 8305: the other family, or the next address, is tried beside it."""
    port = network.serve(Coze())
    with black_hole(dead, port):
        began = time.monotonic()
        way = Way(hosts={NAME: (dead, "127.0.0.1")})
        assert (await ask(way, f"http://{NAME}:{port}", seconds=10.0)).status == 200
        assert time.monotonic() - began < 5.0


async def test_dead_addresses_have_one_time_out_together() -> None:
    """And not one after another."""
    with black_hole() as port, black_hole("127.0.0.2", port), black_hole("127.0.0.3", port):
        began = time.monotonic()
        way = Way(hosts={NAME: ("127.0.0.1", "127.0.0.2", "127.0.0.3")})
        assert isinstance(await refused(way, f"http://{NAME}:{port}", seconds=1.0), UpstreamTimeout)
        assert time.monotonic() - began < 2.5


# --- what the operator reads ----------------------------------------------------------------------------


async def test_no_connection_is_called_what_it_is(network: Network, authority: Authority) -> None:
    """By the names in the table of the weather; and only one that took too long is called a time-out."""
    with black_hole() as full:
        slow = await refused(Way(), f"http://127.0.0.1:{full}", seconds=0.5)
    gone = await refused(Way(), f"http://127.0.0.1:{full}")
    unknown = await refused(doh(network, authority, DohServer()), f"http://{NAME}")
    port = network.serve(Coze(), authority.context("127.0.0.1"))
    untrusted = await refused(Way(), f"https://127.0.0.1:{port}")
    said = [(refusal.log or "").partition(":")[0] for refusal in (slow, gone, unknown, untrusted)]
    assert said == [
        "ConnectTimeout",
        "ClientConnectorError",
        "ClientConnectorDNSError",
        "ClientConnectorCertificateError",
    ]


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """In the middle of the handshake, without a word."""
    await reader.read(1)
    writer.transport.abort()


async def test_a_connection_that_fails_without_words_has_some_in_the_log(
    network: Network, authority: Authority
) -> None:
    """Of a socket that was only closed the system has nothing to say."""
    port = network.serve(hangs_up)
    refusal = await refused(Way(), f"https://127.0.0.1:{port}")
    assert "None" not in (refusal.log or "")
    assert "ConnectionResetError" in (refusal.log or "")
    assert refusal_for(TimeoutError()).log == "TimeoutError: no answer in time"


# --- which addresses a name may lead to -----------------------------------------------------------------

SPECIAL = {
    "unspecified": ("0.0.0.0", "::", "0.1.2.3", "::ffff:0.0.0.0"),
    "loopback": ("127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"),
    "metadata": ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "::ffff:a9fe:a9fe"),
    "link-local": ("169.254.1.1", "fe80::1", "fe80::1%3", "64:ff9b::169.254.1.1"),
    "private": (
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd12::1", "fec0::1"),
        *("::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:c0a8:101::1"),
    ),
    "multicast": ("224.0.0.1", "239.255.255.255", "ff02::1", "::ffff:224.0.0.1"),
    "benchmarking": ("198.18.0.1", "198.19.255.255", "2001:2::1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "reserved": (
        *("240.0.0.1", "255.255.255.255", "192.0.0.192", "192.88.99.1", "2001::1", "::7f00:1", "100::1"),
        *("64:ff9b:1::7f00:1", "4000::1"),
    ),
}


@pytest.mark.parametrize(
    ("kind", "address"), [(kind, address) for kind, some in SPECIAL.items() for address in some]
)
def test_an_address_that_no_public_server_has_is_known(kind: str, address: str) -> None:
    assert kind_of(address) == kind


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.0.1", "172.32.0.1", "192.167.0.1", "100.63.0.1"),
        *("100.128.0.1", "223.255.255.255", "2606:4700::1111", "2400::1", "::ffff:1.1.1.1"),
        *("64:ff9b::1.1.1.1", "2002:101:101::1"),
    ],
)
def test_an_address_of_the_public_network_is_known(address: str) -> None:
    assert kind_of(address) is None


def doh(network: Network, authority: Authority, server: DohServer, **way: Any) -> Way:
    port = network.serve(server, authority.context("dns.test"))
    hosts = {"dns.test": ("127.0.0.1",), **way.pop("hosts", {})}
    return Way(doh_url=f"https://dns.test:{port}/dns-query", hosts=hosts, ca_file=authority.file, **way)


@pytest.mark.parametrize("address", [some[0] for some in SPECIAL.values()])
async def test_a_name_that_leads_to_such_an_address_is_not_connected_to(
    network: Network, authority: Authority, address: str
) -> None:
    """DNS rebinding gets nowhere; the operator reads where the name leads and what to do if that is right."""
    coze = Coze()
    port = network.serve(coze)
    way = doh(network, authority, DohServer({NAME: [address]}))
    refusal = await refused(way, f"http://{NAME}:{port}")
    assert isinstance(refusal, UpstreamUnreachable)
    assert f"DNS says that {NAME} is at {address}" in (refusal.log or "")
    assert "UPSTREAM_PRIVATE_HOSTS" in (refusal.log or "")
    assert coze.connections == 0


async def test_a_name_may_lead_there_when_the_operator_says_so(
    network: Network, authority: Authority
) -> None:
    port = network.serve(Coze())
    way = doh(network, authority, DohServer({NAME: ["127.0.0.1"]}), private_hosts=(NAME,))
    assert (await ask(way, f"http://{NAME}:{port}")).status == 200


async def test_a_name_that_leads_elsewhere_the_second_time_is_checked_again(
    network: Network, authority: Authority
) -> None:
    """The check is on what is connected to, not on what was once looked up."""
    server = DohServer({NAME: ["1.1.1.1"]})
    way = doh(network, authority, server)
    async with client_of(way, f"http://{NAME}") as client:
        resolver = client._transport.client.connector.resolver  # type: ignore[attr-defined]
        assert [each["host"] for each in await resolver.resolve(NAME, 80)] == ["1.1.1.1"]
        server.records[NAME] = ["10.0.0.1"]
        with pytest.raises(OSError, match=r"10\.0\.0\.1 \(private\)"):
            await resolver.resolve(NAME, 80)
        server.records[NAME] = ["10.0.0.1", "1.0.0.1", "::1"]
        assert [each["host"] for each in await resolver.resolve(NAME, 80)] == ["1.0.0.1"]


def resolver(*private_hosts: str, lookup: Lookup | None = None) -> Resolver:
    options: dict[str, Any] = {"hosts": {}, "own_hosts": (), "timeout_seconds": 5.0}
    return Resolver(lookup or SystemLookup(), private_hosts=private_hosts, **options)


class ToThisMachine(SystemLookup):
    """The system's resolver, asked for the one name that every machine has in whatever name's stead."""

    async def __call__(self, host: str) -> list[str]:
        assert host == NAME
        return await super().__call__("localhost")


async def test_what_the_system_says_of_a_name_is_checked_too() -> None:
    assert await resolver().resolve("localhost", 80)  # means this machine and nothing else
    with pytest.raises(OSError, match=rf"DNS says that {NAME} is at .*\(loopback\)"):
        await resolver(lookup=ToThisMachine()).resolve(NAME, 80)
    found = await resolver(NAME, lookup=ToThisMachine()).resolve(NAME, 80)
    assert {each["host"] for each in found} <= {"127.0.0.1", "::1"}


async def test_a_name_that_dns_can_not_have_is_an_error_like_others() -> None:
    with pytest.raises(OSError, match="is no name"):
        await resolver().resolve("a" * 64 + ".example", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_address_and_localhost_are_the_operator_s_own_word(network: Network, host: str) -> None:
    port = network.serve(Coze())
    assert (await ask(Way(), f"http://{host}:{port}")).status == 200


@pytest.mark.parametrize("named", ["", NAME])
def test_a_broker_believes_dns_as_far_as_its_operator_says(
    network: Network, authority: Authority, tmp_path: Path, named: str
) -> None:
    """Its caller hears nothing of addresses."""
    stored = {"code": 0, "data": {"id": "7", "bytes": 3, "file_name": "a.csv", "created_at": 1}}
    coze = Coze(answer(stored))
    port = network.serve(coze, authority.context(NAME))
    dns_port = network.serve(DohServer({NAME: ["127.0.0.1"]}), authority.context("127.0.0.1"))
    given = {
        "COZE_API_BASE": f"https://{NAME}:{port}",
        "COZE_API_TOKEN": "sat_1",
        "UPSTREAM_CA_FILE": str(authority.file),
        "UPSTREAM_DOH_URL": f"https://127.0.0.1:{dns_port}/dns-query",
        "UPSTREAM_PRIVATE_HOSTS": named,
    }
    with running_broker(tmp_path, given) as broker:
        files = {"file": ("a.csv", b"a,b")}
        response = httpx.post(f"{broker.url}/proxy/upload", files=files, headers=broker.auth())
        if named:
            assert response.status_code == 200, response.text
            return
        assert (response.status_code, response.json()["code"]) == (502, "upstream_unreachable")
        assert "127.0.0.1" not in response.text
        assert "127.0.0.1 (loopback)" in broker.record(response.headers["x-request-id"])["log"]
    assert coze.connections == 0


# --- DNS over HTTPS -------------------------------------------------------------------------------------


async def test_the_doh_server_is_asked_for_both_families(network: Network, authority: Authority) -> None:
    """By way of another name, too; and once for those who come at once."""
    server = DohServer({"cdn.test": ["::1", "127.0.0.1"]}, aliases={NAME: "cdn.test"})
    port = network.serve(Coze())
    way = doh(network, authority, server, private_hosts=(NAME,))
    async with client_of(way, f"http://{NAME}:{port}") as client:
        answers = await asyncio.gather(*(call(client, "GET", "/") for _ in range(5)))
    assert [each.status for each in answers] == [200] * 5
    assert sorted(server.asked) == [(NAME, "A"), (NAME, "AAAA")]


async def test_a_family_that_never_answers_does_not_hold_up_the_other(
    network: Network, authority: Authority
) -> None:
    server = DohServer({NAME: ["127.0.0.1"]}, hold={"AAAA": threading.Event()})
    port = network.serve(Coze())
    way = doh(network, authority, server, private_hosts=(NAME,))
    began = time.monotonic()
    assert (await ask(way, f"http://{NAME}:{port}", seconds=10.0)).status == 200
    assert time.monotonic() - began < 5.0


def to_another_question(_: dns.message.Message) -> bytes:
    other = dns.message.make_response(dns.message.make_query("other.test", "A", id=0))
    return doh_answer(other.to_wire())


BAD_ANSWERS: dict[str, tuple[Any, str]] = {
    "no such name": (None, "NXDOMAIN"),
    "to another question": (to_another_question, "another question"),
    "an error": (lambda _: answer(b"", status="500 Oops"), "status 500"),
    "a redirect": (lambda _: answer(b"", "Location: https://1.1.1.1/", status="302 Found"), "status 302"),
    "HTML": (lambda _: doh_answer(b"<html>", "text/html"), "text/html"),
    "no DNS": (lambda _: doh_answer(b"\0" * 5), "ShortHeader"),
    "cut short": (lambda question: doh_answer(question.to_wire()[:-3]), "DNS over HTTPS"),
    "the question itself": (lambda question: doh_answer(question.to_wire()), "another question"),
    "far too much": (lambda _: doh_answer(b"\0" * 100_000), "more than 65536 bytes"),
    "no HTTP": (lambda _: b"SSH-2.0-OpenSSH\r\n\r\n", "DNS over HTTPS"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
async def test_a_bad_answer_is_no_address(network: Network, authority: Authority, case: str) -> None:
    """And the system is not asked instead: it is because of it that there is another."""
    reply, said = BAD_ANSWERS[case]
    way = doh(network, authority, DohServer(reply=reply), private_hosts=("localhost.test",))
    refusal = await refused(way, "http://coze.test")
    assert isinstance(refusal, UpstreamUnreachable)
    assert said in (refusal.log or "")


TROUBLES: dict[str, tuple[list[str] | str, Any, Trouble]] = {
    "no such name": ("NXDOMAIN", None, "nxdomain"),
    "no address": ([], None, "empty"),
    "the server failed": ("SERVFAIL", None, "failed"),
    "to another question": ([], to_another_question, "not DNS"),
    "an error": ([], lambda _: answer(b"", status="500 Oops"), "not DNS"),
    "no HTTP": ([], lambda _: b"SSH-2.0-OpenSSH\r\n\r\n", "failed"),
}


@pytest.mark.parametrize("case", TROUBLES)
async def test_a_name_that_is_not_found_is_told_why(
    network: Network, authority: Authority, case: str
) -> None:
    """An error of the connection is the cause."""
    records, reply, trouble = TROUBLES[case]
    lookup = doh(network, authority, DohServer({NAME: records}, reply=reply)).lookup(5.0)
    with pytest.raises(DnsError) as raised:
        await lookup(NAME)
    await lookup.aclose()
    assert raised.value.trouble == trouble
    assert isinstance(raised.value.__cause__, CLIENT_ERRORS) == (case == "no HTTP")


async def test_a_name_without_addresses_is_an_error(network: Network, authority: Authority) -> None:
    refusal = await refused(doh(network, authority, DohServer({NAME: []})), f"http://{NAME}")
    assert isinstance(refusal, UpstreamUnreachable)
    assert "has no address" in (refusal.log or "")


async def test_a_doh_server_that_never_answers_is_given_up(network: Network, authority: Authority) -> None:
    never = threading.Event()
    way = doh(network, authority, DohServer(hold={"A": never, "AAAA": never}))
    began = time.monotonic()
    assert isinstance(await refused(way, f"http://{NAME}", seconds=1.0), UpstreamTimeout)
    assert time.monotonic() - began < 2.5


async def test_who_leaves_takes_no_lookup_from_others(network: Network, authority: Authority) -> None:
    """One is cancelled while it waits for the name that another waits for, too."""
    go = threading.Event()
    server = DohServer({NAME: ["127.0.0.1"]}, hold={"A": go, "AAAA": go})
    port = network.serve(Coze())
    way = doh(network, authority, server, private_hosts=(NAME,))
    async with client_of(way, f"http://{NAME}:{port}") as client:
        leaving, staying = (asyncio.create_task(call(client, "GET", "/")) for _ in range(2))
        await until(lambda: len(server.asked) == 2)
        leaving.cancel()
        await asyncio.wait([leaving])
        go.set()
        assert (await staying).status == 200
    assert leaving.cancelled()
    assert len(server.asked) == 2


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost"])
async def test_no_dns_server_is_asked_for_localhost(
    network: Network, authority: Authority, host: str
) -> None:
    """It is this machine (RFC 6761 §6.3), whatever a server would say of it."""
    server = DohServer({"localhost": ["1.1.1.1"], "a.localhost": ["1.1.1.1"]})
    way = doh(network, authority, server)
    assert (await ask(way, f"http://{host}:{network.serve(Coze())}")).status == 200
    assert server.asked == []


async def test_a_name_that_only_looks_like_localhost_is_asked_for(
    network: Network, authority: Authority
) -> None:
    server = DohServer({"notlocalhost": ["10.0.0.1"]})
    refusal = await refused(doh(network, authority, server), "http://notlocalhost")
    assert "10.0.0.1 (private)" in (refusal.log or "")


class Nobody(SystemLookup):
    """Must not be asked."""

    async def __call__(self, host: str) -> list[str]:
        raise AssertionError(host)


async def test_the_system_is_not_asked_for_localhost_either() -> None:
    found = await resolver(lookup=Nobody()).resolve("localhost", 80)
    assert [each["host"] for each in found] == ["127.0.0.1", "::1"]


async def test_the_doh_server_must_prove_who_it_is(network: Network, authority: Authority) -> None:
    server = DohServer({NAME: ["127.0.0.1"]})
    way = doh(network, authority, server, private_hosts=(NAME,))
    refusal = await refused(replace(way, ca_file=None), f"http://{NAME}")
    assert isinstance(refusal, UpstreamUnreachable)
    assert "certificate" in (refusal.log or "").lower()
    assert server.asked == []


# --- who is Coze ----------------------------------------------------------------------------------------


async def test_an_own_authority_is_trusted_besides_the_built_in_ones(
    network: Network, authority: Authority
) -> None:
    port = network.serve(Coze(), authority.context("127.0.0.1"))
    url = f"https://127.0.0.1:{port}"
    assert (await ask(Way(ca_file=authority.file), url)).status == 200
    assert "certificate" in ((await refused(Way(), url)).log or "").lower()
    built_in = tls.make_context().cert_store_stats()["x509"]
    assert tls.make_context(authority.file).cert_store_stats()["x509"] == built_in + 1 > 50


@pytest.mark.parametrize(
    ("names", "days"),
    [pytest.param(["127.0.0.1"], -1, id="over"), pytest.param(["other.test"], 2, id="other")],
)
async def test_a_trusted_authority_is_not_believed_everything(
    network: Network, authority: Authority, names: list[str], days: int
) -> None:
    """A certificate that is over, or another host's, is none."""
    coze = Coze()
    port = network.serve(coze, authority.context(*names, until=days * DAY))
    refusal = await refused(Way(ca_file=authority.file), f"https://127.0.0.1:{port}")
    assert isinstance(refusal, UpstreamUnreachable)
    assert coze.requests == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_the_environment_vouches_for_nobody(
    network: Network, authority: Authority, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(authority.file))
    monkeypatch.setenv("SSL_CERT_DIR", str(authority.folder))
    port = network.serve(Coze(), authority.context("127.0.0.1"))
    assert isinstance(await refused(Way(), f"https://127.0.0.1:{port}"), UpstreamUnreachable)


async def test_the_environment_gets_no_keys(
    network: Network, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    port = network.serve(Coze(), authority.context("127.0.0.1"))
    assert (await ask(Way(ca_file=authority.file), f"https://127.0.0.1:{port}")).status == 200
    assert not (tmp_path / "keys").exists()


def test_nothing_turns_verification_off() -> None:
    """Neither a setting, nor what the context is made from."""
    context = tls.make_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    words = ("verify", "insecure", "skip", "unsafe")
    assert [name for name in Settings.model_fields if any(word in name for word in words)] == []


async def test_tls_counts_as_connecting(network: Network) -> None:
    """A server that takes the connection and says nothing has as long for TLS as the rest has left."""

    async def silent(reader: asyncio.StreamReader, _: Any) -> None:
        await reader.read()

    port = network.serve(silent)
    began = time.monotonic()
    refusal = await refused(Way(), f"https://127.0.0.1:{port}", seconds=1.0)
    assert isinstance(refusal, UpstreamTimeout)
    assert time.monotonic() - began < 2.5
