"""Settings are read once, checked together and reported together; what is unsafe does not start."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import SecretStr

from broker import settings
from broker.cli import app as app_of_commands
from tests.support import needs
from tests.support.broker_process import COMMAND, clean_environment, run_command
from tests.support.waiting import wait_for

GOOD = {
    "COZE_API_BASE": "https://api.coze.cn",
    "COZE_API_TOKEN": "sat_1",
    "PORT": "0",
    "BROKER_LOG_FORMAT": "json",
}
CANARY = "canary-4711"
ROOT = Path(__file__).parent.parent
GOOD_PEPPER = "3fd1c1f1f8b04c0d8a5e2b9d7c6a1e0f"


def pem(key: Any, encryption: Any = None) -> str:
    text: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )
    return text.decode()


@functools.cache
def rsa_pem(bits: int = 2048) -> str:
    return pem(rsa.generate_private_key(65537, bits))


def app(prefix: str = "COZE_JWT_OAUTH", **changes: str) -> dict[str, str]:
    parts = {"CLIENT_ID": "1", "PUBLIC_KEY_ID": "kid", "PRIVATE_KEY": rsa_pem(), **changes}
    return {f"{prefix}_{name}": value for name, value in parts.items() if value}


def serve(folder: Path, *arguments: str, **given: str) -> tuple[int, str]:
    """``broker serve`` with these settings on top of good ones: its exit code and all that it said."""
    environment = {**clean_environment(), **GOOD, "BROKER_DATA_DIR": str(folder / "data"), **given}
    done = run_command("serve", *arguments, environment=environment, cwd=folder)
    return done.returncode, done.stdout + done.stderr


# --- what does not start: each is a sentence, never a trace -----------------------------------------

EC_KEY = pem(ec.generate_private_key(ec.SECP256R1()))
LOCKED_KEY = pem(ed25519.Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"x"))
NOT_RSA = "COZE_JWT_OAUTH_PRIVATE_KEY (or _FILE_PATH): not an RSA private key of 2048 bits"

REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "no upstream": ({"COZE_API_BASE": ""}, "COZE_API_BASE is not set"),
    "plain http": ({"COZE_API_BASE": "http://api.coze.cn"}, "COZE_API_BASE: plain http"),
    "no scheme": ({"COZE_API_BASE": "api.coze.cn"}, "COZE_API_BASE: not an address"),
    "password": ({"COZE_API_BASE": "https://:pw@api.coze.cn"}, "COZE_API_BASE: not an address"),
    "query": ({"COZE_API_BASE": "https://api.coze.cn?a=1"}, "COZE_API_BASE: not an address"),
    "bad port": ({"COZE_API_BASE": "https://api.coze.cn:x"}, "COZE_API_BASE: not an address"),
    "line end": ({"COZE_API_BASE": "https://api.coze.cn\nx"}, "COZE_API_BASE: not an address"),
    "blank": ({"COZE_API_BASE": "https://api coze.cn"}, "COZE_API_BASE: not an address"),
    **{
        f"{name} {host}": (
            {name: f"https://{host}{path}"},
            f"{name}: not an address like https://host[:port]{path}{why}",
        )
        for name, path in (("COZE_API_BASE", ""), ("UPSTREAM_DOH_URL", "/dns-query"))
        for host, why in (
            ("a.example:0", ": nothing listens on port 0."),
            ("[::1%25lo]", ": a zone (%) is of one machine alone."),
            ("a..b", ": no host has such a name."),
            ("-a.example", ": no host has such a name."),
            ("a_b.256.1.1.1..", ": no host has such a name."),
            ("256.1.1.1", ": no host has such a name."),
            ("10.1", ": write the host as 10.0.0.1."),
            ("0x7f.1:8443", ": write the host as 127.0.0.1."),
            ("2130706433", ": write the host as 127.0.0.1."),
            ("010.0.0.1", ": write the host as 8.0.0.1."),
            ("a.example:", "."),
            ("a.example?", "."),
            (f"u:{CANARY}/@a.example", "."),
            (f"a.example?token={CANARY}", "."),
            (f"a.example#{CANARY}", "."),
        )
    },
    "public url": ({"BROKER_PUBLIC_URL": "upload.example.com"}, "BROKER_PUBLIC_URL: not an address"),
    "public url: line end": (
        {"BROKER_PUBLIC_URL": "https://a.example\n"},
        "BROKER_PUBLIC_URL: not an address",
    ),
    "public url: letters": (
        {"BROKER_PUBLIC_URL": "https://bücher.example"},
        "BROKER_PUBLIC_URL: not an address",
    ),
    "no credential": ({"COZE_API_TOKEN": ""}, "COZE_API_TOKEN or the four COZE_JWT_OAUTH_* settings"),
    "line end in token": ({"COZE_API_TOKEN": "sat_1\nsat_2"}, "COZE_API_TOKEN has a blank"),
    "no client id": (app(CLIENT_ID=""), "COZE_JWT_OAUTH_CLIENT_ID is not set, but"),
    "no key id": (app(PUBLIC_KEY_ID=""), "COZE_JWT_OAUTH_PUBLIC_KEY_ID is not set, but"),
    "no key": (app(PRIVATE_KEY=""), "COZE_JWT_OAUTH_PRIVATE_KEY (or _FILE_PATH) is not set, but"),
    "half a browser app": ({"COZE_BROWSER_OAUTH_CLIENT_ID": "2"}, "COZE_BROWSER_OAUTH_PUBLIC_KEY_ID is not"),
    "bad PEM": (app(PRIVATE_KEY="no PEM"), NOT_RSA),
    "cut PEM": (app(PRIVATE_KEY=rsa_pem()[:300]), NOT_RSA),
    "EC key": (app(PRIVATE_KEY=EC_KEY), NOT_RSA),
    "short RSA key": (app(PRIVATE_KEY=rsa_pem(1024)), NOT_RSA),
    "locked key": (app(PRIVATE_KEY=LOCKED_KEY), NOT_RSA),
    "no key file": (
        app(PRIVATE_KEY="", PRIVATE_KEY_FILE_PATH="/nowhere.pem"),
        "the file can't be read (No such file or directory)",
    ),
    "short pepper": ({"BROKER_KEY_PEPPER": "x" * 31}, "BROKER_KEY_PEPPER is shorter than 32"),
    **{
        f"pepper {text}": ({"BROKER_KEY_PEPPER": text}, f"BROKER_KEY_PEPPER {sentence}")
        for text, sentence in (
            ("a" * 40, "has fewer than 6 different characters"),
            ("0101010101010101010101010101010101", "has fewer than 6 different characters"),
            ("changeme" * 5, "says the same again and again"),
            ("example" * 5 + "exa", "says the same again and again"),
            ("0123456789abcdef" * 2, "says the same again and again"),
            (f"{CANARY} " * 4, "says the same again and again"),
            ("your-secret-key-here-change-me-please", "is a text from an example"),
            ("This-Is-A-Secret_Change_Me_In_Production!", "is a text from an example"),
            ("abcdefghijklmnopqrstuvwxyz0123456789", "is a text from an example"),
            ("password123secret456password789change", "is a text from an example"),
        )
    },
    "a secret key for the page": (
        {"BROKER_PAGE_PUBLISHABLE_KEY": "cub_sk_canary"},
        "BROKER_PAGE_PUBLISHABLE_KEY is not a publishable key",
    ),
    "database in memory": ({"DATABASE_URL": "sqlite://"}, "DATABASE_URL: a database in memory"),
    "signing keys: no PEM": ({"BROKER_SIGNING_KEYS": "x"}, "BROKER_SIGNING_KEYS: not Ed25519"),
    "signing keys: RSA": ({"BROKER_SIGNING_KEYS": rsa_pem()}, "BROKER_SIGNING_KEYS: not Ed25519"),
    "signing keys: locked": ({"BROKER_SIGNING_KEYS": LOCKED_KEY}, "BROKER_SIGNING_KEYS: not Ed25519"),
    "workers without Redis": ({"BROKER_WORKERS": "2"}, "more than one worker needs REDIS_URL"),
    "no worker": ({"BROKER_WORKERS": "0"}, "BROKER_WORKERS: Input should be greater"),
    "ttl": ({"BROKER_TOKEN_TTL_SECONDS": "901"}, "BROKER_TOKEN_TTL_SECONDS is longer than"),
    "ttl beyond Coze's": ({"BROKER_TOKEN_MAX_TTL_SECONDS": "86400"}, "BROKER_TOKEN_MAX_TTL_SECONDS: "),
    "oidc: plain http": (
        {"BROKER_OIDC_ISSUER": "http://login.example.com", "BROKER_OIDC_AUDIENCE": "app"},
        "BROKER_OIDC_ISSUER: plain http",
    ),
    "oidc: no address": (
        {"BROKER_OIDC_ISSUER": "login.example.com", "BROKER_OIDC_AUDIENCE": "app"},
        "BROKER_OIDC_ISSUER: not an address",
    ),
    "oidc: no audience": ({"BROKER_OIDC_ISSUER": "https://login.example.com"}, "BROKER_OIDC_AUDIENCE is not"),
    "oidc: a blank audience": (
        {"BROKER_OIDC_ISSUER": "https://login.example.com", "BROKER_OIDC_AUDIENCE": "  "},
        "BROKER_OIDC_AUDIENCE is not",
    ),
    "oidc: a blank before the issuer": (
        {"BROKER_OIDC_ISSUER": " https://login.example.com", "BROKER_OIDC_AUDIENCE": "app"},
        "BROKER_OIDC_ISSUER: not an address",
    ),
    "oidc: no issuer": ({"BROKER_OIDC_AUDIENCE": "app"}, "BROKER_OIDC_ISSUER is not set, but"),
    "port": ({"PORT": "70000"}, "PORT: Input should be less than"),
    "file types: none": ({"BROKER_FILE_TYPES": " , "}, "BROKER_FILE_TYPES: not extensions"),
    "file types: more than any": ({"BROKER_FILE_TYPES": "*,pdf"}, "BROKER_FILE_TYPES: not extensions"),
    "file types: blanks": ({"BROKER_FILE_TYPES": "pdf png"}, "BROKER_FILE_TYPES: not extensions"),
    "file types: two dots": ({"BROKER_FILE_TYPES": "tar.gz"}, "BROKER_FILE_TYPES: not extensions"),
    "no number": ({"BROKER_DIRECT_MAX_BYTES": "10MB"}, "BROKER_DIRECT_MAX_BYTES: Input should be"),
    **{
        f"{name} {value}": ({name: value}, f"{name}: Input should be ")
        for name, value in (
            ("BROKER_UPSTREAM_UPLOADS_PER_SECOND", "inf"),
            ("BROKER_CLIENT_IDLE_SECONDS", "inf"),
            ("BROKER_READ_TIMEOUT_SECONDS", "1e300"),
            ("BROKER_SHUTDOWN_GRACE_SECONDS", "9" * 12),
            ("BROKER_IDEMPOTENCY_TTL_SECONDS", "9" * 26),
            ("BROKER_UPLOAD_MAX_SECONDS", "9" * 26),
            ("RATE_LIMIT_WINDOW", "9" * 26),
            ("BROKER_RATE_LIMIT_BYTES", "9" * 26),
        )
    },
    "no choice": ({"BROKER_LOG_LEVEL": "loud"}, "BROKER_LOG_LEVEL: Input should be"),
    **{
        f"hosts: {text}": ({"UPSTREAM_HOSTS": text}, f"UPSTREAM_HOSTS: {sentence}")
        for text, sentence in (
            ("api.coze.cn", "'api.coze.cn' is not written like"),
            ("api.coze.cn:443=203.0.113.7", "'api.coze.cn:443=203.0.113.7' is not written like"),
            ("bücher.example=203.0.113.7", "'bücher.example=203.0.113.7' is not written like"),
            ("127.1=203.0.113.7", "'127.1=203.0.113.7' is not written like"),
            ("*.coze.cn=203.0.113.7", "'*.coze.cn=203.0.113.7' is not written like"),
            ("api.coze.cn=", "'api.coze.cn' has no address"),
            ("api.coze.cn=1.2.3", "'1.2.3' is no IP address"),
            ("api.coze.cn=1.2.3.4;1.2.3.5", "'1.2.3.4;1.2.3.5' is no IP address"),
            ("api.coze.cn=0.0.0.0", "'0.0.0.0' is no address that can be connected to"),
            ("api.coze.cn=ff02::1", "'ff02::1' is no address that can be connected to"),
            ("api.coze.cn=fe80::1%eth0", "'fe80::1%eth0' is no address that can be connected to"),
            ("a.example=1.2.3.4,A.example.=1.2.3.5", "'a.example' stands there twice"),
        )
    },
    **{
        f"private hosts: {text}": (
            {"UPSTREAM_PRIVATE_HOSTS": text},
            f"UPSTREAM_PRIVATE_HOSTS: {text!r} is no",
        )
        for text in ("*", "*.corp", "10.0.0.1", "::1", "https://a.example", "a.example:443", "a b", "-a")
    },
    **{
        f"doh: {url}": ({"UPSTREAM_DOH_URL": url}, "UPSTREAM_DOH_URL: not an address like https://host")
        for url in (
            *("http://127.0.0.1/dns-query", "dns.example", "https://", "https://u:p@dns.example/dns-query"),
            *("https://dns.example/dns-query{?dns}#a", "https://dns.example/?a=1", "tls://dns.example"),
        )
    },
    **{
        f"proxy: {url}": ({"UPSTREAM_PROXY": url}, "UPSTREAM_PROXY: not a proxy's address like")
        for url in (
            *("ftp://proxy.example", "socks4://proxy.example", "http://", "http://proxy.example:x"),
            *(
                "http://proxy.example:0",
                "http://proxy.example/path",
                "http://proxy.example?a=1",
                "nonsense://",
            ),
            *(f"http://u:{CANARY}/@proxy.example", f"http://u:{CANARY}#@proxy.example", "http://a b"),
            *("http://a..b:3128", "http://[::1%25lo]:3128", "socks5://-a", "http://256.1.1.1"),
            *("http://127.1:3128", "socks5://0x7f.1"),
            *(f"http://u:{CANARY}%0a@proxy.example", f"socks5://u:{CANARY * 30}@p", "http://u%3a:p@p"),
        )
    },
    **{
        f"proxy: {url}": (
            {"UPSTREAM_PROXY": url},
            "UPSTREAM_PROXY: a SOCKS proxy is told a name and a password, both in ASCII, or neither.",
        )
        for url in (
            *(f"socks5://u:{CANARY}%C3%A9@proxy.example", f"socks5h://%C3%A9:{CANARY}@proxy.example"),
            *(f"socks5://{CANARY}@a", f"socks://{CANARY}:@a", f"socks5h://:{CANARY}@a"),
        )
    },
    "proxy: of the environment": (
        {"HTTPS_PROXY": f"https://u:{CANARY}@"},
        "HTTPS_PROXY: not a proxy's address",
    ),
    "proxy: of the environment, for all": (
        {"all_proxy": f"gopher://u:{CANARY}@a"},
        "ALL_PROXY: not a proxy's address",
    ),
    "ca file: none": (
        {"UPSTREAM_CA_FILE": "/nowhere.pem"},
        "UPSTREAM_CA_FILE: the file can't be read (No such",
    ),
    "ca file: a folder": ({"UPSTREAM_CA_FILE": "/"}, "UPSTREAM_CA_FILE: "),
    "ca file: no PEM": ({"UPSTREAM_CA_FILE": __file__}, "UPSTREAM_CA_FILE: not certificates in PEM form"),
    "database: no URL": ({"DATABASE_URL": "broker.db"}, "DATABASE_URL: not an address"),
    "database: another": ({"DATABASE_URL": "mysql://h/d"}, "DATABASE_URL: not an address"),
    "database: a URI of SQLite's": (
        {"DATABASE_URL": "sqlite:///file:x?mode=ro&uri=true"},
        "DATABASE_URL: not an",
    ),
    "database: an option of libpq's": (
        {"DATABASE_URL": "postgresql://h/d?sslmode=require&channel_binding=require"},
        "DATABASE_URL: 'channel_binding' can't be set there",
    ),
    "database: bad port": ({"DATABASE_URL": "postgresql://h:x/d"}, "DATABASE_URL: not an address"),
    **{
        f"origin {origin}": ({"BROKER_ALLOWED_ORIGINS": origin}, f"ALLOWED_ORIGINS: {origin!r} is not an")
        for origin in (
            *("*", "null", "app.example.com", "file://app", "https://", "https://app.example.com/"),
            *("https://app.example.com/path", "https://App.example.com", "https://*.example.com"),
            *("https://app.example.com:443", "https://user@app.example.com", "https://bücher.example"),
            *("https://app..example", "https://.", f"https://{'a' * 254}", "https://127.1", "https://0x7f.1"),
            *("https://1.2.3.256", "http://[::0001]", "http://[::1.2.3.4]", "http://[fe80::1%eth0]"),
        )
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unsafe_or_senseless_is_a_problem_with_a_name(
    case: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    given, sentence = REFUSED[case]
    monkeypatch.chdir(folder)
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    for name, value in {**GOOD, **given}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(settings.SettingsError) as raised:
        settings.load()
    assert any(sentence in problem for problem in raised.value.problems), raised.value.problems
    assert all(problem.endswith(".") for problem in raised.value.problems)
    assert not any(CANARY in problem for problem in raised.value.problems if "UPSTREAM" in problem)
    assert not any(CANARY in problem for problem in raised.value.problems if "PROXY" in problem)
    assert not any(CANARY in problem for problem in raised.value.problems if "COZE_API_BASE" in problem)


PIPES = {
    "UPSTREAM_CA_FILE": {},
    "BROKER_SIGNING_KEYS_FILE": {},
    "COZE_JWT_OAUTH_PRIVATE_KEY_FILE_PATH": app(PRIVATE_KEY=""),
    "COZE_BROWSER_OAUTH_PRIVATE_KEY_FILE_PATH": app("COZE_BROWSER_OAUTH", PRIVATE_KEY=""),
}


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("command", ["config", "serve"])
def test_a_file_that_is_a_pipe_is_refused_and_not_waited_for(folder: Path, name: str, command: str) -> None:
    os.mkfifo(folder / "pipe")
    environment = {**clean_environment(), **GOOD, **PIPES[name], name: str(folder / "pipe")}
    done = run_command(command, environment=environment, cwd=folder, timeout=30)
    assert done.returncode == 2
    assert "the file can't be read (not a regular file)." in done.stderr


BLANKS: dict[str, tuple[str, Any]] = {
    "COZE_API_BASE": (" https://api.coze.cn/ ", "https://api.coze.cn"),
    "UPSTREAM_DOH_URL": ("\thttps://dns.example/q\r", "https://dns.example/q"),
    "UPSTREAM_CA_FILE": (f" {__file__} ", Path(__file__)),
    "UPSTREAM_PROXY": (" http://proxy.example:3128 ", "http://proxy.example:3128"),
}


@pytest.mark.parametrize("name", BLANKS)
def test_blanks_around_what_leads_to_coze_mean_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone they are as good as nothing."""
    written, meant = BLANKS[name]
    monkeypatch.setenv(name, written)
    assert getattr(settings.Settings(), name.lower()) == meant
    monkeypatch.setenv(name, "  ")
    assert getattr(settings.Settings(), name.lower()) == settings.Settings.model_fields[name.lower()].default


@pytest.mark.parametrize(
    ("base", "audience"),
    [
        ("https://api.coze.cn", "api.coze.cn"),
        ("https://API.Coze.CN:443/", "api.coze.cn"),
        ("https://api.coze.cn.", "api.coze.cn"),
        ("https://api.coze.cn.:8443", "api.coze.cn:8443"),
        ("http://localhost:80", "localhost"),
        ("http://[::1]:8080", "[::1]:8080"),
        ("https://203.0.113.7:8443", "203.0.113.7:8443"),
    ],
)
def test_an_assertion_is_for_coze_s_host_however_that_was_written(base: str, audience: str) -> None:
    assert settings.Settings(coze_api_base=base).coze_host == audience


@pytest.mark.parametrize(
    ("written", "meant"), [("NONE", "none"), (" None ", "none"), ("Environment", "environment")]
)
def test_a_word_for_the_proxy_is_one_in_any_case(
    written: str, meant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    given = settings.Settings(coze_api_base="https://api.coze.cn", upstream_proxy=written)
    assert (given.upstream_proxy, given.coze_proxy) == (meant, None)
    shown = json.loads(config(folder, "--json", UPSTREAM_PROXY=written).stdout)
    assert shown["UPSTREAM_PROXY"]["value"] == meant


def test_serving_is_refused_with_every_problem_at_once(folder: Path) -> None:
    """A value that can't be read at all does not hide the others, nor does an option."""
    given = {
        "COZE_API_BASE": "http://api.coze.cn",
        "COZE_API_TOKEN": "",
        "PORT": "high",
        "BROKER_ALLOWED_ORIGINS": "*,null, https://good.example",
        "BROKER_KEY_PEPPER": "short",
        "COZE_BROWSER_OAUTH_CLIENT_ID": "2",
    }
    code, said = serve(folder, "--workers", "2", **given)
    assert code == 2
    assert said.count("error ") == len(said.splitlines()) == 9
    for word in (
        *("BROKER_WORKERS", "COZE_API_BASE", "COZE_API_TOKEN", "PORT", "'*'", "'null'", "BROKER_KEY_PEPPER"),
        *("COZE_BROWSER_OAUTH_PUBLIC_KEY_ID", "COZE_BROWSER_OAUTH_PRIVATE_KEY"),
    ):
        assert word in said
    assert "good.example" not in said


def make_nothing(folder: Path) -> None:
    pass


def make_a_file(folder: Path) -> None:
    (folder / "data").write_text("a file where the folder should be")


def make_junk_database(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "broker.db").write_bytes(b"junk" * 1000)


def make_junk_keys(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "signing-keys.pem").write_bytes(b"junk")


@pytest.mark.parametrize(
    ("prepare", "given", "sentence"),
    [
        pytest.param(make_a_file, {}, "BROKER_DATA_DIR: ", id="the data folder is a file"),
        pytest.param(make_junk_database, {}, "the database can't be used", id="the database is junk"),
        pytest.param(make_junk_keys, {}, "signing-keys.pem is damaged", id="the keys are junk"),
        pytest.param(
            make_nothing,
            {"BROKER_DATA_DIR": "/proc/nothing"},
            "BROKER_DATA_DIR: /proc/nothing",
            id="no folder",
        ),
        pytest.param(
            make_nothing,
            {"DATABASE_URL": f"postgresql://user:{CANARY}@127.0.0.1:1/db"},
            "DATABASE_URL: the database can't be reached",
            id="the database is away",
        ),
        pytest.param(
            make_nothing,
            {"DATABASE_URL": f"postgresql://user:{CANARY}@127.0.0.1:1/db?sslmode=require"},
            "DATABASE_URL: the database can't be reached",
            id="the database is away, its URL another program's",
        ),
        pytest.param(
            make_nothing,
            {"DATABASE_URL": "sqlite:////proc/nothing.db"},
            "the database can't be used",
            id="no folder for a database",
        ),
        pytest.param(
            make_nothing, {"HOST": "ü" * 70}, "HOST, PORT: can't listen on", id="no host name at all"
        ),
        pytest.param(
            make_nothing, {"HOST": "host.invalid"}, "HOST, PORT: can't listen on", id="no such host"
        ),
        pytest.param(
            make_nothing, {"HOST": "192.0.2.1"}, "HOST, PORT: can't listen on", id="not our address"
        ),
    ],
)
def test_what_can_only_be_tried_is_said_in_a_sentence_too(
    folder: Path, prepare: Any, given: dict[str, str], sentence: str
) -> None:
    prepare(folder)
    code, said = serve(folder, **given)
    assert code == 2
    assert sentence in said
    assert said.count("\n") == 1, "one line, no trace"
    assert CANARY not in said


def test_a_database_that_takes_connections_and_never_answers_is_named(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        code, said = serve(folder, DATABASE_URL=f"postgresql://user:{CANARY}@127.0.0.1:{port}/db")
    assert code == 2
    assert said == "error DATABASE_URL: the database can't be reached (no answer in time).\n"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_a_database_s_url_may_ask_for_tls_as_libpq_does(scheme: str) -> None:
    given = settings.Settings(database_url=SecretStr(f"{scheme}://u:a?sslmode=b@h/d?sslmode=require"))
    assert given.resolved_database_url == "postgresql+asyncpg://u:a?sslmode=b@h/d?ssl=require"


def test_a_port_in_use_is_said_at_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = serve(folder, "--port", port)
    assert (code, said) == (
        2,
        f"error HOST, PORT: can't listen on 127.0.0.1:{port} (Address already in use).\n",
    )


# --- what starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        *("https://app.example.com", "http://localhost:3000", "http://[::1]:3000", "https://my_app.example"),
        *("https://app.example.", "http://127.0.0.1:3000", "http://[::ffff:102:304]", "http://1.example"),
        *("https://xn--bcher-kva.example", "https://1a"),
    ],
)
def test_what_a_browser_writes_is_an_origin(origin: str) -> None:
    assert settings.is_origin(origin)


@pytest.mark.parametrize(
    "base",
    [
        *("http://127.0.0.1:8", "http://localhost", "http://[::1]:8", "https://a/b/"),
        *("http://localhost.:8", "http://coze.localhost", "http://LOCALHOST"),
    ],
)
def test_https_or_loopback_is_a_good_upstream(base: str) -> None:
    given = settings.Settings(coze_api_base=base, coze_api_token="x")
    assert settings.problems(given) == []


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:2026"),
        ("0.0.0.0", "http://127.0.0.1:2026"),
        ("::", "http://[::1]:2026"),
        ("::1", "http://[::1]:2026"),
    ],
)
def test_the_public_url_is_one_that_a_browser_can_open(host: str, url: str) -> None:
    given = settings.Settings(host=host, port=2026)
    assert (given.public_url, given.public_origin) == (url, url)


def test_a_key_may_have_its_line_ends_written_out() -> None:
    given = settings.Settings(
        coze_api_base="https://api.coze.cn",
        coze_jwt_oauth_client_id="1",
        coze_jwt_oauth_public_key_id="kid",
        coze_jwt_oauth_private_key=rsa_pem().replace("\n", "\\n"),
        broker_signing_keys=pem(ed25519.Ed25519PrivateKey.generate()).replace("\n", "\\n"),
    )
    assert settings.problems(given) == []
    assert given.server_app is not None


def test_one_app_for_browser_and_server_is_warned_of(folder: Path) -> None:
    given = {**app(), **app("COZE_BROWSER_OAUTH")}
    done = config(folder, **given)
    assert done.returncode == 0
    assert "warning COZE_BROWSER_OAUTH_CLIENT_ID is the server's own app" in done.stderr
    assert "warning COZE_API_TOKEN is not used" in done.stderr


UNUSED: dict[str, tuple[dict[str, str], str]] = {
    "hosts": (
        {"UPSTREAM_HOSTS": "api.coze.com=203.0.113.7"},
        "api.coze.com has an entry in UPSTREAM_HOSTS or",
    ),
    "private hosts": ({"UPSTREAM_PRIVATE_HOSTS": "coze.corp"}, "coze.corp has an entry in UPSTREAM_HOSTS or"),
    "doh": (
        {"UPSTREAM_DOH_URL": "https://dns.example/q", "UPSTREAM_PROXY": "socks5h://proxy.example"},
        "UPSTREAM_DOH_URL is not used: the proxy looks up Coze's name itself.",
    ),
}


@pytest.mark.parametrize("case", UNUSED)
def test_what_has_no_effect_on_the_way_to_coze_is_warned_of(folder: Path, case: str) -> None:
    given, sentence = UNUSED[case]
    done = config(folder, **given)
    assert done.returncode == 0
    assert sentence in done.stderr


def test_what_is_used_on_the_way_to_coze_is_not_warned_of(folder: Path) -> None:
    given = {
        "UPSTREAM_HOSTS": "API.coze.cn.=203.0.113.7 2001:DB8::7,dns.example=203.0.113.8,proxy.example=::2",
        "UPSTREAM_PRIVATE_HOSTS": "api.coze.cn",
        "UPSTREAM_DOH_URL": "https://dns.example/q",
        "UPSTREAM_PROXY": f"socks5://user:{CANARY}@proxy.example",
    }
    done = config(folder, "--json", **given)
    assert (done.returncode, done.stderr) == (0, "")
    shown = {name: each["value"] for name, each in json.loads(done.stdout).items()}
    assert shown["UPSTREAM_HOSTS"].startswith("api.coze.cn=203.0.113.7 2001:db8::7, dns.example=203.0.113.8")
    assert shown["UPSTREAM_PROXY"] == "socks5://(not shown)@proxy.example:1080"


# --- broker config --------------------------------------------------------------------------------------


def config(folder: Path, *arguments: str, **given: str) -> Any:
    environment = {**clean_environment(), **GOOD, **given}
    return run_command("config", *arguments, environment=environment, cwd=folder)


def test_config_shows_every_setting_with_its_source(folder: Path) -> None:
    """The environment wins over ``.env``; an empty value counts as none."""
    (folder / ".env").write_text(
        f"RELATED=1\nBROKER_LOG_LEVEL=debug\nCOZE_API_BASE=https://other\nBROKER_KEY_PEPPER={GOOD_PEPPER}\n"
    )
    done = config(
        folder, "--json", BROKER_MAX_UPLOAD_BYTES="1000", HOST="", BROKER_ALLOWED_ORIGINS="http://a,http://b"
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown) == {name.upper() for name in settings.Settings.model_fields}
    expected = {
        "COZE_API_BASE": ("https://api.coze.cn", "environment"),
        "COZE_API_TOKEN": ("(set, not shown)", "environment"),
        "BROKER_LOG_LEVEL": ("debug", ".env"),
        "BROKER_KEY_PEPPER": ("(set, not shown)", ".env"),
        "BROKER_MAX_UPLOAD_BYTES": (1000, "environment"),
        "HOST": ("127.0.0.1", "default"),
        "BROKER_ALLOWED_ORIGINS": ("http://a, http://b", "environment"),
        "BROKER_SIGNING_KEYS": (None, "default"),
    }
    assert {name: (shown[name]["value"], shown[name]["source"]) for name in expected} == expected
    table = config(folder, COLUMNS="200").stdout
    assert all(name in table for name in shown)


def test_config_names_every_problem_and_fails(folder: Path) -> None:
    done = config(folder, COZE_API_BASE="", BROKER_ALLOWED_ORIGINS="*")
    assert done.returncode == 2
    assert "BROKER_ALLOWED_ORIGINS" in done.stdout, "the settings are shown all the same"
    assert [line.split()[1].rstrip(":") for line in done.stderr.splitlines()] == [
        "COZE_API_BASE",
        "BROKER_ALLOWED_ORIGINS",
    ]
    done = config(folder, COZE_API_BASE="", PORT="x")
    assert done.returncode == 2
    assert "PORT: " in done.stderr
    assert "COZE_API_BASE" in done.stderr


MASKED = {
    f"https://user:{CANARY}@a.example": "https://(not shown)@a.example",
    f"https://user:{CANARY}/x@a.example": "https://(not shown)@a.example",
    f"user:{CANARY}@a.example": "(not shown)@a.example",
    f"https://a.example/q?token={CANARY}": "https://a.example/q?(not shown)",
    f"https://a.example/q#{CANARY}": "https://a.example/q#(not shown)",
    f"https://a.example?{CANARY}#{CANARY}": "https://a.example?(not shown)",
    f"https://a.example/?a=b@{CANARY}#{CANARY}": "https://(not shown)",
    "a.example/q": "a.example/q",
}


@pytest.mark.parametrize(
    "name", ["COZE_API_BASE", "UPSTREAM_DOH_URL", "BROKER_PUBLIC_URL", "BROKER_OIDC_ISSUER"]
)
@pytest.mark.parametrize("written", MASKED)
def test_config_shows_no_secret_in_an_address_that_it_refuses(
    name: str, written: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, value in {**GOOD, name: written}.items():
        monkeypatch.setenv(each, value)
    with pytest.raises(SystemExit) as raised:
        app_of_commands(["config", "--json"])
    said = capsys.readouterr()
    assert raised.value.code == 2
    assert json.loads(said.out)[name]["value"] == MASKED[written]
    assert CANARY not in said.out + said.err


BROKEN_ENV_FILES: dict[str, tuple[str, str]] = {
    "a blank in a name": (
        f"# first\n\nMY TOKEN {CANARY}\n",
        ".env: line 3 is not NAME=value, and is passed over.",
    ),
    "a quote that does not end": (f'RELATED=1\nA="{CANARY}\n', ".env: line 2 is not NAME=value"),
    "a word alone": (f"{CANARY}\n", ".env: line 1 is not NAME=value"),
    "several": (
        f"{CANARY}\nA=1\nB {CANARY}\r\nC=2\n",
        ".env: lines 1, 3 are not NAME=value, and are passed over.",
    ),
    "very many": (f"{CANARY}\n" * 9, ".env: lines 1, 2, 3, 4, 5 and 4 more are not NAME=value"),
}


@pytest.mark.parametrize("case", BROKEN_ENV_FILES)
def test_a_line_of_the_env_file_that_can_not_be_read_is_warned_of(folder: Path, case: str) -> None:
    """By its number, and by nothing else of it; python-dotenv's own words are not heard."""
    content, sentence = BROKEN_ENV_FILES[case]
    (folder / ".env").write_text(content, newline="")
    done = config(folder)
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning {sentence}")
    assert done.stderr.count("\n") == 1
    assert CANARY not in done.stdout + done.stderr


def test_every_command_that_reads_the_env_file_warns_of_it(folder: Path) -> None:
    """What can't be started for another reason, too: the line may be that reason."""
    (folder / ".env").write_text("COZE_API_BASE https://api.coze.cn\n")
    sentence = ".env: line 1 is not NAME=value, and is passed over."
    environment = {**clean_environment(), "BROKER_DATA_DIR": str(folder / "data")}
    for command in (["config"], ["serve"], ["migrate"], ["keys", "list"], ["audit", "list"]):
        done = run_command(*command, environment=environment, cwd=folder)
        assert sentence in done.stderr, command
        assert done.stderr.count(sentence) == 1, command
    log = folder / "log"
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [*COMMAND, "serve"], env={**environment, **GOOD}, cwd=folder, stdout=file, stderr=file
        ) as process,
    ):
        try:
            wait_for(lambda: sentence in log.read_text(), seconds=30.0)
        finally:
            process.terminate()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, functools.partial(os.symlink, "/nowhere")])
def test_an_env_file_that_is_none_is_warned_of(folder: Path, make: Any) -> None:
    """And not waited for: a pipe would never be written to."""
    make(folder / ".env")
    done = run_command("config", environment={**clean_environment(), **GOOD}, cwd=folder, timeout=30)
    assert (done.returncode, done.stderr) == (
        0,
        "warning .env is not a regular file: nothing is read from it.\n",
    )


def test_an_env_file_that_may_not_be_read_is_a_problem(folder: Path) -> None:
    (folder / ".env").write_text("A=1\n")
    (folder / ".env").chmod(0)
    # Root may read everything as long as it has its capabilities.
    bare = (
        [needs.executable("setpriv"), "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    )
    environment = {**clean_environment(), **GOOD, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*bare, *COMMAND, "config"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == "error .env: the file can't be read (Permission denied).\n"


def test_an_unreadable_env_file_is_a_problem(folder: Path) -> None:
    (folder / ".env").write_bytes(b"COZE_API_TOKEN=\xff\xfe")
    done = config(folder)
    assert (done.returncode, done.stderr) == (
        2,
        "error .env: the file can't be read as UTF-8 text (UnicodeDecodeError).\n",
    )


SECRETS = {
    "COZE_API_TOKEN": CANARY,
    "COZE_JWT_OAUTH_PRIVATE_KEY": CANARY,
    "COZE_BROWSER_OAUTH_PRIVATE_KEY": CANARY,
    "BROKER_SIGNING_KEYS": CANARY,
    "BROKER_KEY_PEPPER": CANARY,
    "DATABASE_URL": f"postgresql://user:{CANARY}@127.0.0.1:1/db",
    "REDIS_URL": f"redis://:{CANARY}@127.0.0.1:1/0",
    "COZE_API_BASE": f"https://user:{CANARY}@api.coze.cn",
}


def test_no_secret_is_ever_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by ``config``, nor by a start that fails over them, nor by whoever prints the settings."""
    said = [config(folder, **SECRETS), config(folder, "--json", **SECRETS)]
    assert all(CANARY not in done.stdout + done.stderr for done in said)
    for line_end in ("", "\n"):
        code, text = serve(folder, **{name: value + line_end for name, value in SECRETS.items()})
        assert code == 2
        assert CANARY not in text
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("COZE_API_BASE")
    given = settings.read()
    assert given.coze_api_token is not None
    assert CANARY not in repr(given) + str(given) + str(given.model_dump())


def test_every_setting_that_holds_a_secret_says_so() -> None:
    """By its name it may be one; a number, or the path of a file, is none."""
    words = ("token", "private_key", "pepper", "signing", "secret", "password", "database_url", "redis_url")
    harmless = (int, float, bool, Path, Path | None)
    suspects = {
        name: field.annotation
        for name, field in settings.Settings.model_fields.items()
        if any(word in name for word in words)
    }
    assert {"coze_api_token", "redis_url", "broker_signing_keys", "broker_token_max_uses"} <= set(suspects)
    for name, annotation in suspects.items():
        assert annotation in harmless or "SecretStr" in str(annotation), name


@pytest.mark.parametrize(
    "secret",
    [GOOD_PEPPER, GOOD_PEPPER * 2, "74275882878888814873182214328435", "kT9#vq$Zr8!mW2^xLp7&bN4*cY6@hJ3%"],
)
def test_a_random_text_is_a_secret(secret: str) -> None:
    assert settings.weakness(secret) is None
