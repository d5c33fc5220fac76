"""Uploads in flight: as many as may be, in all processes, and the places of one that died come back."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import ExitStack
from typing import Any

import pytest

from broker.errors import StoreUnavailable, TooManyUploads
from broker.state.leases import Hold, Leases, LocalWhenDown, MemoryLeases, RedisLeases, held
from broker.state.redis import Redis
from tests.support.log_lines import LogLines
from tests.support.redis import RedisServer, until_back
from tests.support.waiting import until

KEY = Hold("key:k", 2)
SUBJECT = Hold("subject:s", 3)


@pytest.fixture(params=["memory", "redis", "redis, local when down"])
def leases(request: pytest.FixtureRequest) -> Leases:
    if request.param == "memory":
        return MemoryLeases()
    shared = RedisLeases(request.getfixturevalue("redis"))
    return shared if request.param == "redis" else LocalWhenDown(shared, MemoryLeases())


async def test_there_are_as_many_as_may_be(leases: Leases) -> None:
    assert await leases.take([KEY], "one", 30) is None
    assert await leases.take([KEY], "two", 30) is None
    assert await leases.take([KEY], "three", 30) == KEY
    await leases.release([KEY], "one")
    await leases.release([KEY], "one")
    assert await leases.take([KEY], "four", 30) is None
    assert await leases.take([KEY], "five", 30) == KEY
    assert await leases.take([Hold("key:other", 1)], "six", 30) is None


async def test_whoever_finds_one_full_takes_none(leases: Leases) -> None:
    for name in ("one", "two"):
        assert await leases.take([KEY, SUBJECT], name, 30) is None
    for order in ([KEY, SUBJECT], [SUBJECT, KEY]):
        for name in ("three", "four", "five"):
            assert await leases.take(order, name, 30) == KEY
    assert await leases.take([SUBJECT], "six", 30) is None
    assert await leases.take([SUBJECT], "seven", 30) == SUBJECT


async def test_without_a_bound_nothing_is_counted(leases: Leases) -> None:
    unbounded = Hold("key:k", 0)
    for number in range(10):
        assert await leases.take([unbounded], f"{number}", 30) is None
    await leases.renew([unbounded], "1", 30)
    assert await leases.take([Hold("key:k", 1)], "bounded", 30) is None
    await leases.release([unbounded], "1")
    assert await leases.take([], "none", 30) is None


async def test_of_hundreds_at_once_as_many_get_a_place_as_may(leases: Leases) -> None:
    holds = [Hold("key:k", 40), Hold("subject:s", 30)]
    taken = await asyncio.gather(*(leases.take(holds, f"{number}", 30) for number in range(300)))
    assert taken.count(None) == 30
    assert set(taken) == {None, holds[1]}


async def test_a_lease_runs_out_unless_it_is_renewed(leases: Leases) -> None:
    one = Hold("key:k", 1)
    assert await leases.take([one], "dead", 0.3) is None
    assert await leases.take([one], "next", 30) == one

    async def is_free() -> bool:
        return await leases.take([one], "next", 30) is None

    await until(is_free)
    assert await leases.take([one], "third", 30) == one


async def test_renewing_holds_a_place_for_longer(leases: Leases) -> None:
    one = Hold("key:k", 1)
    assert await leases.take([one], "first", 0.4) is None
    until_then = time.monotonic() + 1
    while time.monotonic() < until_then:
        await leases.renew([one], "first", 0.4)
        assert await leases.take([one], "second", 30) == one
        await asyncio.sleep(0.05)


async def test_a_lease_that_ran_out_under_its_holder_is_held_again(leases: Leases) -> None:
    """Its upload is there, whether it may or not: the next one has to wait for both."""
    one = Hold("key:k", 1)
    await leases.take([one], "slow", 0.05)

    async def is_free() -> bool:
        return await leases.take([one], "other", 30) is None

    await until(is_free)
    await leases.renew([one], "slow", 30)
    await leases.release([one], "other")
    assert await leases.take([one], "third", 30) == one


# --- held ------------------------------------------------------------------------------------------------


async def test_a_place_is_held_as_long_as_the_block_lasts(leases: Leases) -> None:
    """Beyond the end of the lease, as it is renewed."""
    one = Hold("key:k", 1)
    async with held(leases, [one], ttl_seconds=0.4, renew_every_seconds=0.1):
        until_then = time.monotonic() + 1
        while time.monotonic() < until_then:
            with pytest.raises(TooManyUploads) as refused:
                await enter(leases, one)
            await asyncio.sleep(0.05)
    assert refused.value.retry_after_seconds
    assert refused.value.log
    await enter(leases, one)


async def enter(leases: Leases, *holds: Hold) -> None:
    async with held(leases, holds):
        pass


async def test_what_fails_or_is_cancelled_frees_its_place(leases: Leases) -> None:
    one = Hold("key:k", 1)
    with pytest.raises(OSError, match="gone"):
        async with held(leases, [one]):
            raise OSError("gone")

    async def hold_on() -> None:
        async with held(leases, [one]):
            await asyncio.Event().wait()

    for turns in range(8):  # in the midst of taking, too
        task = asyncio.create_task(hold_on())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await enter(leases, one)


async def test_whoever_is_refused_leaves_nothing_running(leases: Leases) -> None:
    tasks = len(asyncio.all_tasks())
    async with held(leases, [KEY]), held(leases, [KEY]):
        for _ in range(20):
            with pytest.raises(TooManyUploads):
                await enter(leases, KEY)
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks


async def test_without_bounds_there_is_no_round_trip(redis: Redis) -> None:
    before = redis.shared
    async with held(RedisLeases(redis), [Hold("key:k", 0), Hold("subject:s", 0)]):
        assert redis.shared is before


HOLD_TWO = """
import asyncio, sys
from contextlib import AsyncExitStack
from broker.state.leases import Hold, RedisLeases, held
from broker.state.redis import Redis

async def main():
    redis = Redis(sys.argv[1])
    await redis.open()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            holding = held(RedisLeases(redis), [Hold("key:k", 2)], ttl_seconds=1, renew_every_seconds=0.3)
            await stack.enter_async_context(holding)
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


async def test_the_places_of_a_process_that_is_killed_come_back(
    redis_server: RedisServer, redis: Redis
) -> None:
    command = (sys.executable, "-c", HOLD_TWO, redis_server.url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    with ExitStack() as stack:
        stack.callback(end, process)
        assert process.stdout
        assert await process.stdout.readline() == b"held\n"
        leases: Leases = RedisLeases(redis)
        until_then = time.monotonic() + 1.5
        while time.monotonic() < until_then:
            with pytest.raises(TooManyUploads):
                await enter(leases, KEY)
            await asyncio.sleep(0.05)
        process.kill()
        killed_at = time.monotonic()
        await process.wait()

        async def is_free() -> bool:
            return await leases.take([KEY], "heir", 30) is None

        await until(is_free)
        assert time.monotonic() - killed_at < 5


# --- without Redis ---------------------------------------------------------------------------------------


async def test_while_redis_is_down_a_process_counts_its_own(
    redis_server: RedisServer, redis: Redis, log_lines: LogLines
) -> None:
    """What it held before counts, and what it holds is in Redis again when that is back, empty."""
    leases = LocalWhenDown(RedisLeases(redis), MemoryLeases())
    holding: dict[str, Any] = {"ttl_seconds": 30, "renew_every_seconds": 0.1}
    async with held(leases, [KEY], **holding):
        redis_server.kill()
        async with held(leases, [KEY], **holding):
            for _ in range(10):
                with pytest.raises(TooManyUploads):
                    await enter(leases, KEY)
        async with held(leases, [KEY], **holding):
            redis_server.start()
            await until_back(redis)

            async def are_known_to_all() -> bool:
                return await RedisLeases(redis).take([KEY], "another's", 0.01) == KEY

            await until(are_known_to_all)
    await enter(leases, KEY)
    assert leases.local_calls == 12
    ours = [event for event in log_lines.events() if event.startswith("uploads")]
    assert ours == [
        "uploads in flight are counted by this process alone",
        "uploads in flight are counted by all again",
    ]


async def test_a_process_remembers_none_but_what_it_holds(redis_server: RedisServer, redis: Redis) -> None:
    local = MemoryLeases()
    leases = LocalWhenDown(RedisLeases(redis), local)
    for befall in (RedisServer.heal, RedisServer.pause):
        befall(redis_server)
        for number in range(50):
            async with held(leases, [Hold(f"key:{number}", 2), Hold(f"subject:{number}", 2)]):
                assert len(local) == 2
    assert len(local) == 0
    assert local._buckets == {}


async def test_without_redis_alone_a_call_fails(redis_server: RedisServer, redis: Redis) -> None:
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        await enter(RedisLeases(redis), KEY)
