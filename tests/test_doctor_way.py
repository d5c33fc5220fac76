"""``broker doctor`` goes the broker's own way: whom it asks, where it connects to, what it advises."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from broker.doctor.dns import system_answers
from broker.doctor.finding import Finding
from broker.doctor.tls import NO_CHAIN, NO_ISSUER, SELF_SIGNED, SELF_SIGNED_ROOT, Refused, Shown
from broker.doctor.tls import judged as judged_tls
from tests.support import needs
from tests.support.authority import Authority, make_authority, self_signed
from tests.support.dns_answers import answer_to
from tests.support.doctor import (
    HOST,
    Diagnosis,
    Serve,
    diagnose,
    environment,
    listening,
    make_silent,
    namespace,
    never_answering,
    serving,
    serving_on,
    with_tls,
)
from tests.support.network import ConnectProxy, DohServer, Network, SocksProxy, answer, doh_answer
from tests.support.sandbox_control import SandboxControl
from tests.test_doctor import PUBLIC, Here, assert_ends_at, closed_port, in_namespace, lied_to

ELSEWHERE = "1.2.3.9"


@pytest.fixture
def here(folder: Path, sandbox: SandboxControl, authority: Authority) -> Here:
    return Here(folder, sandbox, authority)


@pytest.fixture
def networks() -> None:
    needs.networks()


def advice_of(diagnosis: Diagnosis, step: str) -> str:
    """What the step says to do."""
    return str(diagnosis[step]["do"])


# --- whom it asks -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("networks")
def test_another_dns_server_to_compare_with_takes_no_place_of_the_brokers_own(
    here: Here, network: Network
) -> None:
    """Both are asked over HTTPS; the broker goes by its own alone, though the system's answer is a lie."""
    with lied_to(here, network, ["10.1.2.3"]) as (env, url, name):
        env["UPSTREAM_DOH_URL"] = url
        diagnosis = diagnose(env, "--doh", "https://127.0.0.1:1/q", cwd=here.folder, namespace=name)
    facts = diagnosis["dns"]["facts"]
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert (facts["used"], facts["doh"], facts["compared"]) == ("doh", [PUBLIC], [])
    assert "127.0.0.1 can't be asked (refused)" in facts["compared_trouble"]


@pytest.mark.usefixtures("networks")
def test_a_dns_server_that_is_dead_is_told_though_another_to_compare_with_answers(
    here: Here, network: Network
) -> None:
    with lied_to(here, network, [PUBLIC]) as (env, url, name):
        env["UPSTREAM_DOH_URL"] = "https://dns.test:1/q"
        diagnosis = diagnose(env, "--doh", url, cwd=here.folder, namespace=name)
    assert_ends_at(diagnosis, "dns", 11, "dns.test can't be asked", f"another resolver says {PUBLIC}")
    assert diagnosis["dns"]["facts"]["used"] == "doh"
    assert "Take another UPSTREAM_DOH_URL" in advice_of(diagnosis, "dns")


@pytest.mark.parametrize("case", ["media type", "another question"])
def test_what_the_broker_takes_for_no_dns_is_none_to_the_doctor(
    here: Here, network: Network, case: str
) -> None:
    """It asks by the broker's own means."""

    def reply(question: dns.message.Message) -> bytes:
        if case == "media type":
            wire = answer_to(question, {HOST: ["127.0.0.1"]}).to_wire()
            return doh_answer(wire, "application/octet-stream")
        other = dns.message.make_query("other.test", "A", id=0)
        return doh_answer(answer_to(other, {"other.test": ["127.0.0.1"]}).to_wire())

    port = network.serve(DohServer(reply=reply), here.authority.context("localhost"))
    names = {"UPSTREAM_HOSTS": "", "UPSTREAM_PRIVATE_HOSTS": HOST}
    url = f"https://localhost:{port}/dns-query"
    diagnosis = here.diagnose(here.good(), **names, UPSTREAM_DOH_URL=url)
    assert_ends_at(diagnosis, "dns", 11, "what localhost answers is not DNS")


# --- what it advises when DNS fails -----------------------------------------------------------------------


def test_a_dead_dns_server_over_https_is_not_said_to_be_the_cure(here: Here) -> None:
    names = {"UPSTREAM_HOSTS": "", "UPSTREAM_PRIVATE_HOSTS": HOST}
    url = f"https://127.0.0.1:{closed_port()}/dns-query"
    diagnosis = diagnose(here.environment(1, **names, UPSTREAM_DOH_URL=url), cwd=here.folder)
    assert_ends_at(diagnosis, "dns", 11, "can't be asked (refused)", "Take another UPSTREAM_DOH_URL")
    assert "Set UPSTREAM_DOH_URL" not in advice_of(diagnosis, "dns")


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("trouble", ["NXDOMAIN", "SERVFAIL"])
def test_who_has_no_dns_is_told_of_the_usual_cures(folder: Path, trouble: str) -> None:
    """A proxy that browsers use; and a DNS server by its address, for its name would be found by nobody."""
    advice = advice_of(in_namespace(folder, {HOST: trouble}), "dns")
    assert "If browsers here go through a proxy, set UPSTREAM_PROXY" in advice
    assert ("by its IP address" in advice) == (trouble == "SERVFAIL")


@pytest.mark.usefixtures("networks")
def test_dns_is_not_to_be_mended_where_a_proxy_resolves_names(here: Here, network: Network) -> None:
    """``UPSTREAM_DOH_URL`` is not used then."""
    with lied_to(here, network, [ELSEWHERE]) as (env, url, name):
        proxy = f"http://127.0.0.1:{closed_port()}"
        diagnosis = diagnose({**env, "UPSTREAM_PROXY": proxy}, "--doh", url, cwd=here.folder, namespace=name)
    assert diagnosis["dns"]["status"] == "warning", diagnosis.printed
    assert "UPSTREAM_DOH_URL" not in str(diagnosis["dns"]["do"])


# --- IPv6 -------------------------------------------------------------------------------------------------

OWN = "fd00:c02e::7"


@pytest.mark.usefixtures("networks")
def test_an_ipv6_address_of_ones_own_network_needs_no_way_to_the_ipv6_internet(here: Here) -> None:
    with namespace({HOST: [OWN]}) as name:
        subprocess.run(["ip", "-n", name, "addr", "add", f"{OWN}/64", "dev", "lo", "nodad"], check=True)
        with serving_on(listening(OWN, namespace=name), here.good()) as server:
            env = here.environment(server.port, UPSTREAM_HOSTS="", UPSTREAM_PRIVATE_HOSTS=HOST)
            diagnosis = diagnose(env, cwd=here.folder, namespace=name)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis["tcp"]["facts"]["addresses"][OWN]["trouble"] is None


@pytest.mark.usefixtures("networks")
def test_an_ipv6_address_is_the_proxys_to_reach(here: Here, network: Network) -> None:
    """One that is told addresses: this machine needs no IPv6."""
    with namespace({HOST: ["2400:da00::1"]}) as name, serving(here.good()) as server:
        proxy = SocksProxy(names={f"2400:da00::1:{server.port}": server.port})
        port = network.serve(proxy, on=listening("127.0.0.1", namespace=name))
        settings = {"UPSTREAM_HOSTS": "", "UPSTREAM_PROXY": f"socks5://127.0.0.1:{port}"}
        diagnosis = diagnose(here.environment(server.port, **settings), cwd=here.folder, namespace=name)
    assert diagnosis.exit_code == 0, diagnosis.printed


async def test_an_address_of_a_link_keeps_its_scope() -> None:
    """Without it nothing can be connected to."""
    answers = await system_answers("fe80::1%lo", 5)
    assert [each.startswith("fe80::1%") for each in answers.addresses] == [True]


# --- an address that is another's ---------------------------------------------------------------------------


@pytest.mark.usefixtures("networks")
def test_dns_is_suspected_too_where_nothing_answers_and_nobody_else_was_asked(folder: Path) -> None:
    coze = {"COZE_API_BASE": f"https://{HOST}", "COZE_API_TOKEN": "pat_of_the_tests"}
    with namespace({HOST: [ELSEWHERE]}) as name:
        make_silent(name, ELSEWHERE)
        diagnosis = diagnose(environment(folder, coze), cwd=folder, namespace=name, timeout="1")
    assert "or DNS lies: compare with --doh URL" in advice_of(diagnosis, "tcp")


def test_dns_is_not_suspected_of_addresses_that_the_settings_give(here: Here) -> None:
    diagnosis = diagnose(here.environment(closed_port()), cwd=here.folder)
    assert "--doh" not in advice_of(diagnosis, "tcp")


# --- a host's name as the broker reads it -------------------------------------------------------------------


def test_a_name_may_end_in_a_dot(here: Here) -> None:
    with serving(here.good()) as server:
        env = here.environment(server.port, COZE_API_BASE=f"https://{HOST}.:{server.port}")
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis.report["upstream"] == f"https://{HOST}:{server.port}"


# --- the proxy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
def test_a_proxys_own_name_is_found_in_the_settings(here: Here, network: Network, scheme: str) -> None:
    """No DNS knows it; its certificate must be the name's all the same."""
    tls = here.authority.context("proxy.test") if scheme == "https" else None
    with serving(here.good()) as server:
        target = f"127.0.0.1:{server.port}"
        proxy = SocksProxy(names={target: server.port}) if scheme == "socks5h" else ConnectProxy(names=None)
        url = f"{scheme}://proxy.test:{network.serve(proxy, tls)}"
        names = f"{HOST}=127.0.0.1, proxy.test=127.0.0.9 127.0.0.1"
        env = here.environment(server.port, UPSTREAM_PROXY=url, UPSTREAM_HOSTS=names)
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert target in proxy.asked


def test_the_certificate_of_a_proxy_is_its_names(here: Here, network: Network) -> None:
    port = network.serve(ConnectProxy(names=None), here.authority.context("127.0.0.1"))
    hosts = f"{HOST}=127.0.0.1, proxy.test=127.0.0.1"
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"https://proxy.test:{port}", UPSTREAM_HOSTS=hosts)
    assert_ends_at(diagnosis, "proxy", 13, "certificate does not verify")


@pytest.mark.parametrize(
    ("schemes", "words"),
    [
        (["Basic realm=x"], "or it wants NTLM or Kerberos, which the broker does not speak"),
        (["Negotiate", "NTLM"], "It wants NTLM or Kerberos, which the broker does not speak"),
        (["Negotiate", "basic"], "or it wants NTLM or Kerberos"),
        (['Negotiate, Basic realm="x"'], "or it wants NTLM or Kerberos"),
        (['Digest realm="a, b", nonce="x"'], "another kind than Basic"),
        ([], "or it wants NTLM or Kerberos"),
    ],
    ids=lambda value: "+".join(value) or "none" if isinstance(value, list) else "",
)
def test_a_proxy_that_wants_another_kind_of_password(
    here: Here, network: Network, schemes: list[str], words: str
) -> None:
    headers = [f"Proxy-Authenticate: {each}" for each in schemes]
    says = answer(b"", *headers, status="407 Proxy Authentication Required")
    port = network.serve(ConnectProxy(says=says))
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"http://user:SECRET-1@127.0.0.1:{port}")
    assert_ends_at(diagnosis, "proxy", 13, "asks for a password", words)
    assert ("cntlm" in advice_of(diagnosis, "proxy")) is ("NTLM" in words)
    assert "SECRET" not in diagnosis.printed


def test_a_name_of_a_proxys_user_may_have_any_letters(here: Here, network: Network) -> None:
    """As the broker sends it: in UTF-8."""
    port = network.serve(ConnectProxy(names=None))
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"http://%E7%8E%8B:p%C5%82@127.0.0.1:{port}")
    assert diagnosis.exit_code == 0, diagnosis.printed


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
def test_a_proxy_for_plain_http_alone_is_told_of(here: Here, name: str) -> None:
    diagnosis = here.diagnose(here.good(), **{name: "http://proxy.test:3128"})
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis["proxy"]["status"] == "warning"
    assert "for plain http, and Coze is https" in diagnosis["proxy"]["means"]
    assert "UPSTREAM_PROXY" in advice_of(diagnosis, "proxy")


@pytest.mark.parametrize(
    "settings", [{"NO_PROXY": HOST}, {"UPSTREAM_PROXY": "none"}], ids=["NO_PROXY", "none"]
)
def test_a_proxy_for_plain_http_is_not_told_of_where_none_is_wanted(
    here: Here, settings: dict[str, str]
) -> None:
    diagnosis = here.diagnose(here.good(), HTTP_PROXY="http://proxy.test:3128", **settings)
    assert diagnosis["proxy"]["status"] == "ok"


def test_a_proxys_variable_in_the_env_file_is_told_of(here: Here) -> None:
    """It is read for the broker's own settings alone."""
    (here.folder / ".env").write_text("HTTPS_PROXY=http://user:SECRET@proxy.test:3128\n")
    diagnosis = here.diagnose(here.good())
    assert diagnosis["proxy"]["status"] == "warning", diagnosis.printed
    assert "HTTPS_PROXY stands in .env" in diagnosis["proxy"]["found"]
    assert "UPSTREAM_PROXY" in advice_of(diagnosis, "proxy")
    assert "SECRET" not in diagnosis.printed


def test_a_proxy_by_the_environment_must_be_in_the_services(here: Here, network: Network) -> None:
    port = network.serve(ConnectProxy(names=None))
    diagnosis = here.diagnose(here.good(), HTTPS_PROXY=f"http://127.0.0.1:{port}")
    assert "in its own environment" in diagnosis["proxy"]["found"]


# --- TLS ----------------------------------------------------------------------------------------------------

DIGICERT = "DigiCert Inc"


def untrusted(host: str, code: int, issuer: str = DIGICERT) -> Finding:
    """What is said of a certificate whose issuer calls itself so."""
    shown = Shown(f"CN={host}", f"CN=x,O={issuer}", (host,), 0, 2e9, is_self_signed=False)
    return judged_tls(Refused(host, code, shown, None, 1e9, frozenset({DIGICERT})))


@pytest.mark.parametrize("code", [SELF_SIGNED, SELF_SIGNED_ROOT, NO_ISSUER, NO_CHAIN])
def test_nobody_is_talked_into_trusting_who_answers_for_coze(code: int) -> None:
    """Whoever is in between may call its authority what it likes."""
    finding = untrusted("api.coze.cn", code)
    assert (finding.status, "UPSTREAM_CA_FILE" in finding.do) == ("failed", False)
    assert "in between replaces the certificate" in finding.means
    assert "incomplete" not in finding.found


def test_what_is_missing_in_a_chain_is_to_be_fetched_from_its_issuer() -> None:
    finding = untrusted(HOST, NO_ISSUER)
    assert "incomplete" in finding.found
    assert "fetch the missing certificate from the issuer's own site" in finding.do


def test_a_chain_that_ends_at_an_authority_of_its_own_is_whole(here: Here) -> None:
    """It is sent with the chain, and has a public one's name: all the same nobody vouches for it."""
    authority = make_authority(here.folder, DIGICERT)
    pem = authority.issue(HOST)
    pem.write_bytes(pem.read_bytes() + authority.file.read_bytes())
    diagnosis = here.diagnose(with_tls(pem, never_answering), timeout="1")
    assert_ends_at(diagnosis, "tls", 14, DIGICERT, "no public authority", "system's own store is not read")
    assert diagnosis["tls"]["facts"]["verify_code"] == SELF_SIGNED_ROOT


@pytest.mark.parametrize("alert", [112, 40], ids=["unrecognized_name", "handshake_failure"])
def test_a_server_that_refuses_the_name_speaks_tls(here: Here, alert: int) -> None:
    """RFC 8446 §6.2."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(bytes((0x15, 3, 3, 0, 2, 2, alert)))

    diagnosis = here.diagnose(refuse)
    assert_ends_at(diagnosis, "tls", 14, "refuses this name or our TLS", "UPSTREAM_HOSTS", "--doh")
    assert "no TLS" not in diagnosis["tls"]["means"]


@contextlib.contextmanager
def two_addresses(here: Here, first: Serve) -> Iterator[dict[str, str]]:
    """The environment of a broker that is given two: what the first does, and a good one behind it."""
    with serving(here.good()) as server, serving(first, host="127.0.0.9", port=server.port):
        yield here.environment(server.port, UPSTREAM_HOSTS=f"{HOST}=127.0.0.9 127.0.0.1")


@pytest.mark.parametrize("case", ["cut", "another's certificate"])
def test_the_next_address_is_tried_where_tls_fails_at_the_first(here: Here, case: str) -> None:
    """As the broker does it."""
    cut, foreign = (lambda connection: connection.recv(1)), with_tls(self_signed(here.folder, HOST), passing)
    with two_addresses(here, cut if case == "cut" else foreign) as env:
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    tls = diagnosis["tls"]
    assert (tls["status"], tls["facts"]["address"]) == ("warning", "127.0.0.1")
    assert "127.0.0.9" in tls["means"]
    assert "goes on to the next" in tls["means"]


def passing(_: socket.socket) -> None:
    """Nothing more."""


def test_an_address_whose_tls_is_silent_takes_all_the_time_there_is(here: Here) -> None:
    """The broker's, too: connecting has one time-out for all addresses."""
    with two_addresses(here, never_answering) as env:
        diagnosis = diagnose(env, cwd=here.folder, timeout="1")
    words = ("127.0.0.9", "upstream_timeout", f"UPSTREAM_HOSTS={HOST}=127.0.0.1", "1 s", "longer --timeout")
    assert_ends_at(diagnosis, "tls", 14, *words)


def test_all_addresses_have_to_fail_for_the_way_to_end(here: Here) -> None:
    with two_addresses(here, passing) as env, serving(passing, host="127.0.0.8", port=port_of(env)):
        env["UPSTREAM_HOSTS"] = f"{HOST}=127.0.0.9 127.0.0.8"
        diagnosis = diagnose(env, cwd=here.folder)
    assert_ends_at(diagnosis, "tls", 14, "cut during the TLS handshake")


def port_of(env: dict[str, str]) -> int:
    return int(env["COZE_API_BASE"].rpartition(":")[2])


def test_a_way_that_is_slower_than_the_broker_is_patient(here: Here) -> None:
    good = here.good()

    def slow(connection: socket.socket) -> None:
        threading.Event().wait(1.3)
        good(connection)

    diagnosis = here.diagnose(slow, timeout="6", BROKER_CONNECT_TIMEOUT_SECONDS="1")
    assert_ends_at(diagnosis, "tls", 14, "upstream_timeout", "BROKER_CONNECT_TIMEOUT_SECONDS")


@pytest.mark.parametrize("step", ["tls", "proxy"])
def test_where_nothing_answers_it_is_told_who_waits_how_long(here: Here, step: str) -> None:
    settings = {"BROKER_CONNECT_TIMEOUT_SECONDS": "7"}
    with serving(never_answering) as proxy:
        if step == "proxy":
            settings["UPSTREAM_PROXY"] = f"http://127.0.0.1:{proxy.port}"
        diagnosis = here.diagnose(never_answering, timeout="1", **settings)
    assert_ends_at(
        diagnosis, step, {"tls": 14, "proxy": 13}[step], "1 s, by --timeout", "the broker waits 7 s"
    )
