"""The pause that Coze asked for: until it is over, no worker sends it anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from broker.errors import StoreUnavailable
from broker.observe import logs
from broker.state.redis import PREFIX, Redis, Script

_KEY = PREFIX + "pause"
_BEGIN = Script(
    """
local milliseconds, most, left = tonumber(ARGV[1]), tonumber(ARGV[2]), redis.call('PTTL', KEYS[2])
if left < milliseconds or left > most then redis.call('SET', KEYS[2], '1', 'PX', milliseconds) end
return {epoch, generation}
"""
)
_LEFT = Script("return {epoch, generation, redis.call('PTTL', KEYS[2])}")


class Pause:
    """One for all processes on ``redis``; while that is down, or without it, each has what it heard, be it
    from Coze or from ``redis``. A longer one stays, whatever is heard later.

    None is longer than ``max_seconds``. ``now`` may be any clock of seconds that never goes back.
    """

    def __init__(
        self, redis: Redis | None, *, max_seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._max_seconds = max_seconds
        self._now = now
        self._until = now()

    async def begin(self, seconds: float, *, reason: str | None = None) -> None:
        """Coze asked for so long a pause; ``reason`` is for the log. One that is longer already stays."""
        seconds = min(seconds, self._max_seconds)
        if seconds <= 0:
            return
        if self._now() >= self._until:
            logs.warning("coze asked for a pause", seconds=seconds, detail=reason)
        self._until = max(self._until, self._now() + seconds)
        if self._redis is not None:
            with suppress(StoreUnavailable):
                await self._redis.run(_BEGIN, [_KEY], round(seconds * 1000), round(self._max_seconds * 1000))

    async def seconds_left(self) -> float:
        """Until Coze may be called again; 0 when it may be now."""
        if self._max_seconds <= 0:
            return 0.0
        shared_seconds = await self._shared_seconds()
        # Kept, as if it had been heard here: Redis may be gone before the pause is over.
        self._until = max(self._until, self._now() + shared_seconds)
        return max(self._until - self._now(), 0.0)

    async def _shared_seconds(self) -> float:
        if self._redis is None:
            return 0.0
        try:
            (milliseconds,) = await self._redis.run(_LEFT, [_KEY])
        except StoreUnavailable:
            return 0.0
        seconds = int(milliseconds) / 1000
        return seconds if seconds <= self._max_seconds else 0.0  # else the clock of its host jumped back
