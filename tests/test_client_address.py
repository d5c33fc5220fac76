"""The caller's address: told by the socket, and by as many proxies as the operator counted."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from broker.client_address import MAX_ENTRY_LENGTH, bucket_of, client_address
from tests.support.broker_process import running_broker
from tests.support.nginx import free_port, running_nginx
from tests.support.raw_http import Connection, head
from tests.support.sandbox_control import SandboxControl

PEER = "10.0.0.1"
CALLER = "203.0.113.7"


def told(proxies: int, *values: str, peer: str | None = PEER, name: str = "x-forwarded-for") -> str | None:
    headers = [(name.encode(), value.encode("latin-1")) for value in values]
    return client_address((peer, 4711) if peer is not None else None, headers, proxies)


@pytest.mark.parametrize(
    ("proxies", "values", "expected"),
    [
        # nobody is trusted: nothing is believed
        (0, [], PEER),
        (0, [CALLER], PEER),
        (0, [f"{CALLER}, {CALLER}"], PEER),
        # counted from the right, whatever the caller wrote on the left
        (1, [CALLER], CALLER),
        (1, [f"1.1.1.1, {CALLER}"], CALLER),
        (1, [f"1.1.1.1, 2.2.2.2,{CALLER}"], CALLER),
        (2, [f"1.1.1.1, {CALLER}, 10.0.0.2"], CALLER),
        (3, [f"{CALLER}, 10.0.0.3, 10.0.0.2"], CALLER),
        (1, [f"   \t{CALLER}\t "], CALLER),
        (1, ["1.1.1.1," * 5000 + CALLER], CALLER),
        # several headers are one, in their order (RFC 9110 §5.3)
        (1, ["1.1.1.1", CALLER], CALLER),
        (2, ["1.1.1.1", CALLER, "10.0.0.2"], CALLER),
        (2, [f"1.1.1.1, {CALLER}", "10.0.0.2"], CALLER),
        # it did not come by the way that was counted
        (1, [], PEER),
        (1, [""], PEER),
        (2, [CALLER], PEER),
        (3, [f"{CALLER}, 10.0.0.2"], PEER),
        (16, [CALLER], PEER),
        # an entry that is empty counts as one: skipped, it would bring up what the caller wrote
        (1, [f"{CALLER},"], PEER),
        (2, [f"1.1.1.1,, {CALLER}"], PEER),
    ],
)
def test_the_caller_is_counted_from_the_right(proxies: int, values: list[str], expected: str) -> None:
    assert told(proxies, *values) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (f"{CALLER}:52000", CALLER),
        ("2001:DB8::1", "2001:db8::1"),
        ("2001:0db8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:52000", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:1", "fe80::1"),
        ("::ffff:203.0.113.7", CALLER),
        ("[::ffff:203.0.113.7]:52000", CALLER),
        ("::FFFF:CB00:7107", CALLER),
        ("::1", "::1"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_an_address_is_read_however_it_is_written(entry: str, expected: str) -> None:
    assert told(1, entry) == expected
    assert told(0, peer=entry) == expected


@pytest.mark.parametrize(
    "entry",
    [
        *("unknown", "_hidden", "unix:", "-", "localhost", "example.com", "1", "1.2.3", "1.2.3.4.5"),
        *("256.1.1.1", "01.2.3.4", "0x7f.0.0.1", "2130706433", "1.2.3.4/8", "1.2.3.4%eth0", "1.2.3.4:port"),
        *("1.2.3.4:123456", ":::1", "1::2::3", "[::1", "::1]", "[]", "[1.2.3.4]:x", "[[::1]]", '"1.2.3.4"'),
        *("for=1.2.3.4", "1.2.3.4;2.2.2.2", "1.2.3.4 2.2.2.2", "１.2.3.4".encode().decode("latin-1"), "\x00"),
        *("١.2.3.4".encode().decode("latin-1"), "1.2.3.4\r\n", "é", "f" * MAX_ENTRY_LENGTH, "1" * 60_000),
    ],
)
def test_what_is_no_address_is_not_believed(entry: str) -> None:
    assert told(1, entry) == PEER
    assert told(1, f"{CALLER}, {entry}") == PEER, "nor is what stands before it"
    assert told(1, entry, peer=None) is None


@pytest.mark.parametrize(
    "name", ["x_forwarded_for", "x-forwarded_for", "forwarded", "x-real-ip", "true-client-ip", "client-ip"]
)
def test_no_other_header_is_believed(name: str) -> None:
    assert told(1, CALLER, name=name) == PEER
    assert told(1, f"for={CALLER}", name=name) == PEER


def test_a_unix_socket_has_no_address_but_what_its_proxy_tells() -> None:
    assert told(0, peer=None) is None
    assert told(0, peer="") is None
    assert told(1, CALLER, peer=None) == CALLER


@pytest.mark.parametrize(
    ("address", "bucket"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "unknown"),
        ("", "unknown"),
        ("junk", "unknown"),
    ],
)
def test_one_caller_is_one_bucket(address: str | None, bucket: str) -> None:
    """Whoever is given an IPv6 network has 2^64 addresses, and is one caller."""
    assert bucket_of(address) == bucket


# --- behind a real nginx -----------------------------------------------------------------------------------

HOP = """
server {{
    listen {port};
    location / {{ proxy_pass {next}; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }}
}}
"""


@pytest.mark.parametrize(("proxies", "expected"), [(0, "127.0.0.1"), (1, "127.0.0.3"), (2, "127.0.0.2")])
def test_behind_two_proxies_the_caller_is_the_one_before_them(
    folder: Path, sandbox: SandboxControl, proxies: int, expected: str
) -> None:
    """The caller comes from 127.0.0.2, the outer proxy from 127.0.0.3, the inner one from 127.0.0.1."""
    outer_port, inner_port = free_port(), free_port()
    settings = {"BROKER_TRUSTED_PROXIES": str(proxies)}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        inner = HOP.format(port=f"127.0.0.1:{inner_port}", next=broker.url)
        outer = HOP.format(port=f"127.0.0.1:{outer_port}", next=f"http://127.0.0.1:{inner_port}")
        outer = outer.replace("proxy_pass", "proxy_bind 127.0.0.3; proxy_pass")
        with (
            running_nginx(folder / "inner", inner, inner_port),
            running_nginx(folder / "outer", outer, outer_port),
            httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as caller,
        ):
            spoofed = {
                "X-Forwarded-For": "1.1.1.1, 9.9.9.9",
                "X-Real-IP": "1.1.1.1",
                "Forwarded": "for=1.1.1.1",
            }
            for headers in ({}, spoofed):
                answer = caller.get(f"http://127.0.0.1:{outer_port}/health", headers=headers)
                assert answer.status_code == 200
                record = broker.record(answer.headers["x-request-id"])
                assert record["client_ip"] == expected


def test_without_a_proxy_a_caller_is_who_it_is(folder: Path, sandbox: SandboxControl) -> None:
    """By default; underscores are a CGI's way to write the same name, and none of ours."""
    with running_broker(folder, sandbox.environment) as broker:
        for name in ("X-Forwarded-For", "X_Forwarded_For", "X-Real-IP"):
            with Connection(broker.url) as connection:
                connection.send(head("/health", [(name, CALLER)], method="GET"))
                answer = connection.answer()
            assert broker.record(answer.headers["x-request-id"])["client_ip"] == "127.0.0.1"
