"""What operators are given works as it stands: the nginx site, the systemd unit, and the words about them."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from broker import serve
from broker.cli import app
from broker.settings import Settings
from tests.support.broker_process import Broker, clean_environment, stop
from tests.support.nginx import free_port, running_nginx
from tests.support.raw_http import Connection, head
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for
from tests.support.workers import running_workers

ROOT = Path(__file__).parent.parent
SITE = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy" / "coze-upload-broker.service").read_text(encoding="utf-8")
WORDS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
CALLER = "127.0.0.2"


# --- nginx ------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """The broker of two workers, as the world sees it through nginx."""

    url: str
    broker: Broker
    folder: Path
    tls: ssl.SSLContext

    def client(self) -> httpx.Client:
        transport = httpx.HTTPTransport(verify=self.tls, local_address=CALLER)
        return httpx.Client(base_url=self.url, transport=transport, headers=self.broker.auth(), timeout=30)


@pytest.fixture(scope="module")
def site(session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("site"), free_port()
    url = f"https://127.0.0.1:{port}"
    certificate = make_certificate(folder)
    settings = {"BROKER_PUBLIC_URL": url, "BROKER_TRUSTED_PROXIES": "1"}
    with (
        running_workers(folder / "broker", session_sandbox.environment, 2, **settings) as broker,
        running_nginx(folder / "nginx", placed(SITE, port, broker.url, folder), port) as nginx,
    ):
        yield Site(url, broker, nginx, ssl.create_default_context(cafile=str(certificate)))


def placed(site: str, port: int, broker_url: str, folder: Path) -> str:
    """The site as it stands, but for its port, its certificate's place and the broker's port."""
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "    listen [::]:443 ssl;\n": f"    listen [::1]:{port} ssl;\n" if has_ipv6() else "",
        "/etc/letsencrypt/live/uploads.example.com/": f"{folder}/",
        "127.0.0.1:2026": broker_url.removeprefix("http://"),
    }
    for old, new in changes.items():
        assert old in site
        site = site.replace(old, new)
    return site


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def make_certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "uploads.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives = [x509.DNSName("uploads.example.com"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "privkey.pem").write_bytes(secret)
    path = folder / "fullchain.pem"
    path.write_bytes(certificate.public_bytes(pem))
    return path


def test_a_file_goes_through_nginx_as_it_comes(site: Site, sandbox: SandboxControl) -> None:
    """Its first bytes are at Coze before its last are sent, and nothing of it is on nginx's disk."""
    content = b"a,b\n" * 500_000
    secure = Connection(site.url.replace("https", "http"))
    secure.socket = site.tls.wrap_socket(secure.socket, server_hostname="127.0.0.1")
    headers = {
        **site.broker.auth(),
        "Content-Type": "text/csv",
        "Content-Disposition": 'attachment; filename="a.csv"',
        "Content-Length": str(len(content)),
    }
    with secure:
        secure.send(head("/proxy/upload", [*headers.items()]) + content[:1_000_000])
        wait_for(lambda: [e for e in sandbox.events(kind="upload", outcome="open") if e["body_bytes"] > 0])
        assert [file for file in (site.folder / "body").rglob("*") if file.is_file()] == []
        secure.send(content[1_000_000:])
        answer = secure.answer()
    assert answer.status_code == 200, answer.text
    assert answer.json()["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_file_larger_than_nginx_s_own_limit_goes_through(site: Site, sandbox: SandboxControl) -> None:
    content = b"a,b\n" * 5_000_000
    with site.client() as client:
        answer = client.post("/proxy/upload", files={"file": ("a.csv", content)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(content)


@pytest.mark.parametrize("size", [1, 8_000_000])
def test_a_refusal_comes_back_through_nginx_as_the_broker_says_it(site: Site, size: int) -> None:
    """Also when it comes long before the file's end."""
    with site.client() as client:
        headers = {"Authorization": "Bearer cub_sk_nothing"}
        answer = client.post("/proxy/upload", files={"file": ("a.csv", b"x" * size)}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credential")
    assert answer.headers["x-request-id"]


def test_the_caller_is_whoever_came_to_nginx(site: Site) -> None:
    with site.client() as client:
        for headers in ({}, {"X-Forwarded-For": "1.1.1.1"}, {"X-Forwarded-For": "1.1.1.1, 9.9.9.9"}):
            answer = client.get("/health", headers=headers)
            assert site.broker.record(answer.headers["x-request-id"])["client_ip"] == CALLER


def test_a_token_minted_through_nginx_says_where_to_go(site: Site, sandbox: SandboxControl) -> None:
    with site.client() as client:
        token = client.post("/token", json={"size": 1, "route": "proxy"}).json()
        assert token["upload_url"] == f"{site.url}/proxy/upload"
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        answer = client.post(token["upload_url"], files={"file": ("a.csv", b"1")}, headers=headers)
    assert answer.status_code == 200, answer.text


def test_nginx_stays_within_what_the_broker_allows() -> None:
    """Whichever gives up first says why, and that is to be the broker."""
    seconds = {name: int(value) for name, value in re.findall(r"(\w+_time\w*) (\d+)s;", SITE)}
    default = Settings.model_fields
    assert seconds["client_body_timeout"] > default["broker_client_idle_seconds"].default
    assert seconds["proxy_send_timeout"] > default["broker_read_timeout_seconds"].default
    waits = ("broker_pool_wait_seconds", "broker_scanner_timeout_seconds", "broker_read_timeout_seconds")
    assert seconds["proxy_read_timeout"] > sum(default[name].default for name in waits)
    assert seconds["keepalive_timeout"] < serve.KEEP_ALIVE_SECONDS


# --- systemd ----------------------------------------------------------------------------------------------


def directive(name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    assert len(found) == 1, name
    return str(found[0])


def test_the_unit_s_command_and_settings_start_a_broker(folder: Path, sandbox: SandboxControl) -> None:
    """As systemd does it: with the unit's environment, in its folder, stopped by its signal in its time."""
    state = folder / "state"
    given = dict(part.split("=", 1) for part in shlex.split(directive("Environment")))
    assert given["BROKER_DATA_DIR"] == directive("WorkingDirectory")
    given["BROKER_DATA_DIR"] = str(state)
    program, *arguments = shlex.split(directive("ExecStart"))
    assert program.endswith("/bin/broker")
    state.mkdir()
    environment = {**clean_environment(), **sandbox.environment, **given, "PORT": "0"}
    log = folder / "log"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "broker", *arguments]
        process = subprocess.Popen(command, env=environment, cwd=state, stderr=file, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: '"Application startup complete."' in log.read_text() or process.poll())
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(int(directive("TimeoutStopSec"))) in (0, -signal.SIGTERM)
    finally:
        stop(process)
    assert (state / "broker.db").exists()


def test_systemd_waits_longer_than_the_broker_takes_to_stop() -> None:
    grace = Settings.model_fields["broker_shutdown_grace_seconds"].default
    stop_seconds = grace + serve.LAST_WORDS_SECONDS + serve.CLOSING_SECONDS
    assert int(directive("TimeoutStopSec")) > stop_seconds
    assert directive("KillMode") == "mixed", "the workers hear it from the process that looks after them"


def test_only_the_broker_can_read_what_it_keeps() -> None:
    assert (directive("UMask"), directive("StateDirectoryMode")) == ("0077", "0700")
    assert directive("User") == directive("StateDirectory") == "coze-upload-broker"


# --- the words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [WORDS, UNIT, SITE], ids=["operations.md", "unit", "site"])
def test_every_setting_that_is_named_exists(text: str) -> None:
    names = {name.upper() for name in Settings.model_fields}
    named = set(re.findall(r"\b(?:BROKER|COZE)_[A-Z_]*[A-Z]\b", text))
    assert named - names == set()


def test_every_command_that_is_named_exists() -> None:
    commands = set(
        re.findall(r"(?<!-)\bbroker ((?:(?:keys|signing-keys|audit) )?[a-z][a-z-]*)", code_of(WORDS))
    )
    assert {"migrate", "signing-keys rotate", "keys list"} <= commands
    unknown = [each for each in commands if CliRunner().invoke(app, [*each.split(), "--help"]).exit_code]
    assert unknown == []


def code_of(text: str) -> str:
    found = re.findall(r"```sh\n(.+?)```|`(broker [^`]+)`", text, re.DOTALL)
    return "\n".join("".join(match) for match in found)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", WORDS)
    assert targets
    assert [target for target in targets if not (ROOT / "docs" / target).exists()] == []


def test_what_is_deployed_is_in_the_source_package() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"deploy"' in project
    assert '"docs"' in project
