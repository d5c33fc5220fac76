"""``broker keys``: the same life of a key as over HTTP, for whoever has the database."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from broker.cli_rights import LISTS, OPTIONS
from tests.support.broker_process import PAGE_ORIGIN, Broker

UNKNOWN = "key_0123456789abcdef"
BOUNDS = [
    *("--bot=1", "--bot=2", "--workflow=3", "--content-type=image/*", "--network=192.0.2.0/24"),
    *("--max-bytes=1000", "--requests=10", "--bytes=0", "--window-seconds=60", "--inflight=2"),
]
RIGHTS = {
    "bots": ["1", "2"],
    "workflows": ["3"],
    "content_types": ["image/*"],
    "networks": ["192.0.2.0/24"],
    "max_bytes": 1000,
    "limits": {"requests": 10, "bytes": 0, "window_seconds": 60, "inflight_uploads": 2},
}


def printed(broker: Broker, *arguments: str) -> Any:
    done = broker.command("keys", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, "one line for a pipe"
    return json.loads(done.stdout)


def refused(broker: Broker, *arguments: str) -> str:
    done = broker.command("keys", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return done.stderr


def mint(broker: Broker, key: str) -> tuple[int, str | None]:
    answer = httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth(key))
    return answer.status_code, answer.json().get("code")


def test_a_key_is_made_with_every_bound(broker: Broker) -> None:
    created = broker.create_key("--scope=files:upload", "--owner=shop", *BOUNDS)
    assert (created["owner"], created["rights"]) == ("shop", RIGHTS)
    shown = httpx.get(f"{broker.url}/keys/{created['id']}", headers=broker.auth(broker.admin_key)).json()
    once = {"key", "signing_secret"}
    assert shown == printed(broker, "show", created["id"])
    assert shown == {name: value for name, value in created.items() if name not in once}


def test_a_change_replaces_what_is_given_and_nothing_else(broker: Broker) -> None:
    created = broker.create_key("--scope=files:upload", "--owner=shop", *BOUNDS)
    key_id = created["id"]
    given = ["--name=new", "--bot=9", "--max-bytes=5", "--requests=0", "--expires-in-days=2"]
    changed = printed(broker, "update", key_id, *given)
    limits = {**RIGHTS["limits"], "requests": 0}  # type: ignore[dict-item]
    assert changed["rights"] == {**RIGHTS, "bots": ["9"], "max_bytes": 5, "limits": limits}
    assert (changed["name"], changed["owner"], changed["scopes"]) == ("new", "shop", ["files:upload"])
    assert changed["expires_at"] == pytest.approx(time.time() + 2 * 86_400, abs=30)
    cleared = printed(
        broker,
        "update",
        key_id,
        "--expires-in-days=0",
        *(f"--clear={name.replace('_', '-')}" for name in OPTIONS),
    )
    assert cleared["expires_at"] == 0
    assert {name: cleared["rights"][name] for name in LISTS.values()} == {name: [] for name in LISTS.values()}
    assert cleared["rights"]["max_bytes"] is None
    assert set(cleared["rights"]["limits"].values()) == {None}
    assert printed(broker, "show", key_id) == cleared


def test_origins_are_replaced_or_taken_away(broker: Broker) -> None:
    created = broker.create_key("--scope=files:upload", f"--origin={PAGE_ORIGIN}")
    changed = printed(broker, "update", created["id"], f"--origin={broker.origin}")
    assert changed["origins"] == [broker.origin]
    assert printed(broker, "update", created["id"], "--clear=origin")["origins"] == []


def test_a_rotated_key_shows_its_new_secret_and_until_when_the_old_works(broker: Broker) -> None:
    created = broker.create_key("--scope=token:mint")
    rotated = printed(broker, "rotate", created["id"], "--grace-seconds=60")
    assert rotated["key"].startswith("cub_sk_")
    assert rotated["signing_secret"] != created["signing_secret"]
    assert [secret["hint"] for secret in rotated["secrets"]] == [rotated["hint"], created["hint"]]
    assert mint(broker, created["key"]) == mint(broker, rotated["key"]) == (200, None)
    done = broker.command("keys", "rotate", created["id"], "--signing")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert (
        sum(line.startswith("cub_sk_") for line in lines)
        == sum(line.startswith("cub_ss_") for line in lines)
        == 1
    )
    for hint in (created["hint"], rotated["hint"]):
        assert f"{hint} works until 20" in done.stderr


def test_the_signing_secret_is_printed_for_whoever_asks(broker: Broker) -> None:
    arguments = ("create", "--name", "x", "--scope", "files:upload")
    assert "cub_ss_" not in broker.command("keys", *arguments).stdout
    assert "cub_ss_" in broker.command("keys", *arguments, "--signing").stdout
    page = ("create", "--name", "x", "--publishable", f"--origin={PAGE_ORIGIN}")
    assert "cub_ss_" not in broker.command("keys", *page, "--signing").stdout
    assert "signing_secret" not in printed(broker, *page)


def test_a_list_is_narrowed_down(broker: Broker) -> None:
    live, dead = (broker.create_key("--scope=chat", "--owner=narrowed") for _ in range(2))
    page = broker.create_key("--publishable", f"--origin={PAGE_ORIGIN}", "--owner=narrowed")
    revoked = printed(broker, "revoke", dead["id"])
    assert (revoked["id"], revoked["status"]) == (dead["id"], "revoked")

    def listed(*arguments: str) -> set[str]:
        return {key["id"] for key in printed(broker, "list", "--owner=narrowed", *arguments)}

    assert listed() == {live["id"], dead["id"], page["id"]}
    assert listed("--active") == {live["id"], page["id"]}
    assert listed("--kind=publishable") == {page["id"]}


def test_a_person_can_read_what_is_shown(broker: Broker) -> None:
    created = broker.create_key("--scope=files:upload", "--expires-in-days=1", *BOUNDS)
    shown = broker.command("keys", "show", created["id"]).stdout
    for text in (created["hint"], "bots: 1 2", "requests: 10", " UTC", "revoked_at", "never"):
        assert text in shown
    assert created["key"][11:-4] not in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", UNKNOWN], f"There is no key {UNKNOWN}."),
        (["update", UNKNOWN, "--name=x"], "There is no key with this id."),
        (["rotate", UNKNOWN], "There is no key with this id."),
        (["revoke", UNKNOWN], f"There is no key {UNKNOWN} that could be revoked."),
        (["create", "--name=x", "--scope=chat", "--max-bytes=0"], "error max_bytes is 1 to"),
        (["create", "--name=x", "--scope=chat", "--network=10.0.0.1/8"], "which 10.0.0.1/8 is not"),
        (["create", "--name=x", "--scope=chat", "--inflight=-1"], "inflight_uploads is 0 to"),
        (["update", UNKNOWN, "--clear=everything"], "--clear: there is no everything to take away."),
        (["update", UNKNOWN], "Say what to change"),
        (["update", UNKNOWN, "--origin=*"], "--origin: '*' is not an origin"),
        (["rotate", UNKNOWN, "--grace-seconds=-1"], "grace-seconds"),
        (["list", "--kind=root"], "kind"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(broker: Broker, arguments: list[str], sentence: str) -> None:
    assert sentence in refused(broker, *arguments)


def test_a_revoked_key_stays_as_it_is(broker: Broker) -> None:
    created = broker.create_key("--scope=chat")
    broker.command("keys", "revoke", created["id"])
    for arguments in (["update", created["id"], "--name=x"], ["rotate", created["id"]]):
        assert refused(broker, *arguments) == "error The key is revoked, and stays so. Make another one.\n"
