"""Two brokers on one database: what becomes of a key at the one is so at the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import databases
from tests.support.broker_process import Broker, running_broker
from tests.support.sandbox_control import SandboxControl

ONE_SECOND = 1.0
"""How long what was just found is good in a process that nobody told of the change."""
BUSY_SECONDS = 5.0
"""What a busy machine may need besides."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The settings that brokers share: one database, and one folder with pepper and signing keys."""
    folder = tmp_path_factory.mktemp("shared")
    address = f"sqlite:///{folder / 'broker.db'}"
    if request.param == "postgresql":
        address = databases.new_database(request.getfixturevalue("postgresql"))
    return {"DATABASE_URL": address.replace("+asyncpg", ""), "BROKER_DATA_DIR": str(folder)}


@pytest.fixture(scope="module")
def two(
    shared: dict[str, str], session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Broker, Broker]]:
    folder = tmp_path_factory.mktemp("two")
    with (
        running_broker(folder / "one", session_sandbox.environment, **shared) as one,
        running_broker(folder / "two", session_sandbox.environment, **shared) as two,
    ):
        yield one, two


def outcome(broker: Broker, key: str) -> tuple[int, str | None]:
    answer = httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth(key))
    return answer.status_code, answer.json().get("code")


def wait_for(broker: Broker, key: str, expected: tuple[int, str | None], seconds: float) -> None:
    give_up = time.monotonic() + seconds + BUSY_SECONDS
    while (seen := outcome(broker, key)) != expected:
        assert time.monotonic() < give_up, seen
        time.sleep(0.02)


def test_a_rotated_key_works_on_both_through_its_grace_and_on_neither_after(
    two: tuple[Broker, Broker],
) -> None:
    old, new, ends_at = rotated_and_seen_in_its_grace(two)
    for broker in two:
        wait_for(broker, old, (401, "expired_credential"), ends_at - time.time())
        assert time.time() >= ends_at
        assert outcome(broker, new) == (200, None)


def rotated_and_seen_in_its_grace(two: tuple[Broker, Broker]) -> tuple[str, str, int]:
    """The old secret, the new one, and when the old one ends; the grace is long enough to ask for both."""
    created = two[0].create_key("--scope=token:mint")
    old, headers = created["key"], two[0].auth(two[0].admin_key)
    assert outcome(two[1], old) == (200, None)
    for grace_seconds in (2, 4, 8, 16):
        path = f"{two[0].url}/keys/{created['id']}/rotate"
        rotated = httpx.post(path, json={"grace_seconds": grace_seconds}, headers=headers).json()
        seen = {outcome(broker, key) for broker in two for key in (old, rotated["key"])}
        ends_at: int = rotated["secrets"][1]["expires_at"]
        if time.time() < ends_at:
            assert seen == {(200, None)}
            return old, rotated["key"], ends_at
        old = rotated["key"]
    raise AssertionError("no grace was long enough to ask four times")


def test_a_key_revoked_at_the_one_is_refused_by_the_other(two: tuple[Broker, Broker]) -> None:
    one, other = two
    created = one.create_key("--scope=token:mint")
    assert outcome(other, created["key"]) == (200, None)
    httpx.delete(f"{one.url}/keys/{created['id']}", headers=one.auth(one.admin_key)).raise_for_status()
    assert outcome(one, created["key"]) == (401, "invalid_credential")
    wait_for(other, created["key"], (401, "invalid_credential"), ONE_SECOND)


def test_a_key_changed_at_the_one_is_another_at_the_other(two: tuple[Broker, Broker]) -> None:
    one, other = two
    created = one.create_key("--scope=token:mint")
    assert outcome(other, created["key"]) == (200, None)
    change = {"scopes": ["files:read"]}
    path = f"{one.url}/keys/{created['id']}"
    httpx.patch(path, json=change, headers=one.auth(one.admin_key)).raise_for_status()
    wait_for(other, created["key"], (403, "wrong_scope"), ONE_SECOND)


def test_a_broker_that_stops_writes_down_who_was_there(
    two: tuple[Broker, Broker], shared: dict[str, str], sandbox: SandboxControl, folder: Path
) -> None:
    """Long before the next time that it would have been written."""
    created = two[0].create_key("--scope=token:mint")
    with running_broker(folder, sandbox.environment, **shared) as third:
        assert outcome(third, created["key"]) == (200, None)
        used_at = time.time()
    path = f"{two[0].url}/keys/{created['id']}"
    shown = httpx.get(path, headers=two[0].auth(two[0].admin_key)).json()
    assert shown["last_used_at"] == pytest.approx(used_at, abs=BUSY_SECONDS)
