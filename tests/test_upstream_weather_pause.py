"""A pause that Coze asked for: who knows of it, for how long, and what its ``Retry-After`` means."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from broker.errors import UpstreamBusy
from broker.state.redis import Redis
from broker.upstream.answers import retry_after_seconds
from broker.upstream.breaker import Breaker
from broker.upstream.guard import Guard
from broker.upstream.pause import Pause
from tests.support.clock import Clock
from tests.support.redis import RedisServer, opened

NOW = 784_111_777.0
"""RFC 9110's own example: Sun, 06 Nov 1994 08:49:37 GMT."""


async def test_what_was_read_from_redis_is_known_while_it_is_down(
    redis_server: RedisServer, redis: Redis, clock: Clock
) -> None:
    async with opened(redis_server.url) as others:
        reader = Pause(redis, max_seconds=30, now=clock)
        await Pause(others, max_seconds=30).begin(20)
        assert await reader.seconds_left() == pytest.approx(20, abs=5)
        redis_server.kill()
        assert await reader.seconds_left() == pytest.approx(20, abs=5)
        clock.now += 21
        assert await reader.seconds_left() == 0


async def test_a_pause_that_was_read_stays_though_redis_tells_a_shorter_one_later(
    redis_server: RedisServer, redis: Redis, clock: Clock
) -> None:
    pause = Pause(redis, max_seconds=30, now=clock)
    for told, left in ((20_000, 20), (2_000, 20), (25_000, 25)):
        redis_server.command("SET", "{cub}:pause", "1", "PX", str(told))
        assert await pause.seconds_left() == pytest.approx(left, abs=1)


async def test_a_pause_longer_than_any_is_a_clock_s_fault_and_not_kept(
    redis_server: RedisServer, redis: Redis, clock: Clock
) -> None:
    pause = Pause(redis, max_seconds=30, now=clock)
    redis_server.command("SET", "{cub}:pause", "1", "PX", "40000")
    assert await pause.seconds_left() == 0


async def test_who_is_not_patient_does_not_wait_for_the_end_of_a_pause(clock: Clock) -> None:
    """A page waits for a direct token; for the end of a pause its file can wait in the broker."""
    pause = Pause(None, max_seconds=30, now=clock)
    await pause.begin(1)
    guard = Guard(Breaker("coze", failures=0, open_seconds=1), pause, retry_seconds=15)
    called: list[None] = []

    async def once() -> None:
        called.append(None)

    began = time.monotonic()
    with pytest.raises(UpstreamBusy) as raised:
        await guard.repeated_call(once, guard.budget(), patient=False)
    assert (time.monotonic() - began < 0.9, called) == (True, [])
    assert raised.value.retry_after_seconds == 1


# --- Retry-After ----------------------------------------------------------------------------------------

RETRY_AFTER = {
    "7": 7,
    "007": 7,
    "0": 1,
    "60": 60,
    "3600": 60,
    "9" * 5000: 60,
    # RFC 9110 has whole seconds; a fraction, which some gateways send, is rounded up.
    "1.5": 2,
    "7.0": 7,
    "0.2": 1,
    "59.01": 60,
    # No number by the RFC, and no date either: two seconds, as if nothing had been said.
    "1_0": 2,
    "١٢": 2,
    "+3": 2,
    "-5": 2,
    "1e1": 2,
    "0x10": 2,
    "nan": 2,
    "inf": 2,
    "30 ": 30,
    "30,30": 2,
    "1.": 2,
    ".5": 2,
    "12\n": 2,
    "": 2,
    # A date in each of its forms (RFC 9110 §5.6.7), all of them in GMT.
    "Sun, 06 Nov 1994 08:49:47 GMT": 10,
    "Sunday, 06-Nov-94 08:49:47 GMT": 10,
    "Sun Nov  6 08:49:47 1994": 10,
    "Sun, 06 Nov 1994 08:48:00 GMT": 1,
}


@pytest.mark.usefixtures("far_east")
@pytest.mark.parametrize(("value", "seconds"), RETRY_AFTER.items(), ids=lambda value: str(value)[:30])
def test_retry_after_is_read_as_the_rfc_has_it(value: str, seconds: int) -> None:
    assert retry_after_seconds(value, NOW) == seconds


def test_nobody_comes_before_the_date() -> None:
    assert retry_after_seconds("Sun, 06 Nov 1994 08:49:47 GMT", NOW + 0.5) == 10


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server whose clock is set to another zone than GMT."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
