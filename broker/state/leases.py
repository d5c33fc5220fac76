"""How many uploads there are at once, of a key or a subject, in all processes together.

Each is a lease that whoever holds it renews. Should a process die, its leases run out and their places are
free.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from broker.errors import StoreUnavailable, TooManyUploads
from broker.observe import logs
from broker.state.redis import PREFIX, Redis, Script

TTL_SECONDS = 30.0
RENEW_EVERY_SECONDS = 10.0
RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Hold:
    """A place in ``bucket``, which has ``max_held``; 0 is no bound."""

    bucket: str
    max_held: int


class Leases(Protocol):
    """Places that are held for a while."""

    async def take(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> Hold | None:
        """Take a place in each; None when that is done, else the one that was full, and none is taken."""

    async def renew(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> None:
        """Hold the places for longer; one that had run out again, though it may be one too many."""

    async def release(self, holds: Sequence[Hold], lease_id: str) -> None:
        """Free the places; does nothing where they are free."""


@asynccontextmanager
async def held(
    leases: Leases,
    holds: Sequence[Hold],
    *,
    ttl_seconds: float = TTL_SECONDS,
    renew_every_seconds: float = RENEW_EVERY_SECONDS,
) -> AsyncIterator[None]:
    """Hold a place in each for as long as the block lasts.

    Raises :class:`TooManyUploads` when one is full.
    """
    bounded = [hold for hold in holds if hold.max_held > 0]
    if not bounded:
        yield
        return
    lease_id = secrets.token_hex(8)
    renewing: asyncio.Task[None] | None = None
    try:
        full = await leases.take(bounded, lease_id, ttl_seconds)
        if full is not None:
            raise TooManyUploads(retry_after_seconds=RETRY_AFTER_SECONDS, log=f"{full} is full")
        renewing = asyncio.create_task(_renew(leases, bounded, lease_id, ttl_seconds, renew_every_seconds))
        yield
    finally:
        if renewing is not None:
            renewing.cancel()
        # Also when the take was cancelled: it may have been done.
        with suppress(StoreUnavailable):
            await leases.release(bounded, lease_id)


async def _renew(
    leases: Leases, holds: Sequence[Hold], lease_id: str, ttl_seconds: float, every_seconds: float
) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        with suppress(StoreUnavailable):
            await leases.renew(holds, lease_id, ttl_seconds)


class MemoryLeases:
    """The places of one process. ``now`` may be any clock of seconds that never goes back."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[str, dict[str, float]] = {}

    def __len__(self) -> int:
        return sum(len(leases) for leases in self._buckets.values())

    async def take(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> Hold | None:
        """Take all or none."""
        for hold in holds:
            if self._is_full(hold):
                return hold
        await self.renew(holds, lease_id, ttl_seconds)
        return None

    async def renew(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> None:
        """Hold them."""
        for hold in holds:
            if hold.max_held > 0:
                self._buckets.setdefault(hold.bucket, {})[lease_id] = self._now() + ttl_seconds

    async def release(self, holds: Sequence[Hold], lease_id: str) -> None:
        """Free them."""
        for hold in holds:
            leases = self._buckets.get(hold.bucket, {})
            leases.pop(lease_id, None)
            if not leases:
                self._buckets.pop(hold.bucket, None)

    def _is_full(self, hold: Hold) -> bool:
        leases = self._buckets.get(hold.bucket, {})
        if not 0 < hold.max_held <= len(leases):
            return False
        now = self._now()
        for lease_id in [lease_id for lease_id, ends_at in leases.items() if ends_at <= now]:
            del leases[lease_id]
        return hold.max_held <= len(leases)


_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# A sorted set for each bucket: leases, by the millisecond in which they end. Should the clock jump back, that
# may be far off: such leases go too, and come again where they are renewed.
_TAKE = Script(
    _NOW
    + """
for i = 2, #KEYS do
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
    redis.call('ZREMRANGEBYSCORE', KEYS[i], now + 10 * math.max(ARGV[2], 30000), '+inf')
    if redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[i + 1]) then return {epoch, generation, i - 2} end
end
for i = 2, #KEYS do
    redis.call('ZADD', KEYS[i], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[i], math.max(ARGV[2], redis.call('PTTL', KEYS[i])))
end
return {epoch, generation, -1}
"""
)
_RENEW = Script(
    _NOW
    + """
for i = 2, #KEYS do
    redis.call('ZADD', KEYS[i], now + ARGV[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[i], math.max(ARGV[2], redis.call('PTTL', KEYS[i])))
end
return {epoch, generation}
"""
)
_RELEASE = Script("""
for i = 2, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
return {epoch, generation}
""")


class RedisLeases:
    """The places of all processes, by the clock of Redis. Raises :class:`StoreUnavailable`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def take(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> Hold | None:
        """Take all or none, in one round trip."""
        bounded = [hold for hold in holds if hold.max_held > 0]
        if not bounded:
            return None
        bounds = [hold.max_held for hold in bounded]
        (full,) = await self._redis.run(_TAKE, _keys(bounded), lease_id, _milliseconds(ttl_seconds), *bounds)
        return bounded[full] if full >= 0 else None

    async def renew(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> None:
        """Hold them."""
        await self._redis.run(_RENEW, _keys(holds), lease_id, _milliseconds(ttl_seconds))

    async def release(self, holds: Sequence[Hold], lease_id: str) -> None:
        """Free them."""
        await self._redis.run(_RELEASE, _keys(holds), lease_id)


class LocalWhenDown:
    """Places of all processes while Redis is up, and of this process alone while it is down.

    What this process holds is counted here all the time, so that the bound holds for it at once; and what it
    renews is in Redis again when that comes back, empty or not.
    """

    def __init__(self, shared: Leases, local: MemoryLeases) -> None:
        self._shared = shared
        self._local = local
        self._is_local = False
        self.local_calls = 0
        """How many leases were decided on without the others so far."""

    async def take(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> Hold | None:
        """Take all or none."""
        try:
            full = await self._shared.take(holds, lease_id, ttl_seconds)
        except StoreUnavailable as error:
            self._change(is_local=True, detail=error.log)
            self.local_calls += 1
            return await self._local.take(holds, lease_id, ttl_seconds)
        self._change(is_local=False)
        if full is None:
            await self._local.renew(holds, lease_id, ttl_seconds)
        return full

    async def renew(self, holds: Sequence[Hold], lease_id: str, ttl_seconds: float) -> None:
        """Hold them, here and there."""
        await self._local.renew(holds, lease_id, ttl_seconds)
        with suppress(StoreUnavailable):
            await self._shared.renew(holds, lease_id, ttl_seconds)

    async def release(self, holds: Sequence[Hold], lease_id: str) -> None:
        """Free them, here and there; there they run out by themselves."""
        await self._local.release(holds, lease_id)
        with suppress(StoreUnavailable):
            await self._shared.release(holds, lease_id)

    def _change(self, *, is_local: bool, detail: str | None = None) -> None:
        if is_local == self._is_local:
            return
        self._is_local = is_local
        if is_local:
            logs.warning("uploads in flight are counted by this process alone", detail=detail)
        else:
            logs.info("uploads in flight are counted by all again", local_calls=self.local_calls)


def _keys(holds: Sequence[Hold]) -> list[str]:
    return [f"{PREFIX}leases:{hold.bucket}" for hold in holds if hold.max_held > 0]


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
