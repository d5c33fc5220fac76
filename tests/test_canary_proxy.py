"""A proxy's name and password are planted in the settings, and looked for wherever the broker writes or says
anything: with a proxy that takes them, one that refuses and repeats them, and one that is none.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.authority import Authority
from tests.support.broker_process import Broker, run_command, running_broker
from tests.support.doctor import environment, run
from tests.support.left_behind import snapshot
from tests.support.network import ConnectProxy, Coze, Network, SocksProxy, answer
from tests.support.waiting import wait_for

NAME = "coze.test"
SPECIAL = ":@/%"
"""What must be written as ``%XX`` in a URL; a name can have no colon."""
STORED = answer({"code": 0, "data": {"id": "7", "bytes": 3, "file_name": "a.csv", "created_at": 1}})


@dataclass(frozen=True)
class Planted:
    """A name and a password that nothing else has, and what they look like on their way."""

    name: str
    password: str

    @property
    def in_url(self) -> str:
        return f"{quote(self.name, safe='')}:{quote(self.password, safe='')}"

    @property
    def shapes(self) -> Iterator[str]:
        for part in (self.name, self.password):
            yield from {part, quote(part, safe=""), part[:16], part[-16:]}
        # Of the header's value not the end alone, which may be another's.
        yield base64.b64encode(f"{self.name}:{self.password}".encode()).decode()[:24]

    def assert_not_in(self, said: dict[str, str]) -> None:
        for where, text in said.items():
            for shape in self.shapes:
                at = text.find(shape)
                assert at < 0, f"{where}: …{text[max(0, at - 120) :][:240]}…"


@pytest.fixture
def planted() -> Planted:
    return Planted(
        secrets.token_hex(16) + "@" + secrets.token_hex(8), secrets.token_hex(16) + SPECIAL + "p" * 16
    )


@dataclass
class Way:
    """To a Coze through a proxy."""

    coze: Coze
    proxy: ConnectProxy | SocksProxy
    settings: dict[str, str]


def way_through(
    network: Network, authority: Authority, planted: Planted, *, kind: str, by: str, takes: bool
) -> Way:
    """Through a proxy that takes the credential, or asks for another."""
    coze = Coze(STORED)
    port = network.serve(coze, authority.context(NAME))
    credential = (planted.name, planted.password) if takes else ("somebody", "else")
    given: dict[str, Any] = {"names": {f"{NAME}:{port}": port}, "credential": credential}
    proxy = SocksProxy(**given) if kind == "socks5h" else ConnectProxy(**given)
    proxy_port = network.serve(proxy, authority.context("127.0.0.1") if kind == "https" else None)
    settings = {
        "COZE_API_BASE": f"https://{NAME}:{port}",
        "COZE_API_TOKEN": "sat_1",
        "UPSTREAM_CA_FILE": str(authority.file),
        by: f"{kind}://{planted.in_url}@127.0.0.1:{proxy_port}",
        "BROKER_LOG_LEVEL": "debug",
    }
    return Way(coze, proxy, settings)


def everything(broker: Broker) -> dict[str, str]:
    """What the broker says and writes when it is asked for all that concerns Coze."""
    files = {"file": ("a.csv", b"a,b")}
    get, auth = httpx.get, broker.auth()
    snapshot(broker)
    asked = {
        "an upload": httpx.post(f"{broker.url}/proxy/upload", files=files, headers=auth),
        "a drop-in upload": httpx.post(f"{broker.url}/v1/files/upload", files=files, headers=auth),
        "a lookup": get(f"{broker.url}/v1/files/retrieve?file_id=7", headers=auth),
        "a token": httpx.post(f"{broker.url}/token", json={"size": 3}, headers=auth),
        "the connection": get(f"{broker.url}/api/v1/test/connection", headers=auth, timeout=30),
        "/api/v1/config": get(f"{broker.url}/api/v1/config", headers=auth),
        "/ready": get(f"{broker.url}/ready"),
        "/": get(broker.url),
    }
    folder = broker.log.parent
    commands = {
        "broker config": broker.command("config"),
        "broker config --json": broker.command("config", "--json"),
        "broker doctor": run(broker.environment, "--upload", cwd=folder),
        "broker doctor --json": run(broker.environment, "--upload", "--json", cwd=folder),
    }
    written = [path for path in folder.rglob("*") if path.is_file()]
    return {
        **{name: each.text + str(each.headers) for name, each in asked.items()},
        **{name: done.stdout + done.stderr for name, done in commands.items()},
        **{path.name: path.read_bytes().decode("latin-1") for path in written},
    }


@pytest.mark.parametrize("takes", [True, False], ids=["that lets it through", "that refuses"])
@pytest.mark.parametrize("by", ["UPSTREAM_PROXY", "HTTPS_PROXY"])
@pytest.mark.parametrize("kind", ["http", "https", "socks5h"])
def test_a_proxy_s_name_and_password_are_shown_nowhere(
    network: Network,
    authority: Authority,
    folder: Path,
    planted: Planted,
    *,
    kind: str,
    by: str,
    takes: bool,
) -> None:
    way = way_through(network, authority, planted, kind=kind, by=by, takes=takes)
    with running_broker(folder, way.settings) as broker:
        said = everything(broker)
        wait_for(lambda: broker.last_record("/proxy/upload"))
    assert way.proxy.connections > 0
    assert bool(way.coze.requests) is takes
    assert ("file_id" in said["an upload"]) is takes, said["an upload"]
    assert ("exit code 13" in said["broker doctor"]) is not takes, said["broker doctor"]
    assert "127.0.0.1" in said["broker doctor"]
    said["the end"] = broker.log.read_text()
    planted.assert_not_in(said)


@pytest.mark.parametrize("by", ["UPSTREAM_PROXY", "HTTPS_PROXY"])
@pytest.mark.parametrize("address", ["proxy.test:0", "proxy.test:99999", "proxy.test/path", "[::1", "a b"])
def test_an_address_that_is_none_is_refused_without_being_shown(
    folder: Path, planted: Planted, by: str, address: str
) -> None:
    given = {
        "COZE_API_BASE": f"https://{NAME}",
        "COZE_API_TOKEN": "sat_1",
        by: f"http://{planted.in_url}@{address}",
    }
    given = environment(folder, given)
    done = {name: run_command(*name.split(), environment=given) for name in ("serve", "config", "doctor")}
    assert 0 not in {each.returncode for each in done.values()}
    assert all(by in each.stdout + each.stderr for each in done.values())
    planted.assert_not_in({name: each.stdout + each.stderr for name, each in done.items()})
