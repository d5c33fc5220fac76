"""SIGUSR1 makes the broker tell what it holds; the tests that look for leaks stand on that."""

from __future__ import annotations

import pytest

from tests.support.broker_process import Broker
from tests.support.bystander import bystander
from tests.support.left_behind import assert_no_more, at_rest, look_inside, snapshot
from tests.support.raw_http import Connection
from tests.support.sandbox_control import SandboxControl


def test_a_snapshot_tells_what_is_held(broker: Broker, sandbox: SandboxControl) -> None:
    before = at_rest(broker).counts
    with bystander(broker, sandbox):
        during = snapshot(broker)
    for name in ("client_connections", "requests", "uploads_running", "coze_connections_in_use"):
        assert during[name] == before[name] + 1, name
    assert during["tasks"] > before["tasks"]
    assert during["open_files"] > 0
    assert during["memory_bytes"] > 1_000_000
    assert at_rest(broker).counts["uploads_running"] == 0


def test_what_is_left_behind_is_noticed(broker: Broker) -> None:
    before = at_rest(broker)
    with Connection(broker.url), pytest.raises(AssertionError, match="client_connections"):
        assert_no_more(broker, before, seconds=0.2)
    assert_no_more(broker, before)


def test_an_upload_left_behind_is_noticed(broker: Broker, sandbox: SandboxControl) -> None:
    before = at_rest(broker)
    with bystander(broker, sandbox):
        more = look_inside(broker).more_than(before)
    assert {"requests", "uploads_running", "coze_connections_in_use", "tasks"} <= set(more)
