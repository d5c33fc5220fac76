"""Through a proxy: by the environment or a setting, and nothing of its password anywhere."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.errors import Refusal, UpstreamTimeout, UpstreamUnreachable
from broker.settings import Settings, proxy
from broker.upstream.client import CLIENT_ERRORS, USER_AGENT, call, refusal_for
from broker.upstream.way import Way
from tests.support.authority import Authority, make_authority
from tests.support.broker_process import clean_environment, running_broker
from tests.support.network import ConnectProxy, Coze, DohServer, Network, SocksProxy, answer, black_hole
from tests.support.waiting import until

NAME, OTHER = "coze.test", "127.0.0.9"
USER, PASSWORD = "proxy-user", "pr0xy:p@ss/word"
IN_URL = "proxy-user:pr0xy%3Ap%40ss%2Fword@"
KINDS = ("http", "https", "socks5h", "socks5")


@pytest.fixture
def coze(network: Network, authority: Authority) -> tuple[Coze, int]:
    """A Coze that has a certificate for its name, and its port."""
    coze = Coze()
    return coze, network.serve(coze, authority.context(NAME))


def proxy_of(network: Network, authority: Authority, kind: str, **options: Any) -> tuple[Any, str]:
    """A proxy, and its address behind ``scheme://``."""
    made: Any = SocksProxy(**options) if kind.startswith("socks") else ConnectProxy(**options)
    port = network.serve(made, authority.context("127.0.0.1") if kind == "https" else None)
    return made, f"127.0.0.1:{port}"


async def ask(way: Way, port: int, seconds: float = 5.0) -> int:
    url = f"https://{NAME}:{port}"
    client = way.client(url, connect_timeout_seconds=seconds, read_timeout_seconds=seconds)
    try:
        return (await call(client, "GET", "/")).status
    finally:
        await client.aclose()


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def refused(way: Way, port: int, seconds: float = 5.0) -> Refusal:
    with pytest.raises(CLIENT_ERRORS) as raised:
        await ask(way, port, seconds)
    everything = "".join(f"{error} {error!r} {vars(error)}" for error in chain_of(raised.value))
    refusal = refusal_for(raised.value)
    for secret in (PASSWORD, "cHJveHktdXNlc"):  # as it is, and as it goes into the header
        assert secret not in everything + str(refusal.log)
    return refusal


@pytest.mark.parametrize("kind", KINDS)
async def test_coze_is_reached_through_a_proxy(
    network: Network, authority: Authority, coze: tuple[Coze, int], kind: str
) -> None:
    """What goes through it is encrypted for Coze, and of several requests only the first connects."""
    server, port = coze
    target = f"127.0.0.1:{port}" if kind == "socks5" else f"{NAME}:{port}"
    made, address = proxy_of(network, authority, kind, names={target: port}, credential=(USER, PASSWORD))
    hosts = {NAME: ("127.0.0.1",)} if kind == "socks5" else {}
    way = Way(hosts=hosts, proxy=proxy.parse(f"{kind}://{IN_URL}{address}"), ca_file=authority.file)
    url = f"https://{NAME}:{port}"
    client = way.client(url, connect_timeout_seconds=5, read_timeout_seconds=5)
    async with client:
        assert [(await call(client, "GET", "/")).status for _ in range(3)] == [200] * 3
    assert made.asked == [target]
    assert (made.connections, server.connections) == (1, 1)
    assert {request["host"] for request in server.requests} == {f"{NAME}:{port}"}
    assert all(request["proxy-authorization"] is None for request in server.requests)


@pytest.mark.parametrize("kind", KINDS)
async def test_fixed_addresses_hold_behind_a_proxy(
    network: Network, authority: Authority, coze: tuple[Coze, int], kind: str
) -> None:
    """The proxy gets the address instead of the name, the next one when it can't reach the first."""
    server, port = coze
    target = f"127.0.0.1:{port}"
    made, address = proxy_of(network, authority, kind, names={target: port})
    way = Way(
        hosts={NAME: (OTHER, "127.0.0.1")}, proxy=proxy.parse(f"{kind}://{address}"), ca_file=authority.file
    )
    assert await ask(way, port) == 200
    assert made.asked in ([f"{OTHER}:{port}", target], [target])
    assert server.requests[0]["host"] == f"{NAME}:{port}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("silent", [1, 2])
async def test_an_address_that_a_proxy_is_silent_about_does_not_hold_up_the_next(
    network: Network, authority: Authority, coze: tuple[Coze, int], kind: str, silent: int
) -> None:
    """They have one time-out together, and each a share of it; what is left open ends."""
    server, port = coze
    hosts = (*(f"127.0.0.{9 - each}" for each in range(silent)), "127.0.0.1")
    targets = [f"{host}:{port}" for host in hosts]
    made, address = proxy_of(network, authority, kind, names={targets[-1]: port}, silent=targets[:-1])
    way = Way(hosts={NAME: hosts}, proxy=proxy.parse(f"{kind}://{address}"), ca_file=authority.file)
    began = time.monotonic()
    client = way.client(f"https://{NAME}:{port}", connect_timeout_seconds=8, read_timeout_seconds=5)
    async with client:
        assert (await call(client, "GET", "/")).status == 200
        assert time.monotonic() - began < 7
        assert made.asked == targets
        await until(lambda: made.waiting == 0)
        assert server.connections == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_addresses_that_a_proxy_is_silent_about_have_one_time_out_together(
    network: Network, authority: Authority, kind: str
) -> None:
    targets = [f"127.0.0.{each}:1" for each in (7, 8, 9)]
    made, address = proxy_of(network, authority, kind, silent=targets)
    hosts = {NAME: tuple(target.removesuffix(":1") for target in targets)}
    way = Way(hosts=hosts, proxy=proxy.parse(f"{kind}://{address}"), ca_file=authority.file)
    began = time.monotonic()
    assert isinstance(await refused(way, 1, seconds=1.0), UpstreamTimeout)
    assert time.monotonic() - began < 2.5
    assert made.asked == targets
    await until(lambda: made.waiting == 0)


@pytest.mark.parametrize("kind", KINDS)
async def test_each_address_that_a_proxy_refuses_is_asked_for_once(
    network: Network, authority: Authority, kind: str
) -> None:
    made, address = proxy_of(network, authority, kind)
    hosts = {NAME: ("127.0.0.7", "127.0.0.8", "127.0.0.9")}
    way = Way(hosts=hosts, proxy=proxy.parse(f"{kind}://{address}"), ca_file=authority.file)
    assert isinstance(await refused(way, 1), UpstreamUnreachable)
    assert made.asked == ["127.0.0.7:1", "127.0.0.8:1", "127.0.0.9:1"]


@pytest.mark.parametrize("kind", KINDS)
async def test_after_tls_failed_behind_one_address_no_other_is_asked_for_again(
    network: Network, authority: Authority, tmp_path: Path, kind: str
) -> None:
    """All were tried, and the certificate is the same behind each."""
    port = network.serve(Coze(), make_authority(tmp_path).context(NAME))
    targets = [f"{OTHER}:{port}", f"127.0.0.1:{port}"]
    made, address = proxy_of(network, authority, kind, names={targets[1]: port})
    hosts = {NAME: (OTHER, "127.0.0.1")}
    way = Way(hosts=hosts, proxy=proxy.parse(f"{kind}://{address}"), ca_file=authority.file)
    assert isinstance(await refused(way, port, seconds=3.0), UpstreamUnreachable)
    assert made.asked == targets


async def test_a_connect_request_names_its_target_as_host(
    network: Network, authority: Authority, coze: tuple[Coze, int]
) -> None:
    """RFC 9110 §9.3.6; and it carries nothing that is meant for Coze, nor of what the broker is made of."""
    _, port = coze
    made, address = proxy_of(network, authority, "http", names={f"{NAME}:{port}": port})
    way = Way(proxy=proxy.parse(f"http://{address}"), ca_file=authority.file)
    client = way.client(f"https://{NAME}:{port}", connect_timeout_seconds=5, read_timeout_seconds=5)
    async with client:
        await call(client, "GET", "/", headers={"Authorization": "Bearer sat_secret"})
    (head,) = made.heads
    assert head["host"] == f"{NAME}:{port}"
    assert "sat_secret" not in str(head)
    assert head["user-agent"] == USER_AGENT


async def test_socks5_asks_dns_itself_and_checks_what_it_says(
    network: Network, authority: Authority, coze: tuple[Coze, int]
) -> None:
    _, port = coze
    made, address = proxy_of(network, authority, "socks5", names={f"127.0.0.1:{port}": port})
    doh_port = network.serve(DohServer({NAME: ["127.0.0.1"]}), authority.context("127.0.0.1"))
    given: dict[str, Any] = {
        "doh_url": f"https://127.0.0.1:{doh_port}/dns-query",
        "proxy": proxy.parse(f"socks5://{address}"),
        "ca_file": authority.file,
    }
    assert "127.0.0.1 (loopback)" in ((await refused(Way(**given), port)).log or "")
    assert made.asked == []
    assert await ask(Way(**given, private_hosts=(NAME,)), port) == 200
    assert made.asked == [f"127.0.0.1:{port}"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_proxy_can_not_pass_itself_off_as_coze(
    network: Network, authority: Authority, kind: str, tmp_path: Path
) -> None:
    """TLS is with Coze: one that opens it needs a certificate that the operator trusts."""
    server = Coze()
    port = network.serve(server, make_authority(tmp_path).context(NAME))
    names = {f"{NAME}:{port}": port, f"127.0.0.1:{port}": port}
    _, address = proxy_of(network, authority, kind, names=names)
    hosts = {NAME: ("127.0.0.1",)} if kind == "socks5" else {}
    way = Way(hosts=hosts, proxy=proxy.parse(f"{kind}://{address}"), ca_file=authority.file)
    refusal = await refused(way, port)
    assert isinstance(refusal, UpstreamUnreachable)
    # Of TLS within TLS, asyncio up to Python 3.11.7 can't say why it failed; uvloop, which serves, can.
    assert kind == "https" or "certificate" in (refusal.log or "").lower()
    assert server.requests == []


async def test_a_proxy_with_tls_must_prove_who_it_is(
    network: Network, authority: Authority, coze: tuple[Coze, int], tmp_path: Path
) -> None:
    """Before it hears a password."""
    _, port = coze
    made, address = proxy_of(network, make_authority(tmp_path), "https", names={f"{NAME}:{port}": port})
    way = Way(proxy=proxy.parse(f"https://{IN_URL}{address}"), ca_file=authority.file)
    assert isinstance(await refused(way, port), UpstreamUnreachable)
    assert made.heads == []


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "http: a wrong password": ("http", {"credential": ("u", "p")}, "the proxy: 407, it wants a name"),
    "https: a wrong password": ("https", {"credential": ("u", "p")}, "the proxy: 407, it wants a name"),
    "http: no such host": ("http", {}, "the proxy: 502 Bad Gateway"),
    "http: forbidden": ("http", {"says": b"HTTP/1.1 403 sEcret\r\n\r\n"}, "the proxy: 403 Forbidden"),
    "http: too slow": ("http", {"says": b"HTTP/1.1 504 x\r\n\r\n"}, "the proxy: 504 Gateway Timeout"),
    "http: odd": ("http", {"says": b"HTTP/1.1 599 x\r\n\r\n"}, "the proxy: 599"),
    "http: a redirect": ("http", {"says": answer(b"", "Location: http://a/", status="302 x")}, "302 Found"),
    "http: no HTTP": ("http", {"says": b"\x05\x00nonsense\r\n\r\n"}, "the proxy: its answer is no HTTP"),
    "http: nothing": ("http", {"says": b""}, ""),
    "socks: a wrong password": ("socks5h", {"credential": ("u", "p")}, "the proxy: "),
    "socks: no such host": ("socks5h", {}, "Connection refused by destination host"),
    "socks: no SOCKS": ("socks5h", {"says": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, "the proxy: "),
    "socks: nothing": ("socks5h", {"says": b""}, "the proxy: "),
    "socks: a method not offered": ("socks5h", {"says": b"\x05\x01"}, "the proxy: "),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_proxy_that_does_not_let_us_through(
    network: Network, authority: Authority, coze: tuple[Coze, int], case: str
) -> None:
    """Nothing was sent to Coze, so it may be tried again; the operator reads what the proxy meant."""
    kind, options, said = REFUSALS[case]
    made, address = proxy_of(network, authority, kind, **options)
    if options.get("says") == b"":

        async def hang_up(*_: Any) -> None:
            made.connections += 1

        address = f"127.0.0.1:{network.serve(hang_up)}"
    way = Way(proxy=proxy.parse(f"{kind}://{IN_URL}{address}"), ca_file=authority.file)
    refusal = await refused(way, coze[1])
    assert isinstance(refusal, UpstreamUnreachable)
    assert said in (refusal.log or "")
    assert "sEcret" not in (refusal.log or "")
    assert coze[0].requests == []


@pytest.mark.parametrize("kind", ["socks5", "socks5h"])
async def test_a_password_that_the_library_can_not_write_is_not_told(
    network: Network, authority: Authority, coze: tuple[Coze, int], kind: str
) -> None:
    """Not a character of it, nor where that stands. The settings refuse such a one before."""
    _, address = proxy_of(network, authority, kind, credential=("u", "p"))
    host, _, port = address.rpartition(":")
    way = Way(hosts={NAME: ("127.0.0.1",)}, proxy=proxy.Proxy(kind, host, int(port), "u", "secrét"))
    refusal = await refused(way, coze[1])
    assert (refusal.log or "").endswith("[the proxy: UnicodeEncodeError]")


@pytest.mark.parametrize("kind", KINDS)
async def test_no_proxy_there(authority: Authority, network: Network, kind: str) -> None:
    with black_hole() as port:
        pass  # nobody listens there any more
    way = Way(hosts={NAME: ("127.0.0.1",)}, proxy=proxy.parse(f"{kind}://{IN_URL}127.0.0.1:{port}"))
    assert isinstance(await refused(way, 1), UpstreamUnreachable)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("silent", ["before the connection", "after it"])
async def test_a_proxy_s_handshake_counts_as_connecting(network: Network, kind: str, silent: str) -> None:
    async def say_nothing(reader: asyncio.StreamReader, _: Any) -> None:
        await reader.read()

    with black_hole() as hole:
        port = hole if silent == "before the connection" else network.serve(say_nothing)
        way = Way(hosts={NAME: ("127.0.0.1",)}, proxy=proxy.parse(f"{kind}://127.0.0.1:{port}"))
        began = time.monotonic()
        assert isinstance(await refused(way, 1, seconds=1.0), UpstreamTimeout)
        assert time.monotonic() - began < 2.5


# --- which proxy ------------------------------------------------------------------------------------------

ENVIRONMENTS: dict[str, tuple[dict[str, str], str | None]] = {
    "none": ({}, None),
    "https": ({"HTTPS_PROXY": "http://a:1"}, "http://a:1"),
    "lower case": ({"https_proxy": "http://a:1"}, "http://a:1"),
    "lower case wins": ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "http://a:1"),
    "all": ({"ALL_PROXY": "socks5://a"}, "socks5://a:1080"),
    "https before all": ({"ALL_PROXY": "socks5://a", "HTTPS_PROXY": "a:3128"}, "http://a:3128"),
    "as GNOME writes it": ({"all_proxy": "socks://127.0.0.1:7891/"}, "socks5h://127.0.0.1:7891"),
    "IPv6": ({"HTTPS_PROXY": "http://[::1]:3128"}, "http://[::1]:3128"),
    "for plain http": ({"HTTP_PROXY": "http://a:1"}, None),
    "empty": ({"HTTPS_PROXY": ""}, None),
    "the setting": ({"HTTPS_PROXY": "http://a:1", "UPSTREAM_PROXY": "https://b"}, "https://b:443"),
    "the setting: none": ({"HTTPS_PROXY": "http://a:1", "UPSTREAM_PROXY": "none"}, None),
    "the setting, in spite of": ({"NO_PROXY": "*", "UPSTREAM_PROXY": "http://b"}, "http://b:80"),
    **{
        f"except {entry}": ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": f"x.example, {entry}"}, expected)
        for entry, expected in {
            "*": None,
            "api.coze.cn": None,
            "API.Coze.CN": None,
            ".coze.cn": None,
            "coze.cn": None,
            "*.coze.cn": None,
            "api.coze.cn:443": None,
            "api.coze.cn:8443": "http://a:1",
            "oze.cn": "http://a:1",
            "coze.com": "http://a:1",
            "www.api.coze.cn": "http://a:1",
            "10.0.0.0/8": "http://a:1",
            ".": "http://a:1",
        }.items()
    },
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_the_environment_is_read_as_other_clients_read_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, expected = ENVIRONMENTS[case]
    found = settings_of(monkeypatch, given, "https://api.coze.cn").coze_proxy
    assert (found.address if found else None) == expected


@pytest.mark.parametrize(
    ("base", "no_proxy", "is_used"),
    [
        ("https://10.1.2.3", "10.0.0.0/8", False),
        ("https://10.1.2.3", "10.1.2.3", False),
        ("https://11.1.2.3", "10.0.0.0/8", True),
        ("https://[2001:db8::1]", "2001:db8::/32", False),
        ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443", False),
        ("https://127.0.0.1", "", False),
        ("http://localhost:2027", "", False),
        ("https://[::1]", "", False),
        ("https://coze.localhost", "", False),
        ("https://LOCALHOST.:8443", "", False),
    ],
)
def test_addresses_and_this_machine(
    base: str, no_proxy: str, *, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on this machine needs no proxy, whoever names one: it would be another machine there."""
    for given in ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": no_proxy}, {"UPSTREAM_PROXY": "http://a:1"}):
        found = settings_of(monkeypatch, given, base).coze_proxy
        is_loopback = not no_proxy
        assert (found is not None) == (is_used or ("UPSTREAM_PROXY" in given and not is_loopback))
        for name in given:
            monkeypatch.delenv(name)


def settings_of(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], base: str) -> Settings:
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return Settings(coze_api_base=base, coze_api_token="x", _env_file=None)


def test_a_proxy_s_password_can_not_be_printed() -> None:
    parsed = proxy.parse(f"socks5h://{IN_URL}proxy.test")
    assert (parsed.username, parsed.password) == (USER, PASSWORD)
    given = Settings(upstream_proxy=f"socks5h://{IN_URL}proxy.test")
    assert all(word not in f"{parsed!r} {parsed} {parsed.address} {given!r}" for word in (PASSWORD, "p%40ss"))


# --- a broker behind one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("http", "HTTPS_PROXY"),
        ("https", "UPSTREAM_PROXY"),
        ("socks5h", "ALL_PROXY"),
        ("socks5", "UPSTREAM_PROXY"),
    ],
)
def test_a_broker_uploads_through_a_proxy(
    network: Network, authority: Authority, tmp_path: Path, kind: str, by: str
) -> None:
    """Streamed, over one connection; neither answer, log nor settings tell the proxy's password."""
    size = 20_000_000
    stored = {"code": 0, "data": {"id": "7", "bytes": size, "file_name": "a.csv", "created_at": 1}}
    server = Coze(answer(stored))
    port = network.serve(server, authority.context(NAME))
    names = {f"{NAME}:{port}": port, f"127.0.0.1:{port}": port}
    made, address = proxy_of(network, authority, kind, names=names, credential=(USER, PASSWORD))
    environment = {
        "COZE_API_BASE": f"https://{NAME}:{port}",
        "COZE_API_TOKEN": "sat_1",
        by: f"{kind}://{IN_URL}{address}",
        "UPSTREAM_CA_FILE": str(authority.file),
        **({"UPSTREAM_HOSTS": f"{NAME}=127.0.0.1"} if kind == "socks5" else {}),
    }
    with running_broker(tmp_path, environment) as broker:
        files = {"file": ("a.csv", b"a" * size)}
        response = httpx.post(f"{broker.url}/proxy/upload", files=files, headers=broker.auth(), timeout=60)
        assert response.status_code == 200, response.text
        assert server.received_bytes > size
        assert made.connections == 1
        shown = broker.command("config", "--json")
        assert f'"{kind}://(not shown)@{address}"' in shown.stdout or by != "UPSTREAM_PROXY"
        said = response.text + shown.stdout + shown.stderr + broker.log.read_text()
    assert PASSWORD not in said
    assert "p%40ss" not in said
