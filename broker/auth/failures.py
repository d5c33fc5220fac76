"""Guessing: who sends credentials that are not valid must wait before the next one is looked at."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker.auth.key_format import looks_like_key
from broker.errors import TooManyFailures

WINDOW_SECONDS = 60.0
MAX_COUNTS = 65_536
MAX_GOOD = 4_096
PREFIX_LENGTH = 11
"""As much of a key as its mask shows. Who goes through the rest from many addresses waits, too."""
PREFIX_FACTOR = 10


@dataclass(slots=True)
class _Count:
    failures: int
    until: float


class Failures:
    """Counts the failures of an address, and of what keys begin with, in windows of a minute.

    A credential that was good here before is looked at in any case: behind one address, or one mask, there
    may be others than who guesses. Of one process: several take as many guesses more, at keys of 238 random
    bits.
    """

    def __init__(self, *, max_failures: int, ticks: Callable[[], float] = time.monotonic) -> None:
        self._max_failures = max_failures
        self._ticks = ticks
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def check(self, address: str, credential: str) -> None:
        """Raises :class:`TooManyFailures` when this is not to be looked at yet."""
        now = self._ticks()
        seconds = max(self._seconds_left(name, most, now) for name, most in self._names(address, credential))
        if seconds > 0 and _digest(credential) not in self._good:
            raise TooManyFailures(retry_after_seconds=int(seconds) + 1)

    def note_bad(self, address: str, credential: str) -> None:
        """One more that is not valid."""
        now = self._ticks()
        for name, _ in self._names(address, credential):
            count = self._counts.get(name)
            if count is None or count.until <= now:
                self._counts.pop(name, None)
                self._counts[name] = _Count(1, now + WINDOW_SECONDS)
            else:
                count.failures += 1
        self._make_room(now)

    def note_good(self, credential: str) -> None:
        """This one is valid; it may come again. Not for what is good once."""
        digest = _digest(credential)
        self._good[digest] = None
        self._good.move_to_end(digest)
        if len(self._good) > MAX_GOOD:
            self._good.popitem(last=False)

    def _names(self, address: str, credential: str) -> Iterator[tuple[str, int]]:
        """All tokens begin alike, and who signs sends no credential: by that one would hold up everybody."""
        yield address, self._max_failures
        if looks_like_key(credential):
            prefix = hashlib.sha256(credential[:PREFIX_LENGTH].encode()).hexdigest()
            yield prefix, PREFIX_FACTOR * self._max_failures

    def _seconds_left(self, name: str, most: int, now: float) -> float:
        count = self._counts.get(name)
        return 0.0 if count is None or count.failures < most else count.until - now

    def _make_room(self, now: float) -> None:
        """The oldest windows end first."""
        while self._counts:
            name, count = next(iter(self._counts.items()))
            if count.until > now and len(self._counts) <= MAX_COUNTS:
                return
            del self._counts[name]


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode()).digest()
