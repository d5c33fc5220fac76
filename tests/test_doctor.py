"""``broker doctor`` against every broken way, over real sockets: which step fails, why, and what to do."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from broker import settings
from broker.doctor.calling import Reply
from broker.doctor.credential import judged, judged_browser, refused_app
from broker.doctor.examination import STEPS as STEPS_OF_THE_WAY
from broker.doctor.examination import UPLOAD, all_of
from broker.doctor.exchange import Exchanged
from broker.doctor.finding import Finding
from broker.doctor.tls import EXPIRED, Refused, Shown
from broker.doctor.tls import judged as judged_tls
from broker.doctor.upload import judged as judged_upload
from broker.doctor.way import Way
from broker.sandbox.launch import in_subprocess
from broker.upstream.client import Answered
from tests.support import needs
from tests.support.authority import (
    DAY,
    Authority,
    make_authority,
    self_signed,
    server_context,
    signed_over_sha1,
)
from tests.support.broker_process import COMMAND
from tests.support.dns_answers import Records
from tests.support.doctor import (
    HOST,
    OWN_NAMESPACE,
    Diagnosis,
    Serve,
    diagnose,
    environment,
    head_of,
    http_answer,
    listening,
    listening_in,
    make_silent,
    namespace,
    never_answering,
    passing_on_to,
    run,
    saying,
    serving,
    serving_on,
    with_tls,
)
from tests.support.network import ConnectProxy, DohServer, Network, SocksProxy, answer
from tests.support.raw_http import ScriptedUpstream
from tests.support.sandbox_control import SandboxControl

TOKEN = "pat_0123456789abcdefSECRET"
OURS = "cub_sk_SECRETabcdefghij"
STEPS = ["settings", "dns", "tcp", "proxy", "tls", "http", "region", "credential", "cors"]


class Here:
    """A way to the sandbox as ``https://coze.test``, whole until a test breaks it."""

    def __init__(self, folder: Path, sandbox: SandboxControl, authority: Authority) -> None:
        self.folder = folder
        self.sandbox = sandbox
        self.authority = authority
        self.ca_file = str(authority.file)

    def good(self, name: str = HOST) -> Serve:
        """TLS with a good certificate, and the sandbox behind it."""
        return with_tls(self.authority.issue(name), passing_on_to(self.sandbox.url))

    def environment(self, port: int, **settings: str) -> dict[str, str]:
        coze = {
            "COZE_API_BASE": f"https://{HOST}:{port}",
            "COZE_API_TOKEN": self.sandbox.environment["COZE_API_TOKEN"],
            "UPSTREAM_HOSTS": f"{HOST}=127.0.0.1",
            "UPSTREAM_CA_FILE": self.ca_file,
        }
        return environment(self.folder, {**coze, **settings})

    def diagnose(self, serve: Serve, *arguments: str, timeout: str = "2", **settings: str) -> Diagnosis:
        with serving(serve) as server:
            env = self.environment(server.port, **settings)
            return diagnose(env, *arguments, cwd=self.folder, timeout=timeout)


@pytest.fixture
def here(folder: Path, sandbox: SandboxControl, authority: Authority) -> Here:
    return Here(folder, sandbox, authority)


def assert_ends_at(diagnosis: Diagnosis, step: str, code: int, *words: str) -> None:
    """The step failed, says these words, helps; those that stand on it were not tried."""
    found = diagnosis[step]
    assert (diagnosis.report["failed_step"], diagnosis.exit_code) == (step, code), diagnosis.printed
    assert found["status"] == "failed"
    assert found["means"]
    assert found["do"]
    said = f"{found['found']} {found['means']} {found['do']}".lower()
    assert [word for word in words if word.lower() not in said] == [], said


# --- all is well ------------------------------------------------------------------------------------------


def test_a_good_way_is_walked_to_its_end(folder: Path, sandbox: SandboxControl) -> None:
    diagnosis = diagnose(environment(folder, sandbox.environment), cwd=folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert list(diagnosis.statuses) == STEPS
    assert diagnosis["tls"]["status"] == "skipped"  # plain http on loopback
    assert diagnosis["dns"]["status"] == "ok"
    assert "OAuth app" in diagnosis["credential"]["found"]


def test_a_good_way_over_tls(here: Here) -> None:
    diagnosis = here.diagnose(here.good())
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis["tls"]["status"] == "ok"
    assert diagnosis["tls"]["facts"]["public_authority"] is False
    assert "personal access token" in diagnosis["credential"]["found"]


def test_one_byte_is_uploaded_where_that_is_asked_for(here: Here) -> None:
    diagnosis = here.diagnose(here.good(), "--upload")
    assert diagnosis.exit_code == 0, diagnosis.printed
    file_id = diagnosis["upload"]["facts"]["file_id"]
    assert file_id in diagnosis["upload"]["found"]
    assert here.sandbox.file(file_id)["bytes"] == 1


def test_nothing_is_uploaded_where_it_is_not(here: Here) -> None:
    here.diagnose(here.good())
    assert here.sandbox.events(kind="upload", method="POST") == []


def test_an_ipv6_literal_and_another_port(folder: Path, sandbox: SandboxControl) -> None:
    with serving(passing_on_to(sandbox.url), host="::1") as server:
        coze = {**sandbox.environment, "COZE_API_BASE": f"http://[::1]:{server.port}"}
        coze = {name: value for name, value in coze.items() if "OAUTH" not in name}
        diagnosis = diagnose(environment(folder, coze), cwd=folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis.report["upstream"] == f"http://[::1]:{server.port}"
    assert list(diagnosis["tcp"]["facts"]["addresses"]) == ["::1"]


def test_coze_studio_without_retrieve_and_oauth(here: Here) -> None:
    """It answers with its own codes and its own header for the log's id."""
    studio = http_answer(
        b'{"code":401,"msg":"missing session_key in cookie"}',
        "application/json",
        "401 Unauthorized",
        "X-Log-ID: 0123",
    )
    diagnosis = here.diagnose(with_tls(here.authority.issue(HOST), saying(studio)))
    assert diagnosis["http"]["status"] == "ok", diagnosis.printed
    assert diagnosis["http"]["facts"]["logid"] == "0123"


# --- settings ---------------------------------------------------------------------------------------------


def test_settings_that_say_nothing(folder: Path) -> None:
    diagnosis = diagnose(environment(folder, {}), cwd=folder)
    assert_ends_at(diagnosis, "settings", 10, "COZE_API_BASE is not set")
    assert set(diagnosis.statuses.values()) == {"failed", "skipped"}


def test_settings_that_cant_be_read(folder: Path) -> None:
    diagnosis = diagnose(
        environment(folder, {"COZE_API_BASE": "https://a.example", "PORT": "many"}), cwd=folder
    )
    assert_ends_at(diagnosis, "settings", 10, "PORT")


@pytest.mark.parametrize(
    "base", ["https://{host}:0", "https://a..b", "https://[::1%25lo]", "https://{host}/?SECRET"]
)
def test_an_address_that_leads_nowhere_is_not_gone_to(here: Here, base: str) -> None:
    diagnosis = diagnose(here.environment(1, COZE_API_BASE=base.format(host=HOST)), cwd=here.folder)
    assert_ends_at(diagnosis, "settings", 10, "COZE_API_BASE: not an address like")
    assert set(diagnosis.statuses.values()) == {"failed", "skipped"}
    assert "SECRET" not in diagnosis.printed


def test_a_file_of_authorities_that_is_a_pipe_is_not_waited_for(here: Here) -> None:
    os.mkfifo(here.folder / "pipe")
    diagnosis = here.diagnose(here.good(), UPSTREAM_CA_FILE=str(here.folder / "pipe"))
    assert_ends_at(diagnosis, "settings", 10, "UPSTREAM_CA_FILE: the file can't be read (not a regular file)")
    assert diagnosis["tls"]["status"] == "failed"  # by the built-in authorities alone


@pytest.mark.parametrize("is_good", [True, False])
def test_a_line_of_the_env_file_that_can_not_be_read_is_told(here: Here, is_good: bool) -> None:
    (here.folder / ".env").write_text("A=1\nCOZE_API_TOKEN SECRET\n")
    settings = {} if is_good else {"COZE_API_TOKEN": ""}
    diagnosis = here.diagnose(here.good(), **settings)
    assert diagnosis["settings"]["status"] == ("warning" if is_good else "failed")
    assert ".env: line 2 is not NAME=value" in diagnosis["settings"]["found" if not is_good else "means"]
    assert "SECRET" not in diagnosis.printed


def test_settings_that_only_lack_a_credential_let_the_rest_be_looked_at(here: Here) -> None:
    diagnosis = here.diagnose(here.good(), COZE_API_TOKEN="")
    assert_ends_at(diagnosis, "settings", 10, "COZE_API_TOKEN")
    assert diagnosis["http"]["status"] == "ok"
    assert diagnosis["credential"]["status"] == "failed"


def test_an_app_whose_private_key_is_not_there(folder: Path, sandbox: SandboxControl) -> None:
    """The likeliest slip: it is told as such, and no step has a fault of its own."""
    env = environment(folder, sandbox.environment)
    env["COZE_JWT_OAUTH_PRIVATE_KEY_FILE_PATH"] = str(folder / "nowhere.pem")
    diagnosis = diagnose(env, cwd=folder)
    assert_ends_at(diagnosis, "settings", 10, "COZE_JWT_OAUTH_PRIVATE_KEY")
    assert diagnosis["region"]["status"] == "skipped"
    assert diagnosis["credential"]["found"] == "an OAuth app is not whole"
    assert diagnosis["cors"]["status"] == "ok"
    assert "has a fault here" not in diagnosis.printed


def test_nothing_is_sent_in_the_clear_to_another_machine(here: Here) -> None:
    """Whoever is on the way could read the credential; the broker does not start with such settings."""
    with serving(passing_on_to(here.sandbox.url)) as server:
        base = f"http://{HOST}:{server.port}"
        diagnosis = diagnose(here.environment(server.port, COZE_API_BASE=base), cwd=here.folder)
    assert_ends_at(diagnosis, "settings", 10, "plain http")
    assert set(diagnosis.statuses.values()) == {"failed", "skipped"}
    assert here.sandbox.events(kind="retrieve") == []


# --- DNS --------------------------------------------------------------------------------------------------


@pytest.fixture
def networks() -> None:
    needs.networks()


def in_namespace(folder: Path, names: Records, *arguments: str, **settings: str) -> Diagnosis:
    coze = {"COZE_API_BASE": f"https://{HOST}", "COZE_API_TOKEN": TOKEN, **settings}
    with namespace(names) as name:
        return diagnose(environment(folder, coze), *arguments, cwd=folder, namespace=name)


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param("NXDOMAIN", ("no such name", "UPSTREAM_DOH_URL"), id="nxdomain"),
        pytest.param([], ("no address",), id="empty"),
        pytest.param("SERVFAIL", ("resolver failed",), id="servfail"),
        pytest.param(["10.1.2.3"], ("10.1.2.3", "poisoned", "UPSTREAM_PRIVATE_HOSTS"), id="private"),
        pytest.param(["127.0.0.1"], ("no public address",), id="loopback"),
        pytest.param(["169.254.169.254"], ("no public address",), id="metadata"),
        pytest.param(["0.0.0.0"], ("no public address",), id="unspecified"),
        pytest.param(["240.0.0.1"], ("no public address",), id="reserved"),
        pytest.param(["198.18.0.5"], ("Clash", "UPSTREAM_PROXY"), id="fake address"),
        pytest.param(["2400:da00::1"], ("IPv6 addresses only", "no route"), id="IPv6 only"),
    ],
)
def test_dns_that_lies_or_says_nothing(folder: Path, answer: list[str] | str, words: tuple[str, ...]) -> None:
    diagnosis = in_namespace(folder, {HOST: answer})
    assert_ends_at(diagnosis, "dns", 11, *words)
    assert diagnosis["tcp"]["found"] == "needs dns, which failed"


@pytest.mark.usefixtures("networks")
def test_a_resolver_that_is_not_there(folder: Path) -> None:
    """The doctor's time is bounded, however patient the system's resolver is."""
    with namespace({}) as name:
        (Path("/etc/netns") / name / "resolv.conf").write_text("nameserver 127.0.0.9\n")
        coze = {"COZE_API_BASE": f"https://{HOST}", "COZE_API_TOKEN": TOKEN}
        started = time.monotonic()
        diagnosis = diagnose(environment(folder, coze), cwd=folder, namespace=name)
    assert_ends_at(diagnosis, "dns", 11, "can't be resolved")
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("networks")
def test_a_resolver_that_never_answers(folder: Path) -> None:
    with namespace({}) as name:
        make_silent(name, "203.0.113.9")
        resolver = Path("/etc/netns") / name / "resolv.conf"
        resolver.write_text("nameserver 203.0.113.9\noptions timeout:30\n")
        coze = {"COZE_API_BASE": f"https://{HOST}", "COZE_API_TOKEN": TOKEN}
        started = time.monotonic()
        diagnosis = diagnose(environment(folder, coze), cwd=folder, timeout="1", namespace=name)
    assert_ends_at(diagnosis, "dns", 11, "no answer in time")
    assert time.monotonic() - started < 15


def test_a_machine_that_gives_no_socket_for_ipv6_has_no_way_there() -> None:
    """As a kernel without IPv6; here no further file may be open."""
    code = (
        "import resource; from broker.doctor.dns import has_route; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3)); print(has_route(['2400:da00::1']))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False\n", done.stderr


def test_a_private_answer_is_right_for_a_host_that_is_named_so(here: Here) -> None:
    """``localhost`` is such a host by itself."""
    with serving(with_tls(here.authority.issue("localhost"), passing_on_to(here.sandbox.url))) as server:
        env = here.environment(
            server.port, COZE_API_BASE=f"https://localhost:{server.port}", UPSTREAM_HOSTS=""
        )
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed


PUBLIC = "1.2.3.4"
"""Where Coze is in a namespace: an address that no check keeps the broker from."""
LIES: dict[str, list[str] | str] = {
    "private": ["10.1.2.3"],
    "made up": ["198.18.0.5"],
    "another": ["1.2.3.9"],
    "empty": [],
    "nxdomain": "NXDOMAIN",
    "servfail": "SERVFAIL",
}
SAID_OF_LIES = {
    "private": ("10.1.2.3 (private)", f"DNS over HTTPS says {PUBLIC}", "poisoned"),
    "made up": ("198.18.0.5 (benchmarking)", f"DNS over HTTPS says {PUBLIC}", "Clash"),
    "empty": ("has no address", f"another resolver says {PUBLIC}", "kept off"),
    "nxdomain": ("no such name", f"another resolver says {PUBLIC}", "kept off"),
    "servfail": ("resolver failed", f"another resolver says {PUBLIC}", "kept off"),
}


@contextlib.contextmanager
def lied_to(here: Here, network: Network, said: list[str] | str) -> Iterator[tuple[dict[str, str], str, str]]:
    """A network whose resolver says this of Coze, and in which a DNS server over HTTPS knows better: the
    environment of a broker in it, the server's URL, and the network's name.
    """
    pem = here.authority.issue(HOST, "dns.test")
    with namespace({HOST: said}) as name:
        tls = server_context(pem)
        doh = network.serve(DohServer({HOST: [PUBLIC]}), tls, on=listening("127.0.0.1", namespace=name))
        with serving_on(listening_in(name, PUBLIC), here.good()) as server:
            env = here.environment(server.port, UPSTREAM_HOSTS="dns.test=127.0.0.1")
            yield env, f"https://dns.test:{doh}/dns-query", name


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("lie", LIES)
def test_dns_over_https_goes_on_where_the_systems_answer_is_a_lie_or_none(
    here: Here, network: Network, lie: str
) -> None:
    """The two disagree: a warning, since a server that is not Coze's can't pass the step tls."""
    with lied_to(here, network, LIES[lie]) as (env, url, name):
        diagnosis = diagnose({**env, "UPSTREAM_DOH_URL": url}, cwd=here.folder, namespace=name)
    assert diagnosis.exit_code == 0, diagnosis.printed
    facts = diagnosis["dns"]["facts"]
    assert (facts["used"], facts["doh"]) == ("doh", [PUBLIC])
    assert facts["system"] == (LIES[lie] if isinstance(LIES[lie], list) else [])
    assert (diagnosis["dns"]["status"], diagnosis["tls"]["status"]) == ("warning", "ok")
    assert "disagree" in diagnosis["dns"]["found"]


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("lie", SAID_OF_LIES)
def test_another_resolver_shows_that_the_systems_answer_is_a_lie_or_none(
    here: Here, network: Network, lie: str
) -> None:
    """Asked by ``--doh`` alone: the broker would not ask it, so the way ends; the advice is to let it."""
    with lied_to(here, network, LIES[lie]) as (env, url, name):
        diagnosis = diagnose(env, "--doh", url, cwd=here.folder, namespace=name)
    assert_ends_at(diagnosis, "dns", 11, *SAID_OF_LIES[lie], "UPSTREAM_DOH_URL")
    assert diagnosis["dns"]["facts"]["used"] == "system"


@pytest.mark.usefixtures("networks")
def test_a_lie_that_looks_public_is_found_out_at_the_next_step(here: Here, network: Network) -> None:
    with lied_to(here, network, LIES["another"]) as (env, url, name):
        diagnosis = diagnose(env, "--doh", url, cwd=here.folder, namespace=name)
    assert diagnosis["dns"]["status"] == "warning"
    assert_ends_at(diagnosis, "tcp", 12, "poisoned or stale", "UPSTREAM_DOH_URL")


def test_dns_over_https_that_answers_for_one_family_alone(here: Here, network: Network) -> None:
    """The broker goes by what came, and so does the doctor."""
    settings = {"UPSTREAM_HOSTS": "", "UPSTREAM_PRIVATE_HOSTS": HOST}
    silent = DohServer({HOST: ["127.0.0.1"]}, hold={"AAAA": threading.Event()})
    doh = network.serve(silent, here.authority.context("localhost"))
    url = f"https://localhost:{doh}/dns-query"
    diagnosis = here.diagnose(here.good(), **settings, UPSTREAM_DOH_URL=url)
    assert diagnosis["dns"]["facts"]["doh"] == ["127.0.0.1"], diagnosis.printed
    assert diagnosis["dns"]["facts"]["used"] == "doh"
    assert diagnosis.exit_code == 0, diagnosis.printed


def test_localhost_is_asked_of_no_dns_server(here: Here, network: Network) -> None:
    """It is this machine (RFC 6761 §6.3), for the broker and for the doctor, whatever a server would say."""
    pem = here.authority.issue("localhost", "a.localhost", "127.0.0.1")
    lying = DohServer({"localhost": [PUBLIC], "a.localhost": [PUBLIC]})
    url = f"https://127.0.0.1:{network.serve(lying, server_context(pem))}/dns-query"
    with serving(with_tls(pem, passing_on_to(here.sandbox.url))) as server:
        for name in ("localhost", "a.localhost"):
            settings = {"COZE_API_BASE": f"https://{name}:{server.port}", "UPSTREAM_HOSTS": ""}
            env = here.environment(server.port, **settings, UPSTREAM_DOH_URL=url)
            diagnosis = diagnose(env, cwd=here.folder)
            assert diagnosis.exit_code == 0, diagnosis.printed
            assert diagnosis["dns"]["found"] == f"{name} is this machine, and needs no DNS"
    assert lying.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/dns-query",
        "https://127.0.0.1:{port}/?SECRET",
        "https://u:SECRET@127.0.0.1:{port}/q",
    ],
)
def test_a_dns_server_that_the_settings_refuse_is_not_asked(here: Here, url: str) -> None:
    """What it would be told, others could read. The system's resolver is asked instead."""
    connections: list[bytes] = []
    with serving(lambda connection: connections.append(connection.recv(1))) as doh:
        written = url.format(port=doh.port)
        diagnosis = here.diagnose(here.good(), UPSTREAM_DOH_URL=written, UPSTREAM_HOSTS="")
        by_option = run(here.environment(1), "--doh", written, cwd=here.folder)
    assert_ends_at(diagnosis, "settings", 10, "UPSTREAM_DOH_URL: not an address like")
    assert diagnosis["dns"]["facts"]["used"] == "system"
    assert by_option.returncode == 2
    assert connections == []
    assert "SECRET" not in diagnosis.printed + by_option.stdout + by_option.stderr


NO_TLS, NOT_DNS = b"HTTP/1.1 400 No\r\n\r\n", http_answer(b"<html>", "text/html")


def after_the_first_bytes(answer: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return serve


@pytest.mark.parametrize("case", ["refused", "certificate", "no TLS", "cut off", "no DNS"])
def test_dns_over_https_that_fails_is_told_in_plain_words(here: Here, case: str) -> None:
    """No name of a class, which says something to nobody but its author."""
    by_tls = functools.partial(with_tls, here.authority.issue("localhost"))
    serve, words = {
        "refused": (never_answering, "localhost can't be asked (refused)"),
        "certificate": (
            with_tls(self_signed(here.folder, "localhost"), never_answering),
            "localhost can't be asked (its certificate does not verify)",
        ),
        "no TLS": (after_the_first_bytes(NO_TLS), "localhost can't be asked (no TLS, or none that is still"),
        "cut off": (after_the_first_bytes(b""), "localhost can't be asked (cut off)"),
        "no DNS": (by_tls(saying(NOT_DNS)), "what localhost answers is not DNS"),
    }[case]
    with serving(serve) as doh:
        url = f"https://localhost:{closed_port() if case == 'refused' else doh.port}/dns-query"
        names = {"UPSTREAM_HOSTS": "", "UPSTREAM_PRIVATE_HOSTS": HOST}
        diagnosis = here.diagnose(here.good(), **names, UPSTREAM_DOH_URL=url)
    assert_ends_at(diagnosis, "dns", 11, words)


@pytest.mark.usefixtures("networks")
def test_dns_over_https_that_cant_be_asked_is_only_said(here: Here, network: Network) -> None:
    with lied_to(here, network, [PUBLIC]) as (env, _, name):
        url = "https://dns.test:1/dns-query"
        diagnosis = diagnose(env, "--doh", url, cwd=here.folder, namespace=name)
    assert diagnosis["dns"]["status"] == "warning", diagnosis.printed
    assert "did not help: dns.test can't be asked (refused)" in diagnosis["dns"]["means"]
    assert diagnosis.exit_code == 0


# --- TCP --------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_a_closed_port(here: Here) -> None:
    diagnosis = diagnose(here.environment(closed_port()), cwd=here.folder)
    assert_ends_at(diagnosis, "tcp", 12, "refused", "firewall")
    assert diagnosis["tcp"]["facts"]["addresses"]["127.0.0.1"]["trouble"] == "refused"


def test_a_black_hole(here: Here) -> None:
    """A firewall that drops: what is sent vanishes, and the time is bounded."""
    upstream = ScriptedUpstream()
    with upstream.black_hole():
        port = int(upstream.url.rpartition(":")[2])
        started = time.monotonic()
        diagnosis = diagnose(here.environment(port), cwd=here.folder, timeout="1")
    upstream.close()
    assert_ends_at(diagnosis, "tcp", 12, "no answer", "vanish", "UPSTREAM_PROXY")
    assert time.monotonic() - started < 15


@pytest.mark.usefixtures("networks")
def test_an_address_is_not_tried_where_a_proxy_resolves_the_name(folder: Path) -> None:
    proxy = f"http://127.0.0.1:{closed_port()}"
    diagnosis = in_namespace(folder, {HOST: "NXDOMAIN"}, UPSTREAM_PROXY=proxy)
    assert_ends_at(diagnosis, "proxy", 13, "refused")
    assert (diagnosis["dns"]["status"], diagnosis["tcp"]["status"]) == ("warning", "skipped")


@pytest.mark.usefixtures("networks")
def test_no_route(folder: Path) -> None:
    diagnosis = in_namespace(folder, {HOST: ["1.2.3.4"]})
    assert_ends_at(diagnosis, "tcp", 12, "no route", "knows no way")


def test_the_address_that_works_is_told_from_the_one_that_does_not(here: Here) -> None:
    """IPv6 does not work here, IPv4 does: a warning, and the rest goes by what works."""
    with serving(here.good()) as server:
        env = here.environment(server.port, UPSTREAM_HOSTS=f"{HOST}=::1 127.0.0.1")
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis["tcp"]["status"] == "warning", diagnosis.printed
    assert "IPv6 does not work from here, IPv4 does" in diagnosis["tcp"]["means"]
    assert diagnosis["tls"]["status"] == "ok"


# --- the proxy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "UPSTREAM_PROXY"])
def test_a_proxy_that_lets_us_through(here: Here, network: Network, name: str) -> None:
    """The name is the proxy's to resolve: nothing here knows it."""
    port = network.serve(ConnectProxy(names=None))
    settings = {name: f"http://127.0.0.1:{port}", "UPSTREAM_HOSTS": ""}
    diagnosis = here.diagnose(here.good(), **settings)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis["dns"]["status"] == "warning"
    assert diagnosis["proxy"]["facts"]["named_by"] == name.upper()


def test_a_proxy_that_refuses_the_connection(here: Here) -> None:
    diagnosis = here.diagnose(here.good(), HTTPS_PROXY=f"http://127.0.0.1:{closed_port()}")
    assert_ends_at(diagnosis, "proxy", 13, "refused", "UPSTREAM_PROXY=none")


@pytest.mark.parametrize("given", ["", "user:Wr0ngSECRET@"], ids=["none given", "a wrong one given"])
def test_a_proxy_that_asks_for_a_password(here: Here, network: Network, given: str) -> None:
    port = network.serve(ConnectProxy(names=None, credential=("user", "right")))
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"http://{given}127.0.0.1:{port}")
    assert_ends_at(diagnosis, "proxy", 13, "asks for a password", "name:password@host")
    assert "SECRET" not in diagnosis.printed


def test_a_proxy_gets_the_password_that_is_set(here: Here, network: Network) -> None:
    port = network.serve(ConnectProxy(names=None, credential=("user", "r1ght@SECRET")))
    url = f"http://user:r1ght%40SECRET@127.0.0.1:{port}"
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=url)
    assert diagnosis["proxy"]["status"] == "ok", diagnosis.printed
    assert "SECRET" not in diagnosis.printed


@pytest.mark.parametrize(
    ("status", "words"), [("403 Forbidden", ("forbids",)), ("502 Bad Gateway", ("502", "log"))]
)
def test_a_proxy_that_forbids_or_fails(
    here: Here, network: Network, status: str, words: tuple[str, ...]
) -> None:
    port = network.serve(ConnectProxy(says=answer(b"", status=status)))
    diagnosis = here.diagnose(here.good(), HTTPS_PROXY=f"http://127.0.0.1:{port}")
    assert_ends_at(diagnosis, "proxy", 13, *words)


def test_a_proxy_that_never_answers(here: Here) -> None:
    with serving(never_answering) as proxy:
        diagnosis = here.diagnose(here.good(), timeout="1", HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
    assert_ends_at(diagnosis, "proxy", 13, "no answer", "takes long to get through to Coze", "log")


def test_a_proxy_that_is_none(here: Here) -> None:
    with serving(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9\r\n")) as proxy:
        diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"socks5h://127.0.0.1:{proxy.port}")
    assert_ends_at(diagnosis, "proxy", 13, "no proxy of this kind")


def test_a_socks_proxy_that_lets_us_through(here: Here, network: Network) -> None:
    """One that resolves names is given the name."""
    with serving(here.good()) as server:
        proxy = SocksProxy(names={f"{HOST}:{server.port}": server.port}, credential=("user", "r1ghtSECRET"))
        url = f"socks5h://user:r1ghtSECRET@127.0.0.1:{network.serve(proxy)}"
        env = here.environment(server.port, UPSTREAM_PROXY=url, UPSTREAM_HOSTS="")
        diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert set(proxy.asked) == {f"{HOST}:{server.port}"}
    assert "SECRET" not in diagnosis.printed


def test_a_socks_proxy_is_given_the_address_that_the_settings_fix(here: Here, network: Network) -> None:
    with serving(here.good()) as server:
        proxy = SocksProxy(names={f"127.0.0.1:{server.port}": server.port})
        url = f"socks5h://127.0.0.1:{network.serve(proxy)}"
        diagnosis = diagnose(here.environment(server.port, UPSTREAM_PROXY=url), cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert set(proxy.asked) == {f"127.0.0.1:{server.port}"}


@pytest.mark.parametrize("given", ["", "user:Wr0ngSECRET@"], ids=["none given", "a wrong one given"])
def test_a_socks_proxy_that_asks_for_a_password(here: Here, network: Network, given: str) -> None:
    port = network.serve(SocksProxy(credential=("user", "right")))
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"socks5h://{given}127.0.0.1:{port}")
    assert_ends_at(diagnosis, "proxy", 13, "asks for a password")
    assert "SECRET" not in diagnosis.printed


def test_a_socks_proxy_that_does_not_get_through(here: Here, network: Network) -> None:
    port = network.serve(SocksProxy())
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"socks5h://127.0.0.1:{port}")
    assert_ends_at(diagnosis, "proxy", 13, "SOCKS reply is 5", "does not get through")


@pytest.mark.usefixtures("networks")
def test_a_socks_proxy_that_is_told_addresses_is_not_blamed_for_dns(folder: Path) -> None:
    proxy = f"socks5://127.0.0.1:{closed_port()}"
    diagnosis = in_namespace(folder, {HOST: "NXDOMAIN"}, UPSTREAM_PROXY=proxy)
    assert_ends_at(diagnosis, "dns", 11, "no such name")
    assert diagnosis["proxy"]["status"] == "skipped"
    assert "DNS has none" in diagnosis["proxy"]["found"]


def test_a_proxy_whose_name_leads_nowhere(here: Here) -> None:
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY="http://proxy.invalid:3128", UPSTREAM_HOSTS="")
    assert_ends_at(diagnosis, "proxy", 13, "its name can't be resolved", "Mend its address")
    assert "gaierror" not in diagnosis.printed


@pytest.mark.parametrize("kind", ["socks5", "http"])
def test_a_proxy_that_is_silent_about_the_first_address_is_told_the_next(
    here: Here, network: Network, kind: str
) -> None:
    """As the broker does it."""
    with serving(here.good()) as server:
        silent, good = f"127.0.0.9:{server.port}", f"127.0.0.1:{server.port}"
        made: Any = SocksProxy if kind == "socks5" else ConnectProxy
        proxy = made(names={good: server.port}, silent={silent})
        env = here.environment(
            server.port,
            UPSTREAM_PROXY=f"{kind}://127.0.0.1:{network.serve(proxy)}",
            UPSTREAM_HOSTS=f"{HOST}=127.0.0.9 127.0.0.1",
        )
        with serving(never_answering, host="127.0.0.9", port=server.port):  # so that tcp has it first
            diagnosis = diagnose(env, cwd=here.folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert set(proxy.asked) == {silent, good}


def test_names_of_facts_stay_what_they_are_whatever_a_proxy_s_user_is_called(
    here: Here, network: Network
) -> None:
    """And what the proxy's user is called is in none of their values."""
    port = network.serve(ConnectProxy(says=answer(b"", status="502 Bad Gateway")))
    url = f"http://variables:named_by@127.0.0.1:{port}"
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=url)
    assert set(diagnosis["proxy"]["facts"]) == {"proxy", "named_by", "variables"}
    assert "variables" not in str(list(diagnosis["proxy"]["facts"].values()))


def test_a_proxy_that_is_reached_by_tls_itself(here: Here, network: Network) -> None:
    port = network.serve(ConnectProxy(names=None), here.authority.context("127.0.0.1"))
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"https://127.0.0.1:{port}")
    assert diagnosis["proxy"]["status"] == "ok", diagnosis.printed
    assert diagnosis["tls"]["status"] == "ok"


def test_a_proxy_whose_certificate_is_not_good(here: Here, network: Network) -> None:
    tls = server_context(self_signed(here.folder, "127.0.0.1"))
    port = network.serve(ConnectProxy(names=None), tls)
    diagnosis = here.diagnose(here.good(), UPSTREAM_PROXY=f"https://127.0.0.1:{port}")
    assert_ends_at(diagnosis, "proxy", 13, "certificate does not verify")


def test_a_proxy_that_is_set_and_does_not_apply(here: Here) -> None:
    settings = {"HTTPS_PROXY": f"http://127.0.0.1:{closed_port()}"}
    by_no_proxy = here.diagnose(here.good(), **settings, NO_PROXY=HOST)
    by_setting = here.diagnose(here.good(), **settings, UPSTREAM_PROXY="none")
    assert (by_no_proxy.exit_code, by_setting.exit_code) == (0, 0)
    assert "NO_PROXY" in by_no_proxy["proxy"]["found"]
    assert "UPSTREAM_PROXY=none" in by_setting["proxy"]["found"]


# --- TLS ----------------------------------------------------------------------------------------------------


def dated(server_ahead: timedelta) -> bytes:
    """An answer from a server with another clock."""
    at = time.gmtime(time.time() + server_ahead.total_seconds())
    date = time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", at)
    body = b'{"code":700012006,"msg":"access token invalid"}'
    return http_answer(body, "application/json", "401 Unauthorized", date)


def test_an_expired_certificate(here: Here) -> None:
    pem = here.authority.issue(HOST, since=-9 * DAY, until=-2 * DAY)
    diagnosis = here.diagnose(with_tls(pem, saying(dated(timedelta()))))
    assert_ends_at(diagnosis, "tls", 14, "expired on", "out of date", "server's clock agrees")


def test_a_chain_whose_authority_is_over() -> None:
    """The server's own certificate is good: nobody is told that it expired in the future."""
    now = time.time()
    shown = Shown("CN=a", "CN=b", ("a",), now - 10, now + 10, is_self_signed=False)
    finding = judged_tls(Refused(HOST, EXPIRED, shown, 0.0, now))
    assert (finding.status, "in the chain" in finding.found) == ("failed", True)
    assert "UPSTREAM_CA_FILE" in finding.means


def test_a_clock_that_is_ahead(here: Here) -> None:
    """The certificate expired by this clock, and the server's own clock says another day."""
    pem = here.authority.issue(HOST, since=-9 * DAY, until=-2 * DAY)
    diagnosis = here.diagnose(with_tls(pem, saying(dated(-5 * DAY))))
    assert_ends_at(diagnosis, "tls", 14, "clock is 5 days ahead of the server's", "NTP")


def test_a_clock_that_is_behind(here: Here) -> None:
    pem = here.authority.issue(HOST, since=2 * DAY)
    diagnosis = here.diagnose(with_tls(pem, saying(dated(3 * DAY))))
    assert_ends_at(diagnosis, "tls", 14, "valid only from", "clock is 3 days behind the server's", "NTP")


def test_a_clock_that_is_ahead_by_minutes(here: Here) -> None:
    """The certificate is good all the same; assertions are not."""
    pem = here.authority.issue(HOST)
    diagnosis = here.diagnose(with_tls(pem, saying(dated(timedelta(minutes=-5)))))
    assert diagnosis["http"]["status"] == "warning", diagnosis.printed
    assert "ahead of Coze's" in diagnosis["http"]["means"]
    assert 290 < diagnosis["http"]["facts"]["clock_ahead_seconds"] < 320


def test_a_self_signed_certificate(here: Here) -> None:
    diagnosis = here.diagnose(with_tls(self_signed(here.folder, HOST), never_answering), timeout="1")
    assert_ends_at(diagnosis, "tls", 14, "self-signed", "UPSTREAM_CA_FILE", "can't be turned off")


def test_a_certificate_for_another_name(here: Here) -> None:
    pem = here.authority.issue("portal.example", "*.portal.example")
    diagnosis = here.diagnose(with_tls(pem, saying(dated(timedelta()))))
    assert_ends_at(diagnosis, "tls", 14, "for portal.example, *.portal.example, not for coze.test", "DNS")


def test_a_gateway_that_opens_the_encryption(here: Here) -> None:
    """It has an authority of its own, which is no public one."""
    pem = make_authority(here.folder, "Corporate Inspection").issue(HOST)
    diagnosis = here.diagnose(with_tls(pem, saying(dated(timedelta()))))
    assert_ends_at(
        diagnosis, "tls", 14, "Corporate Inspection", "no public authority", "opens the encryption"
    )
    assert "Corporate Inspection" in diagnosis["tls"]["facts"]["issuer"]


@pytest.mark.parametrize("issuer", ["DigiCert Inc", "DigiCert, Inc."])
def test_a_chain_that_is_not_whole(here: Here, issuer: str) -> None:
    """The issuer has the name of a public authority, and nothing leads to it."""
    pem = make_authority(here.folder, issuer).issue(HOST)
    diagnosis = here.diagnose(with_tls(pem, saying(dated(timedelta()))))
    assert_ends_at(diagnosis, "tls", 14, "incomplete")


UNFIT: dict[str, tuple[int, int, Any, tuple[str, ...]]] = {
    "short key": (0, 1024, None, ("server's key is too short", "2048 bits")),
    "short key of an authority": (1024, 0, None, ("authority's key in the chain is too short",)),
    "a client's": (0, 0, ExtendedKeyUsageOID.CLIENT_AUTH, ("not made for this purpose", "for a server")),
    "SHA-1": (2048, 0, None, ("digest that is broken", "SHA-1")),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_certificate_that_is_not_fit(here: Here, case: str) -> None:
    """Whoever vouches for it: the authority is one that is trusted."""
    authority_bits, bits, purpose, words = UNFIT[case]
    signer = rsa_key(authority_bits) if authority_bits else None
    authority = make_authority(here.folder, "Unfit", signer)
    pem = authority.issue(HOST, key=rsa_key(bits) if bits else None, purpose=purpose)
    if case == "SHA-1" and signer is not None:
        signed_over_sha1(pem, signer)
    server = with_tls(pem, saying(dated(timedelta())))
    diagnosis = here.diagnose(server, UPSTREAM_CA_FILE=str(authority.file))
    assert_ends_at(diagnosis, "tls", 14, *words, "can't be turned off")


def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def test_a_tls_handshake_that_gets_no_answer(here: Here) -> None:
    diagnosis = here.diagnose(never_answering, timeout="1")
    assert_ends_at(diagnosis, "tls", 14, "no answer in time", "SNI", "MTU")


def test_a_tls_handshake_that_is_cut(here: Here) -> None:
    """As firewalls do that look at the name in it."""

    def cut(connection: socket.socket) -> None:
        connection.recv(1)  # what is left unread makes it a reset

    diagnosis = here.diagnose(cut)
    assert_ends_at(diagnosis, "tls", 14, "cut during the TLS handshake")


def test_a_server_that_speaks_no_tls(here: Here) -> None:
    diagnosis = here.diagnose(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert_ends_at(diagnosis, "tls", 14, "speaks no TLS")


def test_slow_tls_is_told_of(here: Here) -> None:
    """It goes through, so it is a warning."""
    good = here.good()

    def slow(connection: socket.socket) -> None:
        threading.Event().wait(2.2)
        good(connection)

    diagnosis = here.diagnose(slow, timeout="6")
    assert diagnosis["tls"]["status"] == "warning", diagnosis.printed
    assert "very long" in diagnosis["tls"]["means"]


# --- HTTP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(
            http_answer(b"<html>Log in</html>", "text/html"),
            ("HTML page, status 200", "captive portal"),
            id="html",
        ),
        pytest.param(
            http_answer(b"<html>", "text/html", "502 Bad Gateway"),
            ("HTML page, status 502", "gateway"),
            id="502",
        ),
        pytest.param(
            http_answer(b"", "text/plain", "302 Found", "Location: https://portal.example/login?t=SECRET"),
            ("redirected to portal.example", "captive portal"),
            id="redirect",
        ),
        pytest.param(
            http_answer(b"", "text/plain", "302 Found", "Location: https://[portal/login?t=SECRET"),
            ("redirected to another place", "captive portal"),
            id="redirect to no address",
        ),
        pytest.param(
            http_answer(b'{"hello":1}', "application/json"),
            ("JSON that is not Coze's",),
            id="another service",
        ),
        pytest.param(
            http_answer(b'{"code":5000,"msg":"Internal error"}', "application/json", "500 Oops"),
            ("Coze answers 500", "trouble"),
            id="Coze's own 500",
        ),
        pytest.param(b"not HTTP at all\r\n\r\n", ("no answer",), id="not HTTP"),
    ],
)
def test_an_answer_that_is_not_cozes(here: Here, answer: bytes, words: tuple[str, ...]) -> None:
    diagnosis = here.diagnose(with_tls(here.authority.issue(HOST), saying(answer)))
    assert_ends_at(diagnosis, "http", 15, *words)
    assert "SECRET" not in diagnosis.printed


def test_a_server_that_takes_a_request_and_says_nothing(here: Here) -> None:
    pem = here.authority.issue(HOST)
    diagnosis = here.diagnose(with_tls(pem, never_answering), timeout="1")
    assert_ends_at(diagnosis, "http", 15, "no answer")


def reply(status: int, body: dict[str, Any] | None, headers: dict[str, str] | None = None) -> Reply:
    content = b"<html>" if body is None else json.dumps(body).encode()
    return Reply(Answered(status, httpx.Headers(headers or {}), content), 0.1)


# --- region and credential ----------------------------------------------------------------------------------


def test_the_wrong_region(folder: Path, sandbox: SandboxControl) -> None:
    """An app of one Coze, and the address of another."""
    with in_subprocess() as other:
        coze = {**sandbox.environment, "COZE_API_BASE": other.base_url}
        diagnosis = diagnose(environment(folder, coze), cwd=folder)
    assert_ends_at(diagnosis, "region", 16, "kid not been registred", "region", "PUBLIC_KEY_ID")
    assert diagnosis["credential"]["status"] == "skipped"
    assert diagnosis["cors"]["status"] == "ok"  # it stands on another step


async def test_the_wrong_region_where_the_other_one_knows_the_app(
    folder: Path, sandbox: SandboxControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other region is asked with an assertion made for it, and then named. Here it is the sandbox."""
    with in_subprocess() as wrong:
        coze = {**sandbox.environment, "COZE_API_BASE": wrong.base_url, "BROKER_DATA_DIR": str(folder)}
        for name, value in coze.items():
            monkeypatch.setenv(name, value)
        host = wrong.base_url.removeprefix("http://")
        way = Way(settings.load(), other_region={host: sandbox.url})
        results = {each.step.name: each.finding for each in await all_of(way, STEPS_OF_THE_WAY)}
    found = results["region"]
    assert (found.status, results["credential"].status) == ("failed", "skipped")
    assert sandbox.url in found.means
    assert f"COZE_API_BASE={sandbox.url}" in found.do


@pytest.mark.parametrize("answer", ["none", "no JSON"])
async def test_another_region_that_does_not_say_so_is_not_said_to_know_the_app(
    folder: Path, sandbox: SandboxControl, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """From many networks one of the regions is out of reach."""
    page = saying(http_answer(b"<html>", "text/html", "403 Forbidden"))
    with in_subprocess() as wrong, serving(page) as other:
        coze = {**sandbox.environment, "COZE_API_BASE": wrong.base_url, "BROKER_DATA_DIR": str(folder)}
        for name, value in coze.items():
            monkeypatch.setenv(name, value)
        host = wrong.base_url.removeprefix("http://")
        url = f"http://127.0.0.1:{closed_port() if answer == 'none' else other.port}"
        way = Way(settings.load(), other_region={host: url})
        found = {each.step.name: each.finding for each in await all_of(way, STEPS_OF_THE_WAY)}["region"]
    assert found.status == "failed"
    assert "or the app belongs to the other region" in found.means
    assert url not in found.do


@pytest.mark.parametrize(
    ("body", "status", "means"),
    [
        ({"error_code": "invalid_client", "error_message": "iss is not the client of this kid"}, 401, "app"),
        ({"error_code": "invalid_client", "error_message": "app associated with no account"}, 401, "app"),
        ({"error_code": "invalid_request", "error_message": "invalid jwt: expired"}, 400, "clock"),
        ({"error_code": "internal_error", "error_message": "Oops"}, 500, "trouble"),
        ({"error_code": "slow_down", "error_message": "too many requests"}, 429, "too much to do"),
        (None, 403, "no answer of Coze's"),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_what_the_token_endpoint_says_of_an_app(body: dict[str, str] | None, status: int, means: str) -> None:
    done = Exchanged.by(reply(status, body))
    finding = refused_app("COZE_JWT_OAUTH_…", done)
    assert not done.is_unknown_kid
    assert finding.status == "failed"
    assert means in finding.means


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ({"code": 4200, "msg": "not found"}, 404, "ok"),
        (None, 404, "warning"),
        (None, 200, "warning"),
        (None, 302, "warning"),
        ({"code": 5000, "msg": "Oops"}, 500, "failed"),
        ({"code": 4100, "msg": "invalid"}, 200, "failed"),
    ],
)
def test_only_an_answer_of_cozes_says_that_a_credential_is_taken(
    body: dict[str, object] | None, status: int, expected: str
) -> None:
    answer = reply(status, body, {"X-Tt-Logid": "1"} if body else {})
    assert judged("COZE_API_TOKEN", answer, is_app=False, has_other_region=True).status == expected


WAF = {"Content-Type": "text/html; charset=utf-8", "Server": "Tengine"}


JUDGES: dict[str, Callable[[Reply], Finding]] = {
    "token": lambda reply: judged("X", reply, is_app=False, has_other_region=True),
    "app": lambda reply: refused_app("X", Exchanged.by(reply)),
    "browser's app": lambda reply: judged_browser("X", reply),
    "upload": judged_upload,
}


@pytest.mark.parametrize(
    "finding",
    [
        pytest.param(judge(reply(status, None, WAF)), id=f"{name} {status}")
        for status in (401, 403)
        for name, judge in JUDGES.items()
    ],
)
def test_a_refusal_that_is_not_cozes_says_nothing_of_the_credential(finding: Finding) -> None:
    """A firewall for the web, or a gateway: it is told by what it says of itself."""
    assert finding.status == "failed"
    assert "no answer of Coze's" in finding.means
    assert "text/html, server 'Tengine'" in finding.found
    assert "refuse" not in finding.found


def test_a_firewall_for_the_web_that_takes_no_credential(here: Here) -> None:
    """What has none it lets through, so the steps before are well."""

    def answer(connection: socket.socket) -> None:
        if b"authorization:" in head_of(connection).lower():
            page = http_answer(b"<html>", "text/html", "403 Forbidden", "Server: Tengine \x1b[2J")
        else:
            page = http_answer(b'{"code":700012006,"msg":"access token invalid"}', "application/json")
        connection.sendall(page)

    diagnosis = here.diagnose(with_tls(here.authority.issue(HOST), answer))
    assert_ends_at(diagnosis, "credential", 17, "the answer is 403", "text/html", "Tengine", "in between")
    assert "\\u001b" not in diagnosis.printed


def test_a_fixed_token_is_sent_to_no_other_region(here: Here) -> None:
    diagnosis = here.diagnose(here.good(), COZE_API_TOKEN=TOKEN)
    assert diagnosis["region"]["status"] == "skipped"


def test_a_token_that_coze_refuses(here: Here) -> None:
    diagnosis = here.diagnose(here.good(), COZE_API_TOKEN=TOKEN)
    assert_ends_at(diagnosis, "credential", 17, "personal access token", "700012006", "expired, revoked")
    assert "SECRET" not in diagnosis.printed


def test_an_app_whose_key_is_anothers(folder: Path, sandbox: SandboxControl) -> None:
    env = environment(folder, sandbox.environment)
    env["COZE_JWT_OAUTH_PRIVATE_KEY_FILE_PATH"] = env["COZE_BROWSER_OAUTH_PRIVATE_KEY_FILE_PATH"]
    diagnosis = diagnose(env, cwd=folder)
    assert_ends_at(diagnosis, "credential", 17, "gives no access token", "don't belong together")


def test_a_clock_that_coze_does_not_take(folder: Path, sandbox: SandboxControl) -> None:
    """The broker's clock is an hour ahead: the whole process's, by libfaketime."""
    faketime = needs.executable("faketime")
    env = environment(folder, sandbox.environment)
    command = [faketime, "-f", "+1h", *COMMAND, "doctor", "--timeout", "2"]
    done = subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 17, done.stdout + done.stderr
    assert "clock" in done.stdout
    assert "NTP" in done.stdout


def test_an_app_of_the_browsers_that_may_do_too_much_is_told_of(
    folder: Path, sandbox: SandboxControl
) -> None:
    env = environment(folder, sandbox.environment)
    for end in ("CLIENT_ID", "PUBLIC_KEY_ID", "PRIVATE_KEY_FILE_PATH"):
        env[f"COZE_BROWSER_OAUTH_{end}"] = env[f"COZE_JWT_OAUTH_{end}"]
    diagnosis = diagnose(env, cwd=folder)
    assert diagnosis.exit_code == 0, diagnosis.printed
    assert diagnosis["credential"]["status"] == "warning"
    assert "uploadFile" in diagnosis["credential"]["do"]


# --- CORS and the upload ------------------------------------------------------------------------------------


def test_cors_off(folder: Path, sandbox: SandboxControl) -> None:
    sandbox.fail(path="/v1/files/upload", cors=False)
    settings = {"BROKER_ALLOWED_ORIGINS": "https://app.example"}
    diagnosis = diagnose(environment(folder, sandbox.environment, **settings), cwd=folder)
    assert_ends_at(diagnosis, "cors", 18, "https://app.example", "by way of the broker")
    assert diagnosis["credential"]["status"] == "ok"


def test_cors_off_is_no_failure_where_nothing_is_to_go_direct(here: Here) -> None:
    here.sandbox.fail(path="/v1/files/upload", cors=False)
    diagnosis = here.diagnose(here.good())
    assert (diagnosis.exit_code, diagnosis["cors"]["status"]) == (0, "warning")


def test_cors_off_is_no_failure_once_its_advice_is_followed(folder: Path, sandbox: SandboxControl) -> None:
    sandbox.fail(path="/v1/files/upload", cors=False)
    diagnosis = diagnose(environment(folder, sandbox.environment, BROKER_DIRECT_MAX_BYTES="0"), cwd=folder)
    assert (diagnosis.exit_code, diagnosis["cors"]["status"]) == (0, "warning"), diagnosis.printed


def test_an_upload_that_coze_refuses(here: Here) -> None:
    here.sandbox.fail(path="/v1/files/upload", code=4101, msg=f"no permission for {OURS}")
    diagnosis = here.diagnose(here.good(), "--upload")
    assert_ends_at(diagnosis, "upload", 19, "4101", "uploadFile")
    assert "SECRET" not in diagnosis.printed


# --- the screen, secrets, and the end ------------------------------------------------------------------


def test_the_screen_is_plain_in_a_pipe_and_coloured_on_a_terminal(here: Here) -> None:
    env = here.environment(closed_port()) | {"TERM": "xterm-256color", "COLUMNS": "100"}
    piped = run(env, "--timeout", "2", cwd=here.folder)
    shown = on_a_terminal(env, here.folder)
    assert "\x1b" not in piped.stdout
    assert "\x1b[31m" in shown
    for text in (piped.stdout, re.sub(r"\x1b\[[0-9;]*m", "", shown)):
        assert re.search(r"FAIL +tcp +port \d+: 127.0.0.1: refused", text)
        assert "The way to Coze ends at tcp (exit code 12" in text


def on_a_terminal(env: dict[str, str], folder: Path) -> str:
    main, side = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "doctor", "--timeout", "2"], env=env, cwd=folder, stdout=side, stderr=side
    ):
        os.close(side)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal's end looks
            while piece := os.read(main, 65536):
                shown += piece
    os.close(main)
    return shown.decode()


def test_no_secret_is_shown_whoever_repeats_it(here: Here) -> None:
    """A server that sends everything back it was sent: in its sentences, its headers, its certificate."""
    token = here.sandbox.environment["COZE_API_TOKEN"]
    says = f'{{"code":4100,"msg":"{token} \\u001b[2J is bad","detail":{{}}}}'.encode()
    answer = http_answer(says, "application/json", "401 Unauthorized", f"X-Tt-Logid: {token}")
    diagnosis = here.diagnose(with_tls(here.authority.issue(HOST), saying(answer)))
    assert diagnosis.exit_code == 17, diagnosis.printed
    assert token not in diagnosis.printed
    assert "\x1b" not in diagnosis.printed
    assert "u001b" not in diagnosis.printed


@pytest.mark.parametrize("as_json", [False, True])
def test_control_c_ends_it_at_once_with_what_was_found(here: Here, as_json: bool) -> None:
    reached = threading.Event()

    def hold(connection: socket.socket) -> None:
        if connection.recv(1):  # the handshake's first byte; the step tcp sends none
            reached.set()
            never_answering(connection)

    with serving(hold) as server:
        command = [*COMMAND, "doctor", "--timeout", "30", *(["--json"] if as_json else [])]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            command, env=here.environment(server.port), cwd=here.folder, **pipes
        ) as process:
            assert reached.wait(30)
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=10)
    assert (process.returncode, said) == (130, "")
    assert time.monotonic() - started < 5
    if as_json:
        report = json.loads(printed)
        assert [each["step"] for each in report["steps"]] == ["settings", "dns", "tcp", "proxy"]
        assert (report["ok"], report["exit_code"], report["interrupted"]) == (False, 130, True)
        assert report["upstream"] == f"https://{HOST}:{server.port}"
    else:
        assert [line.split()[1] for line in printed.splitlines()[:4]] == ["settings", "dns", "tcp", "proxy"]
        assert "Interrupted" in printed
        assert "exit code 130" in printed


@pytest.mark.parametrize("module", ["typer", "pydantic", "broker.settings", "broker.doctor.finding"])
def test_control_c_while_it_loads_leaves_no_trace(here: Here, module: str) -> None:
    """Python tells of each module that it has loaded."""
    command = [sys.executable, "-X", "importtime", "-m", "broker", "doctor", "--json"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=here.environment(1), cwd=here.folder, **pipes) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.rpartition("|")[2].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not printed or json.loads(printed)["interrupted"]


@pytest.mark.parametrize(
    "wrong",
    [("--doh", "http://dns.example/q"), ("--doh", "https://[x"), ("--timeout", "0"), ("--timeout", "99")],
)
def test_options_that_are_none(folder: Path, wrong: tuple[str, str]) -> None:
    assert run(environment(folder, {}), *wrong, cwd=folder).returncode == 2


def test_the_exit_codes_are_documented_as_they_are() -> None:
    documented = (Path(__file__).parent.parent / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", documented, re.MULTILINE)
    assert rows == [(str(step.exit_code), step.name) for step in (*STEPS_OF_THE_WAY, UPLOAD)]


@pytest.fixture(autouse=True)
def _no_namespace_is_left() -> Iterator[None]:
    yield
    found = Path("/etc/netns")
    assert not found.is_dir() or not list(found.glob(f"{OWN_NAMESPACE}*"))
