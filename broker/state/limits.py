"""How much callers may have: buckets in memory or in Redis, and this process's own while Redis is down.

By hand, since ``limits`` and ``throttled-py`` decide on one bucket a round trip, so that a refusal by the
second has already taken from the first; neither gives back what was not used, or hands out turns to wait for.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from broker.errors import StoreUnavailable
from broker.observe import logs
from broker.state.gcra import SLACK, Limit, Verdict, charge, judge, turn
from broker.state.redis import PREFIX, Redis, Script, Shared
from broker.state.uninterrupted import uninterrupted

__all__ = ["Limit", "Limits", "LocalWhenDown", "MemoryLimits", "RedisLimits", "Shared", "Turn", "Verdict"]

MAX_BUCKETS = 20_000
"""How many buckets one process remembers; those that were not touched for longest go first."""
SWEEP_EVERY_SECONDS = 60.0
MAX_BUCKET_LENGTH = 80

Answer = TypeVar("Answer")


class Limits(Protocol):
    """Buckets of many callers."""

    async def hit(self, limits: Sequence[Limit]) -> Verdict:
        """Take each limit's cost from its bucket, or, when one of them hasn't enough, from none."""

    async def give_back(self, limit: Limit, amount: int, *, held_seconds: float = 0.0) -> None:
        """Put back ``amount`` that was taken and not used.

        What came back by itself in the ``held_seconds`` since is not given a second time.
        """

    async def reserve(
        self, limit: Limit, *, max_wait_seconds: float, min_wait_seconds: float = 0.0
    ) -> Turn | float:
        """Take the next turn of a queue that lets at most ``quota`` pass in any window, of those that are at
        least ``min_wait_seconds`` away.

        If that is more than ``max_wait_seconds`` away, no turn is taken, and the answer is in how many
        seconds it would be.
        """


class Turn:
    """A turn that was taken: in how many seconds it is there, and a way back."""

    def __init__(self, wait_seconds: float, give_back: Callable[[], Awaitable[None]]) -> None:
        self.wait_seconds = wait_seconds
        self._give_back = give_back
        self._is_taken = True

    async def give_back(self) -> None:
        """Leave its moment, if that is still to come, to whoever asks next; a second time does nothing.

        Raises :class:`StoreUnavailable`.
        """
        if self._is_taken:
            self._is_taken = False
            await self._give_back()


# --- in memory ---------------------------------------------------------------------------------------------


class MemoryLimits:
    """The buckets of one process. ``now`` may be any clock of seconds that never goes back."""

    def __init__(self, now: Callable[[], float] = time.monotonic, max_buckets: int = MAX_BUCKETS) -> None:
        self._now = now
        self._max_buckets = max_buckets
        self._full_at: OrderedDict[tuple[str, str], float] = OrderedDict()
        """Of those that are not full; the one that was touched last is last."""
        self._turns: dict[tuple[str, str], deque[float]] = {}
        self._freed: dict[tuple[str, str], list[float]] = {}
        """Moments that were given back, the earliest first. Among the turns they stay: as nobody can pass
        before they were, nobody passes too early after them."""
        self._sweep_at = now() + SWEEP_EVERY_SECONDS

    def __len__(self) -> int:
        return len(self._full_at)

    async def hit(self, limits: Sequence[Limit]) -> Verdict:
        """Take from all or from none."""
        now = self._now()
        full_at: dict[tuple[str, str], float] = {}  # a bucket may come twice
        buckets = []
        for limit in limits:
            name = (limit.name, limit.bucket)
            known = full_at.get(name)
            bucket = charge(limit, self._full_at.get(name, now) if known is None else known, now)
            full_at[name] = now + bucket.debt_seconds
            buckets.append(bucket)
        verdict = judge(buckets)
        if verdict.allowed:
            for name, moment in full_at.items():
                if moment > now:
                    self._keep(name, moment)
            self._make_room(now)
        return verdict

    async def give_back(self, limit: Limit, amount: int, *, held_seconds: float = 0.0) -> None:
        """Put back; a bucket is full at best."""
        name = (limit.name, limit.bucket)
        if name in self._full_at:
            self._full_at[name] -= max(0.0, amount * limit.unit_seconds - held_seconds)

    async def reserve(
        self, limit: Limit, *, max_wait_seconds: float, min_wait_seconds: float = 0.0
    ) -> Turn | float:
        """Take a turn, if it is not too far away."""
        now = self._now()
        earliest = now + min_wait_seconds
        name = (limit.name, limit.bucket)
        freed = self._freed[name] = [at for at in self._freed.get(name, ()) if at >= now]
        turns = self._turns.get(name, ())
        of_freed = bisect.bisect_left(freed, earliest)
        is_freed = of_freed < len(freed)
        at = freed[of_freed] if is_freed else turn(turns, limit, earliest)
        if at - now > max_wait_seconds:
            return at - now
        if is_freed:
            del freed[of_freed]
        else:
            self._turns[name] = deque([*turns, at], maxlen=limit.quota)

        async def give_back() -> None:
            bisect.insort(self._freed[name], at)

        return Turn(at - now, give_back)

    def _keep(self, name: tuple[str, str], full_at: float) -> None:
        self._full_at[name] = full_at
        self._full_at.move_to_end(name)

    def _make_room(self, now: float) -> None:
        """A full bucket is the same as none; too many others are forgotten."""
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_EVERY_SECONDS
            for name in [name for name, full_at in self._full_at.items() if full_at <= now]:
                del self._full_at[name]
        while len(self._full_at) > self._max_buckets:
            self._full_at.popitem(last=False)


# --- in Redis ----------------------------------------------------------------------------------------------

_TIME = """
local time = redis.call('TIME')
local now = time[1] - 1735689600 + time[2] / 1000000  -- since 2025, for there are more digits left then
"""
# As `charge` and `judge` do it. Each limit has three values: its window, what its cost and its slack are in
# seconds. The answer is what each bucket lacked before; the verdict is made of that.
_HIT = Script(
    _TIME
    + """
-- It writes in any case: what may be minted now must be taken up later.
if #KEYS == 1 then redis.call('HSET', KEYS[1], 'asked', 1) end
local answer, full_at, allowed = {epoch, generation}, {}, true
for i = 2, #KEYS do
    local n = 3 * i - 5
    local window, cost, slack = tonumber(ARGV[n]), tonumber(ARGV[n + 1]), tonumber(ARGV[n + 2])
    local known = full_at[KEYS[i]] or tonumber(redis.call('GET', KEYS[i]) or now)
    local debt = math.min(math.max(known - now, 0), window)
    if debt + cost - window - slack > 0 then allowed = false end
    full_at[KEYS[i]] = now + (debt + cost)
    answer[i + 1] = string.format('%.17g', debt)
end
if allowed then
    for key, moment in pairs(full_at) do
        local ttl = math.ceil((moment - now) * 1000)
        if ttl > 0 then redis.call('SET', key, string.format('%.17g', moment), 'PX', ttl) end
    end
end
return answer
"""
)
_GIVE_BACK = Script(
    _TIME
    + """
local full_at = tonumber(redis.call('GET', KEYS[2]) or now) - tonumber(ARGV[1])
local ttl = math.ceil((full_at - now) * 1000)
if ttl > 0 then
    redis.call('SET', KEYS[2], string.format('%.17g', full_at), 'PX', ttl)
else
    redis.call('DEL', KEYS[2])
end
return {epoch, generation}
"""
)
# As `turn` does it.
_RESERVE = Script(
    _TIME
    + """
local quota, window, max_wait = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local earliest = now + tonumber(ARGV[4])
-- The last turn was taken in the future: the clock jumped back. How far off that turn is tells nothing, for
-- each caller waits as long as it likes.
if tonumber(redis.call('GET', KEYS[4]) or now) > now + 60 then redis.call('DEL', KEYS[2], KEYS[3]) end
local at = math.max(earliest, tonumber(redis.call('LINDEX', KEYS[2], -1) or now))
-- A moment that was given back stays among the turns: nobody passes too early after it.
local from = string.format('%.17g', earliest)
local freed = redis.call('ZRANGEBYSCORE', KEYS[3], from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
if freed[1] then
    local wait = string.format('%.17g', tonumber(freed[2]) - now)
    if tonumber(freed[2]) - now > max_wait then return {epoch, generation, wait, ''} end
    redis.call('ZREM', KEYS[3], freed[1])
    return {epoch, generation, wait, freed[2]}
end
local before = redis.call('LINDEX', KEYS[2], -quota)
if before then at = math.max(at, tonumber(before) + window) end
local wait = string.format('%.17g', at - now)
if at - now > max_wait then return {epoch, generation, wait, ''} end
redis.call('RPUSH', KEYS[2], string.format('%.17g', at))
redis.call('LTRIM', KEYS[2], -quota, -1)
local ttl = math.ceil((at - now + window) * 1000)
redis.call('PEXPIRE', KEYS[2], ttl)
redis.call('SET', KEYS[4], string.format('%.17g', now), 'PX', ttl)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. string.format('%.17g', now))
return {epoch, generation, wait, string.format('%.17g', at)}
"""
)
# Kept as long as the turns themselves; without them nobody waits.
_FREE = Script(
    """
local ttl = redis.call('PTTL', KEYS[2])
if ttl > 0 then
    redis.call('ZADD', KEYS[3], ARGV[1], ARGV[2])
    redis.call('PEXPIRE', KEYS[3], ttl)
end
return {epoch, generation}
"""
)


class RedisLimits:
    """Buckets that all processes share, by the clock of Redis. Raises :class:`StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def hit(self, limits: Sequence[Limit]) -> Verdict:
        """Take from all or from none, in one round trip; without limits it brings ``shared`` alone."""
        values: list[float] = []
        for limit in limits:
            unit = limit.unit_seconds
            values += (limit.window_seconds, limit.cost * unit, unit * SLACK)
        debts = await self._redis.run(_HIT, [_key(limit) for limit in limits], *values)
        buckets = [charge(limit, float(debt), 0.0) for limit, debt in zip(limits, debts, strict=True)]
        return judge(buckets)._replace(shared=self._redis.shared)

    async def give_back(self, limit: Limit, amount: int, *, held_seconds: float = 0.0) -> None:
        """Put back; a bucket is full at best."""
        seconds = amount * limit.unit_seconds - held_seconds
        if seconds > 0:
            await self._redis.run(_GIVE_BACK, [_key(limit)], seconds)

    async def reserve(
        self, limit: Limit, *, max_wait_seconds: float, min_wait_seconds: float = 0.0
    ) -> Turn | float:
        """Take a turn, if it is not too far away. A caller that is cancelled meanwhile leaves it to the next:
        that is waited for, and Redis either answers in a moment or is down.
        """
        values = (limit.quota, limit.window_seconds, max_wait_seconds, min_wait_seconds)
        work = asyncio.create_task(self._reserve(limit, values))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await _left_to_the_next(work)
            raise

    async def _reserve(self, limit: Limit, values: Sequence[float]) -> Turn | float:
        keys = [_key(limit, "turns"), _key(limit, "freed"), _key(limit, "clock")]
        wait, at = await self._redis.run(_RESERVE, keys, *values)
        if not at:
            return float(wait)

        async def give_back() -> None:
            await self._redis.run(_FREE, keys, at, secrets.token_hex(8))

        return Turn(float(wait), give_back)


@uninterrupted
async def _left_to_the_next(work: asyncio.Task[Turn | float]) -> None:
    with suppress(StoreUnavailable):
        turn = await work
        if isinstance(turn, Turn):
            await turn.give_back()


class LocalWhenDown:
    """Limits that are shared while Redis is up, and this process's own while it is down.

    Each process then lets through as much as all of them would otherwise.
    """

    def __init__(self, shared: Limits, local: Limits) -> None:
        self._shared = shared
        self._local = local
        self._is_local = False
        self.local_calls = 0
        """How many calls were decided without the others so far."""

    async def hit(self, limits: Sequence[Limit]) -> Verdict:
        """Take from all or from none."""
        return await self._try(lambda buckets: buckets.hit(limits))

    async def give_back(self, limit: Limit, amount: int, *, held_seconds: float = 0.0) -> None:
        """Put back; to where the limits are now, though they were elsewhere when it was taken."""
        await self._try(lambda buckets: buckets.give_back(limit, amount, held_seconds=held_seconds))

    async def reserve(
        self, limit: Limit, *, max_wait_seconds: float, min_wait_seconds: float = 0.0
    ) -> Turn | float:
        """Take a turn. It goes back to where it came from, wherever the limits are by then."""
        return await self._try(
            lambda buckets: buckets.reserve(
                limit, max_wait_seconds=max_wait_seconds, min_wait_seconds=min_wait_seconds
            )
        )

    async def _try(self, call: Callable[[Limits], Awaitable[Answer]]) -> Answer:
        try:
            answer = await call(self._shared)
        except StoreUnavailable as error:
            self.local_calls += 1
            self._change(is_local=True, detail=error.log)
            return await call(self._local)
        self._change(is_local=False)
        return answer

    def _change(self, *, is_local: bool, detail: str | None = None) -> None:
        if is_local == self._is_local:
            return
        self._is_local = is_local
        if is_local:
            logs.warning("limits are this process's own", detail=detail)
        else:
            logs.info("limits are shared again", local_calls=self.local_calls)


def _key(limit: Limit, kind: str = "limit") -> str:
    """A bucket may be named by a caller; a long name is known by its digest."""
    bucket = limit.bucket
    if len(bucket) > MAX_BUCKET_LENGTH:
        bucket = hashlib.sha256(bucket.encode()).hexdigest()
    return f"{PREFIX}{kind}:{limit.name}:{bucket}"
