"""What was just looked up, for a moment: a burst of the same question asks the store once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

SECONDS = 1.0
MAX_ENTRIES = 1024

Value = TypeVar("Value")


class _Entry(NamedTuple, Generic[Value]):
    asked_at: float
    generation: object
    answer: asyncio.Future[Value | None]


class Recent(Generic[Value]):
    """Answers that are good for ``seconds`` from the moment they were asked for, in the same generation.

    Only what was found is kept: neither that there is nothing, nor that the store failed.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[Value | None]],
        *,
        seconds: float = SECONDS,
        max_entries: int = MAX_ENTRIES,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._seconds = seconds
        self._max_entries = max_entries
        self._now = now
        self._entries: dict[str, _Entry[Value]] = {}
        """The oldest first."""

    async def get(self, name: str, generation: object = 0) -> Value | None:
        """What ``find`` says, or said a moment ago. Whoever asks while it looks waits for the same answer.

        What was asked for in another ``generation`` is not good any more; when it is None, nothing is.
        """
        if generation is None:
            return await self._find(name)
        entry = self._entries.get(name)
        if entry is None or entry.generation != generation or self._is_old(entry):
            entry = self._ask(name, generation)
        if entry.answer.done():
            return entry.answer.result()
        # One who is cancelled leaves; the others still wait.
        return await asyncio.shield(entry.answer)

    def forget(self) -> None:
        """Nothing that was looked up so far is good any more."""
        self._entries.clear()

    def _ask(self, name: str, generation: object) -> _Entry[Value]:
        self._entries.pop(name, None)
        self._make_room()
        entry = _Entry(self._now(), generation, asyncio.ensure_future(self._find(name)))
        self._entries[name] = entry
        entry.answer.add_done_callback(lambda _: self._settle(name, entry))
        return entry

    def _settle(self, name: str, entry: _Entry[Value]) -> None:
        answer = entry.answer
        found = not answer.cancelled() and answer.exception() is None and answer.result() is not None
        if not found and self._entries.get(name) is entry:
            del self._entries[name]

    def _make_room(self) -> None:
        while self._entries:
            oldest = next(iter(self._entries))
            if len(self._entries) < self._max_entries and not self._is_old(self._entries[oldest]):
                return
            del self._entries[oldest]

    def _is_old(self, entry: _Entry[Value]) -> bool:
        return self._now() >= entry.asked_at + self._seconds
