"""One sandbox and one broker for all tests that don't need their own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from broker.sandbox.launch import in_subprocess
from tests.support import fault_table
from tests.support.authority import authority  # noqa: F401 - a fixture
from tests.support.broker_process import Broker, running_broker
from tests.support.clock import clock  # noqa: F401 - a fixture
from tests.support.databases import database, postgresql, url  # noqa: F401 - fixtures
from tests.support.left_behind import nothing_left_behind
from tests.support.log_lines import log_lines  # noqa: F401
from tests.support.network import network  # noqa: F401 - a fixture
from tests.support.openid_provider import openid_provider  # noqa: F401 - a fixture
from tests.support.redis import redis, redis_server, session_redis  # noqa: F401
from tests.support.sandbox_control import SandboxControl


def pytest_configure() -> None:
    """What a shell runs in the background ignores Ctrl-C, and so would all that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def session_sandbox() -> Iterator[SandboxControl]:
    with in_subprocess() as process:
        yield SandboxControl(process.base_url, dict(process.environment))


@pytest.fixture(scope="session")
def session_broker(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("broker"), session_sandbox.environment) as broker:
        yield broker


@pytest.fixture
def sandbox(session_sandbox: SandboxControl) -> Iterator[SandboxControl]:
    """The sandbox Coze, healed before and after."""
    session_sandbox.heal()
    yield session_sandbox
    session_sandbox.heal()


@pytest.fixture
def broker(session_broker: Broker, sandbox: SandboxControl) -> Broker:
    """The broker, in front of ``sandbox``."""
    return session_broker


@pytest.fixture
def client(broker: Broker) -> Iterator[httpx.Client]:
    """A server's client of the broker, with the secret key."""
    with httpx.Client(base_url=broker.url, headers=broker.auth(), timeout=30) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of this test's own."""
    return tmp_path


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that shows a fault, no broker holds more than before."""
    if not fault_table.is_named(request.node.nodeid):
        yield
        return
    with nothing_left_behind():
        yield
