"""Two brokers as two hosts would run them: one PostgreSQL, one Redis, one ring and pepper for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.broker_process import Broker, clean_environment, run_command, running_broker
from tests.support.databases import new_database
from tests.support.redis import RedisServer

PUBLIC_URL = "http://broker.example:2026"
"""One name for both: it is the issuer of their tokens."""


@dataclass
class Pair:
    """Two brokers, which stand behind one load balancer, and what they share."""

    one: Broker
    other: Broker
    redis: RedisServer

    def __iter__(self) -> Iterator[Broker]:
        return iter((self.one, self.other))


@contextmanager
def running_pair(
    folder: Path,
    coze_environment: dict[str, str],
    postgresql: str,
    redis: RedisServer,
    **settings: str,
) -> Iterator[Pair]:
    """Both, running; ended at the end."""
    shared = {
        "DATABASE_URL": new_database(postgresql),
        "REDIS_URL": redis.url,
        "BROKER_PUBLIC_URL": PUBLIC_URL,
        "BROKER_DATA_DIR": str(folder / "data"),
        **settings,
    }
    migrated = run_command("migrate", environment={**clean_environment(), **coze_environment, **shared})
    assert migrated.returncode == 0, migrated.stderr
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(running_broker(folder / name, coze_environment, **shared))
            for name in ("one", "other")
        )
        yield Pair(one, other, redis)
