"""``broker doctor`` goes the broker's own way: whom it asks, where it connects to, what it advises."""

from __future__ import annotations

import subprocess
from pathlib import Path

import dns.message
import pytest

from broker.doctor.dns import system_answers
from tests.support import needs
from tests.support.authority import Authority
from tests.support.dns_answers import answer_to
from tests.support.doctor import (
    HOST,
    Diagnosis,
    diagnose,
    environment,
    listening,
    make_silent,
    namespace,
    passing_on_to,
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


def test_an_address_in_the_old_way_of_writing_is_asked_of_nobody(here: Here) -> None:
    pem = here.authority.issue("127.1")
    with serving(with_tls(pem, passing_on_to(here.sandbox.url))) as server:
        env = here.environment(server.port, COZE_API_BASE=f"https://127.1:{server.port}", UPSTREAM_HOSTS="")
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis["dns"]["found"] == "127.1 is an address, and needs no DNS"
    assert diagnosis["tcp"]["status"] == "ok", diagnosis.printed


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
    assert_ends_at(diagnosis, "proxy", 13, "asks for a password", words, "cntlm")
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
    assert "in its own environment" in diagnosis["proxy"]["means"]
