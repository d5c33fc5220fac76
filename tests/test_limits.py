"""Limits: never more than the quota allows, taken from all buckets or from none, in memory as in Redis."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import StoreUnavailable
from broker.state.gcra import charge, judge, turn
from broker.state.limits import Limit, Limits, LocalWhenDown, MemoryLimits, RedisLimits, Turn, Verdict
from broker.state.redis import Redis
from tests.support.clock import Clock
from tests.support.log_lines import LogLines
from tests.support.redis import RedisServer, until_back
from tests.support.waiting import until

HOUR = 3600.0


@pytest.fixture(params=["memory", "redis"])
def limits(request: pytest.FixtureRequest) -> Limits:
    if request.param == "memory":
        return MemoryLimits()
    return RedisLimits(request.getfixturevalue("redis"))


def of_key(quota: int, cost: int = 1, window_seconds: float = HOUR, bucket: str = "k") -> Limit:
    return Limit("key", bucket, quota, window_seconds, cost)


async def hit(limits: Limits, *each: Limit) -> Verdict:
    return await limits.hit(each)


# --- the contract ----------------------------------------------------------------------------------------


async def test_a_quota_is_had_and_no_more(limits: Limits) -> None:
    verdicts = [await hit(limits, of_key(3)) for _ in range(5)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False, False]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0, 0]
    assert verdicts[0].reset_seconds == pytest.approx(HOUR / 3, abs=60)
    assert verdicts[2].reset_seconds == pytest.approx(HOUR, abs=60)
    assert verdicts[2].retry_after_seconds == 0
    assert verdicts[3].retry_after_seconds == pytest.approx(HOUR / 3, abs=60)
    assert verdicts[3].limit == of_key(3)


async def test_each_bucket_of_each_name_is_its_own(limits: Limits) -> None:
    for other in (of_key(1), of_key(1, bucket="another"), Limit("ip", "k", 1, HOUR)):
        assert (await hit(limits, other)).allowed
    assert not (await hit(limits, of_key(1))).allowed


async def test_a_refused_call_takes_nothing_from_any_bucket(limits: Limits) -> None:
    full, free = of_key(1), Limit("ip", "1.2.3.4", 5, HOUR)
    assert (await hit(limits, full)).allowed
    for _ in range(10):
        refused = await hit(limits, free, full, free)
        assert not refused.allowed
        assert refused.limit == full
    assert (await hit(limits, free)).remaining == 4


async def test_the_limit_that_refuses_for_longest_is_told(limits: Limits) -> None:
    brief, long = Limit("ip", "i", 1, 60), Limit("subject", "s", 1, HOUR)
    await hit(limits, brief, long)
    for order in ((brief, long), (long, brief)):
        refused = await hit(limits, *order)
        assert refused.limit == long
        assert refused.retry_after_seconds == pytest.approx(HOUR, abs=60)


async def test_of_limits_that_allow_the_tightest_is_told(limits: Limits) -> None:
    """By the share that is left: bytes are not requests."""
    verdict = await hit(limits, of_key(100), Limit("bytes", "k", 10**9, HOUR, cost=9 * 10**8))
    assert verdict.limit
    assert verdict.limit.name == "bytes"
    assert verdict.remaining == 10**8


async def test_what_costs_more_than_the_quota_never_passes(limits: Limits) -> None:
    full = Limit("ip", "i", 1, HOUR)
    await hit(limits, full)
    for together in ([of_key(10, cost=11)], [of_key(10, cost=11), full], [full, of_key(10, cost=11)]):
        refused = await hit(limits, *together)
        assert not refused.allowed
        assert refused.retry_after_seconds is None
        assert refused.limit == of_key(10, cost=11)
    assert (await hit(limits, of_key(10, cost=10))).allowed


async def test_a_bucket_that_comes_twice_is_charged_twice(limits: Limits) -> None:
    assert (await hit(limits, of_key(3), of_key(3))).remaining == 1
    assert not (await hit(limits, of_key(3), of_key(3))).allowed
    assert (await hit(limits, of_key(3))).remaining == 0


async def test_what_costs_nothing_takes_nothing(limits: Limits) -> None:
    assert (await hit(limits, of_key(3, cost=0))).remaining == 3
    for _ in range(3):
        await hit(limits, of_key(3))
    assert (await hit(limits, of_key(3, cost=0))).allowed
    assert not (await hit(limits, of_key(3))).allowed


async def test_without_limits_all_pass(limits: Limits) -> None:
    verdict = await limits.hit([])
    assert verdict.allowed
    assert verdict.limit is None


async def test_a_bucket_fills_up_again_evenly(limits: Limits) -> None:
    fast = of_key(10, window_seconds=1)
    for _ in range(10):
        assert (await hit(limits, fast)).allowed
    began = time.monotonic()
    for _ in range(5):
        verdict = await hit(limits, fast)
        while not verdict.allowed:
            assert verdict.retry_after_seconds is not None
            assert 0 < verdict.retry_after_seconds <= 0.1
            await asyncio.sleep(verdict.retry_after_seconds)
            verdict = await hit(limits, fast)
    assert time.monotonic() - began > 0.45


async def test_under_a_shorter_window_nobody_waits_for_the_longer_one(limits: Limits) -> None:
    await hit(limits, of_key(5, cost=5))
    refused = await hit(limits, of_key(5, window_seconds=2))
    assert refused.retry_after_seconds == pytest.approx(0.4, abs=0.1)
    assert refused.reset_seconds == pytest.approx(2, abs=0.1)


async def test_under_a_larger_quota_there_is_the_same_share_left(limits: Limits) -> None:
    await hit(limits, of_key(10, cost=5))
    assert (await hit(limits, of_key(100))).remaining == 49
    assert (await hit(limits, of_key(4))).remaining == 0


async def test_what_was_not_used_is_given_back(limits: Limits) -> None:
    taken = Limit("bytes", "s", 1000, HOUR, cost=1000)
    await hit(limits, taken)
    await limits.give_back(taken, 400)
    assert not (await hit(limits, Limit("bytes", "s", 1000, HOUR, cost=401))).allowed
    assert (await hit(limits, Limit("bytes", "s", 1000, HOUR, cost=400))).allowed


async def test_no_more_is_given_back_than_fills_the_bucket(limits: Limits) -> None:
    for _ in range(2):
        await limits.give_back(of_key(3), 1000)
        assert (await hit(limits, of_key(3, cost=3))).allowed
        assert not (await hit(limits, of_key(3))).allowed
        await limits.give_back(of_key(3), 1000)


async def test_what_came_back_by_itself_is_not_given_a_second_time(limits: Limits) -> None:
    await hit(limits, of_key(100, cost=100))
    await limits.give_back(of_key(100), 50, held_seconds=HOUR * 0.2)
    assert (await hit(limits, of_key(100, cost=0))).remaining == 30
    await limits.give_back(of_key(100), 50, held_seconds=HOUR * 0.9)
    assert (await hit(limits, of_key(100, cost=0))).remaining == 30


async def test_of_hundreds_at_once_as_many_pass_as_may(limits: Limits) -> None:
    together = (of_key(70), Limit("subject", "s", 50, HOUR), Limit("ip", "i", 90, HOUR))
    verdicts = await asyncio.gather(*(limits.hit(together) for _ in range(400)))
    assert sum(verdict.allowed for verdict in verdicts) == 50
    assert (await hit(limits, of_key(70))).remaining == 19


async def test_a_bucket_may_have_any_name(limits: Limits) -> None:
    for bucket in ("", "a b\r\nc", "主题 😀" * 200, "x" * 10_000, "{other}slot"):
        assert (await hit(limits, of_key(2, bucket=bucket))).remaining == 1
        assert (await hit(limits, of_key(2, bucket=bucket))).remaining == 0
    assert (await hit(limits, of_key(2, bucket="x" * 9_999))).remaining == 1


@pytest.mark.parametrize("given", [{"quota": 0}, {"quota": -1}, {"quota": 1, "window_seconds": 0}])
def test_a_limit_that_is_none_is_not_made(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a limit of"):
        of_key(**given)


# --- turns -----------------------------------------------------------------------------------------------


async def test_turns_are_a_window_apart_however_many_come_at_once(limits: Limits) -> None:
    """Never more than the quota in any window, unlike a bucket: Coze counts its own."""
    upstream = Limit("upstream", "coze", 10, 1.0)
    began = time.monotonic()
    turns = await asyncio.gather(*(limits.reserve(upstream, max_wait_seconds=60) for _ in range(100)))
    took = time.monotonic() - began
    at = sorted(turn.wait_seconds for turn in turns if isinstance(turn, Turn))
    assert len(at) == 100
    assert at[:10] == pytest.approx([0] * 10, abs=0.01)
    assert all(later - earlier > 1 - took - 0.01 for earlier, later in zip(at, at[10:], strict=False))
    assert at[-1] < 9.01


async def test_a_turn_that_is_too_far_off_is_not_taken(limits: Limits) -> None:
    upstream = Limit("upstream", "coze", 2, 60.0)
    for _ in range(2):
        assert await wait_for_turn(limits, upstream, 0) == pytest.approx(0, abs=0.01)
    for _ in range(10):
        assert await limits.reserve(upstream, max_wait_seconds=30) == pytest.approx(60, abs=5)
    for seconds in (60, 60, 120):
        assert await wait_for_turn(limits, upstream, 130) == pytest.approx(seconds, abs=5)
    assert await limits.reserve(upstream, max_wait_seconds=30) == pytest.approx(120, abs=5)
    assert await wait_for_turn(limits, Limit("upstream", "other", 2, 60.0), 0) == pytest.approx(0, abs=0.01)


async def test_a_turn_after_a_pause_is_behind_those_that_wait_for_its_end_as_well(limits: Limits) -> None:
    upstream = Limit("upstream", "coze", 2, 10.0)
    assert await wait_for_turn(limits, upstream, 60) == pytest.approx(0, abs=0.01)
    turns = [await limits.reserve(upstream, min_wait_seconds=30, max_wait_seconds=45) for _ in range(4)]
    assert [turn.wait_seconds for turn in turns if isinstance(turn, Turn)] == pytest.approx(
        [30, 30, 40, 40], abs=1
    )
    for _ in range(2):
        refused = await limits.reserve(upstream, min_wait_seconds=30, max_wait_seconds=45)
        assert refused == pytest.approx(50, abs=1)
    assert isinstance(turns[3], Turn)
    await turns[3].give_back()
    assert await wait_for_turn(limits, upstream, 45) == pytest.approx(40, abs=1)


async def test_of_moments_that_were_given_back_one_in_a_pause_is_left_alone(limits: Limits) -> None:
    upstream = Limit("upstream", "coze", 1, 10.0)
    turns = [await limits.reserve(upstream, max_wait_seconds=60) for _ in range(4)]
    for given_back in turns[1:3]:
        assert isinstance(given_back, Turn)
        await given_back.give_back()
    after = await limits.reserve(upstream, min_wait_seconds=15, max_wait_seconds=60)
    assert isinstance(after, Turn)
    assert after.wait_seconds == pytest.approx(20, abs=1)
    assert await wait_for_turn(limits, upstream, 60) == pytest.approx(10, abs=1)


async def wait_for_turn(limits: Limits, limit: Limit, max_wait_seconds: float) -> float:
    """How long the wait is for a turn that is taken."""
    turn = await limits.reserve(limit, max_wait_seconds=max_wait_seconds)
    assert isinstance(turn, Turn)
    return turn.wait_seconds


async def test_a_turn_that_was_given_back_is_the_next_caller_s(limits: Limits) -> None:
    upstream = Limit("upstream", "coze", 1, 30.0)
    turns = [await limits.reserve(upstream, max_wait_seconds=600) for _ in range(4)]
    second, third = turns[1], turns[2]
    assert isinstance(second, Turn)
    assert isinstance(third, Turn)
    await third.give_back()
    await second.give_back()
    await second.give_back()  # which changes nothing
    assert await limits.reserve(upstream, max_wait_seconds=10) == pytest.approx(30, abs=5)
    for seconds in (30, 60, 120):
        assert await wait_for_turn(limits, upstream, 600) == pytest.approx(seconds, abs=5)


async def test_a_turn_whose_moment_is_over_is_nobody_s(limits: Limits) -> None:
    """Used later, it would let too many through before the next one."""
    upstream = Limit("upstream", "coze", 1, 0.2)
    turns = [await limits.reserve(upstream, max_wait_seconds=60) for _ in range(3)]
    await asyncio.sleep(0.25)
    assert isinstance(turns[1], Turn)
    await turns[1].give_back()
    assert await wait_for_turn(limits, upstream, 60) > 0.2


@pytest.mark.parametrize("seed", range(5))
async def test_never_do_more_pass_than_may_whatever_is_given_back(clock: Clock, seed: int) -> None:
    """A thousand callers of any patience, every third of which leaves while it waits."""
    chance, limits, upstream = random.Random(seed), MemoryLimits(clock), Limit("upstream", "coze", 4, 1.0)
    waiting: list[tuple[float, Turn]] = []
    passed: list[float] = []
    for _ in range(1000):
        clock.now += chance.random() * 0.3
        passed += [at for at, _ in waiting if at <= clock.now]
        waiting = [(at, turn) for at, turn in waiting if at > clock.now]
        turn = await limits.reserve(upstream, max_wait_seconds=chance.random() * 5)
        if isinstance(turn, Turn):
            waiting.append((clock.now + turn.wait_seconds, turn))
        if waiting and chance.random() < 0.33:
            _, leaver = waiting.pop(chance.randrange(len(waiting)))
            await leaver.give_back()
    passed.sort()
    assert len(passed) > 500, "what is given back is used"
    assert all(later - earlier > 1 - 1e-6 for earlier, later in zip(passed, passed[4:], strict=False))


# --- Redis -----------------------------------------------------------------------------------------------


async def test_a_turn_goes_back_to_where_it_came_from(redis_server: RedisServer, redis: Redis) -> None:
    """Taken here while Redis is down, it is none of those that all share; and the other way round."""
    limits, upstream = LocalWhenDown(RedisLimits(redis), MemoryLimits()), Limit("upstream", "coze", 1, 60.0)
    shared = [await limits.reserve(upstream, max_wait_seconds=600) for _ in range(2)]
    redis_server.pause()
    local = [await limits.reserve(upstream, max_wait_seconds=600) for _ in range(3)]
    redis_server.resume()
    await until_back(redis)
    assert isinstance(local[1], Turn)
    last = await wait_for_turn(limits, upstream, 600)
    await local[1].give_back()
    assert await wait_for_turn(limits, upstream, 600) == pytest.approx(last + 60, abs=5)
    assert isinstance(shared[1], Turn)
    await shared[1].give_back()
    assert await wait_for_turn(limits, upstream, 600) == pytest.approx(60, abs=5)


async def test_a_turn_that_nobody_waited_for_the_answer_of_is_the_next_caller_s(
    redis_server: RedisServer, redis: Redis
) -> None:
    """Its caller leaves while Redis is asked, which takes the turn all the same."""
    limits, upstream = RedisLimits(redis), Limit("upstream", "coze", 1, 30.0)
    assert await wait_for_turn(limits, upstream, 600) == pytest.approx(0, abs=0.01)
    redis_server.pause()
    leaver = asyncio.create_task(limits.reserve(upstream, max_wait_seconds=600))
    await asyncio.sleep(0)
    await until(lambda: redis._line is not None and redis._line.in_flight)
    leaver.cancel()
    redis_server.resume()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert await wait_for_turn(limits, upstream, 600) == pytest.approx(30, abs=5)


async def test_who_leaves_while_redis_says_nothing_is_not_kept(
    redis_server: RedisServer, redis: Redis
) -> None:
    redis_server.pause()
    leaver = asyncio.create_task(RedisLimits(redis).reserve(of_key(1), max_wait_seconds=600))
    await until(lambda: redis._line is not None and redis._line.in_flight)
    began = time.monotonic()
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert time.monotonic() - began < 5


async def test_a_moment_that_was_given_back_is_forgotten_with_the_turns(
    redis_server: RedisServer, redis: Redis
) -> None:
    limits, upstream = RedisLimits(redis), Limit("upstream", "coze", 1, 0.3)
    turns = [await limits.reserve(upstream, max_wait_seconds=5) for _ in range(3)]
    assert isinstance(turns[2], Turn)
    await turns[2].give_back()
    await until(lambda: redis_server.command("KEYS", "*") == ["{cub}:store"])


async def test_redis_decides_as_memory_does(redis: Redis) -> None:
    """A thousand calls of any kind; in this hour hardly anything comes back."""
    chance = random.Random(7)
    here, there = MemoryLimits(lambda: 0.0), RedisLimits(redis)

    def some() -> Limit:
        quota, cost = chance.choice((5, 9, 20)), chance.randrange(4)
        return Limit("n", chance.choice("abcdefghij"), quota, HOUR * 1000, cost)

    for _ in range(1000):
        together = [some() for _ in range(chance.randrange(5))]
        if chance.random() < 0.3 and together:
            for limits in (here, there):
                await limits.give_back(together[0], 3)
        ours, theirs = await here.hit(together), await there.hit(together)
        assert ours.allowed == theirs.allowed
        assert ours.retry_after_seconds == pytest.approx(theirs.retry_after_seconds, abs=60)


async def test_who_waits_for_less_than_others_leaves_the_queue_as_it_is(redis: Redis) -> None:
    """A wait of so long is not the mark of a clock that jumped back: others were told of one."""
    limits, upstream = RedisLimits(redis), Limit("upstream", "coze", 1, 60.0)
    for seconds in (0, 60, 120, 180):
        assert await wait_for_turn(limits, upstream, 600) == pytest.approx(seconds, abs=5)
    for max_wait_seconds in (10, 0):
        told = await limits.reserve(upstream, max_wait_seconds=max_wait_seconds)
        assert told == pytest.approx(240, abs=5)


async def test_what_all_processes_know_comes_with_every_verdict(redis: Redis) -> None:
    limits = RedisLimits(redis)
    verdicts = [await limits.hit([]), await hit(limits, of_key(1)), await hit(limits, of_key(1))]
    assert [verdict.allowed for verdict in verdicts] == [True, True, False]
    assert all(verdict.shared == redis.shared for verdict in verdicts)
    assert redis.shared


async def test_a_call_is_one_round_trip(redis_server: RedisServer, redis: Redis) -> None:
    limits = RedisLimits(redis)
    together = [Limit(name, "k", 9, HOUR) for name in ("key", "subject", "ip", "origin", "bytes")]
    await limits.hit(together)
    before = calls(redis_server)
    await limits.hit(together)
    assert calls(redis_server) - before == 1


def calls(server: RedisServer) -> int:
    stats: Any = server.command("INFO", "commandstats")
    return int(stats["cmdstat_evalsha"]["calls"]) + int(stats.get("cmdstat_eval", {}).get("calls", 0))


async def test_nothing_stays_in_redis_for_longer_than_it_matters(
    redis_server: RedisServer, redis: Redis
) -> None:
    limits = RedisLimits(redis)
    await hit(limits, of_key(3, window_seconds=0.3))
    await limits.reserve(Limit("upstream", "coze", 3, 0.3), max_wait_seconds=1)
    give_up = time.monotonic() + 5
    while redis_server.command("KEYS", "*") != ["{cub}:store"]:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


HIT_OFTEN = """
import asyncio, sys
from broker.state.limits import Limit, RedisLimits, Turn
from broker.state.redis import Redis

async def main():
    redis = Redis(sys.argv[1])
    await redis.open()
    limits = RedisLimits(redis)
    print("ready", flush=True)
    sys.stdin.readline()
    together = [Limit("key", "k", 100, 3600), Limit("subject", "s", 70, 3600)]
    print(sum([(await limits.hit(together)).allowed for _ in range(100)]))
    upstream = Limit("upstream", "coze", 10, 1)
    turns = [await limits.reserve(upstream, max_wait_seconds=9.5) for _ in range(80)]
    print(sum(isinstance(turn, Turn) for turn in turns))
    await redis.close()

asyncio.run(main())
"""


async def test_two_processes_together_have_one_quota(redis_server: RedisServer) -> None:
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    command = (sys.executable, "-c", HIT_OFTEN, redis_server.url)
    processes = [await asyncio.create_subprocess_exec(*command, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    told = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    hits, turns = zip(*([int(line) for line in out.split()] for out, _ in told), strict=True)
    assert sum(hits) == 70
    assert 100 <= sum(turns) <= 130, "ten at once, ten more for each second of nine and a half, and a while"


async def test_while_redis_is_down_limits_are_local_and_then_shared_again(
    redis_server: RedisServer, redis: Redis, log_lines: LogLines
) -> None:
    limits = LocalWhenDown(RedisLimits(redis), MemoryLimits())
    assert (await hit(limits, of_key(3))).shared
    redis_server.pause()
    verdicts = [await hit(limits, of_key(3)) for _ in range(5)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, True, False, False]
    assert [verdict.shared for verdict in verdicts] == [None] * 5
    assert await wait_for_turn(limits, of_key(1), 0) == 0
    assert await limits.reserve(of_key(1), max_wait_seconds=0) == pytest.approx(HOUR, abs=60)
    await limits.give_back(of_key(3), 1)
    assert (await hit(limits, of_key(3))).allowed
    assert limits.local_calls == 9
    redis_server.resume()
    await until_back(redis)
    verdict = await hit(limits, of_key(3))
    assert verdict.shared
    assert verdict.remaining in (0, 1), "the call that was not answered may have been counted"
    ours = [event for event in log_lines.events() if event.startswith("limits")]
    assert ours == ["limits are this process's own", "limits are shared again"]


async def test_without_redis_alone_a_call_fails(redis_server: RedisServer, redis: Redis) -> None:
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        await RedisLimits(redis).hit([])


# --- memory ----------------------------------------------------------------------------------------------


async def test_many_callers_do_not_fill_the_memory(clock: Clock) -> None:
    limits = MemoryLimits(clock, max_buckets=1000)
    for number in range(5000):
        await hit(limits, of_key(3, bucket=f"2001:db8::{number}"))
    assert len(limits) == 1000


async def test_of_too_many_those_that_were_quiet_for_longest_are_forgotten(clock: Clock) -> None:
    limits = MemoryLimits(clock, max_buckets=100)
    busy = of_key(1000, bucket="busy")
    for number in range(1000):
        await hit(limits, busy)
        await hit(limits, of_key(3, bucket=f"{number}"))
    assert not (await hit(limits, busy)).allowed


async def test_full_buckets_are_swept_out(clock: Clock) -> None:
    limits = MemoryLimits(clock)
    for number in range(500):
        await hit(limits, of_key(10, bucket=f"{number}", window_seconds=60))
    await hit(limits, of_key(10))
    clock.now += 61
    await hit(limits, of_key(10))
    assert len(limits) == 1


async def test_refused_callers_are_not_remembered(clock: Clock) -> None:
    limits = MemoryLimits(clock)
    full = of_key(1)
    await hit(limits, full)
    for number in range(100):
        await hit(limits, full, Limit("ip", f"{number}", 3, HOUR))
    assert len(limits) == 1


# --- the decision ----------------------------------------------------------------------------------------

QUOTAS = st.integers(1, 50)
WINDOWS = st.floats(0.01, 1000)
COSTS = st.integers(0, 8)
# Steps of time, in windows, and what is asked for after each.
ASKED = st.lists(st.tuples(st.floats(0, 0.5), COSTS), max_size=80)


@given(quota=QUOTAS, window=WINDOWS, asked=ASKED)
def test_in_no_stretch_of_time_more_is_had_than_the_bucket_held_and_got(
    quota: int, window: float, asked: list[tuple[float, int]]
) -> None:
    now = full_at = 1e6
    had: list[tuple[float, int]] = []
    for step, cost in asked:
        now += step * window
        limit = of_key(quota, cost, window)
        bucket = charge(limit, full_at, now)
        verdict = judge([bucket])
        assert verdict.allowed == (bucket.wait_seconds <= 0)
        if verdict.allowed:
            full_at = now + bucket.debt_seconds
            had.append((now, cost))
            assert 0 <= verdict.remaining <= quota
            assert verdict.reset_seconds <= window * 1.001
    for first, (began, _) in enumerate(had):
        total = 0
        for moment, cost in had[first:]:
            total += cost
            assert total <= quota * (1 + (moment - began) / window) + 0.01


@given(quota=QUOTAS, window=WINDOWS, asked=ASKED)
def test_whoever_waits_as_long_as_was_said_gets_in_and_not_much_earlier(
    quota: int, window: float, asked: list[tuple[float, int]]
) -> None:
    now = full_at = 1e6
    for step, cost in asked:
        now += step * window
        limit = of_key(quota, cost, window)
        bucket = charge(limit, full_at, now)
        wait = judge([bucket]).retry_after_seconds
        if wait is None:
            assert cost > quota
            continue
        if wait > 0:
            assert not judge([charge(limit, full_at, now + wait - limit.unit_seconds * 0.01)]).allowed
            now += wait + limit.unit_seconds * 1e-3
            bucket = charge(limit, full_at, now)
            assert judge([bucket]).allowed
        full_at = now + bucket.debt_seconds


@given(asked=st.lists(st.lists(st.tuples(st.sampled_from("abc"), QUOTAS, COSTS), max_size=4), max_size=30))
def test_all_buckets_are_charged_or_none(asked: list[list[tuple[str, int, int]]]) -> None:
    """Of the three in memory none changes when a call is refused."""

    async def ask() -> None:
        limits = MemoryLimits(lambda: 5.0)
        for each in asked:
            before = dict(limits._full_at)
            verdict = await limits.hit([of_key(quota, cost, bucket=name) for name, quota, cost in each])
            if not verdict.allowed:
                assert limits._full_at == before

    asyncio.run(ask())


@given(
    quota=QUOTAS,
    window=WINDOWS,
    calls=st.lists(st.tuples(st.floats(0, 0.3), st.integers(-9, 9)), max_size=60),
)
def test_giving_back_never_makes_more_than_there_was(
    quota: int, window: float, calls: list[tuple[float, int]]
) -> None:
    """Positive: taken; negative: given back. The bucket holds its quota at most."""

    async def ask() -> None:
        now = 1000.0
        limits = MemoryLimits(lambda: now)
        for step, amount in calls:
            now += step * window
            if amount < 0:
                await limits.give_back(of_key(quota, window_seconds=window), -amount)
            else:
                await limits.hit([of_key(quota, amount, window)])
            assert (await limits.hit([of_key(quota, 0, window)])).remaining <= quota
        await limits.give_back(of_key(quota, window_seconds=window), 1000)
        assert (await limits.hit([of_key(quota, quota, window)])).allowed
        assert not (await limits.hit([of_key(quota, 1, window)])).allowed

    asyncio.run(ask())


@given(quota=QUOTAS, window=WINDOWS, steps=st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
@settings(max_examples=50)
def test_turns_come_in_order_and_in_no_window_more_than_the_quota(
    quota: int, window: float, steps: list[float]
) -> None:
    now = 1000.0
    turns: list[float] = []
    limit = of_key(quota, window_seconds=window)
    for step in steps:
        now += step * window / quota
        turns.append(turn(turns, limit, now))
        assert turns[-1] >= now
    assert all(earlier <= later for earlier, later in pairwise(turns))
    assert all(turns[i] - turns[i - quota] >= window * (1 - 1e-9) for i in range(quota, len(turns)))
