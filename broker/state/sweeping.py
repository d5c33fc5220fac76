"""When rows whose time is over may go."""

from __future__ import annotations

import time
from collections.abc import Callable

SWEEP_EVERY_SECONDS = 60


class Sweeping:
    """Says once a minute up to when rows may be forgotten.

    By the wall clock, and also by the time that went by: a clock that jumps ahead may jump back, and what
    was used must not be fresh then.
    """

    def __init__(self, now: Callable[[], float], ticks: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._ticks = ticks
        self._ahead = now() - ticks()
        self._sweep_at = 0.0

    def due(self) -> int | None:
        """Unix seconds; rows that ended before may go. None when it is too early to look again."""
        ticks = self._ticks()
        if ticks < self._sweep_at:
            return None
        self._sweep_at = ticks + SWEEP_EVERY_SECONDS
        return int(min(self._now(), self._ahead + ticks))
