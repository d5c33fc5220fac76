"""How many uploads there may be in one worker: at all, and on their way to Coze at once.

What is beyond the first is refused at once; what is beyond the second waits. Keys take turns in
waiting, so that one with hundreds of uploads does not hold up another with its first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from broker.errors import NoFreeSlot

RETRY_AFTER_SECONDS = 2


class Admission:
    """Counts the uploads of one process. A bound of 0 is none."""

    def __init__(self, *, max_running: int, max_inflight: int = 0) -> None:
        self._max_inflight = max_inflight
        self._inflight = 0
        self._max_running = self._free = max_running
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def inflight(self) -> int:
        """Uploads that were let in and are not over."""
        return self._inflight

    @property
    def running(self) -> int:
        """Uploads whose turn it is."""
        return self._max_running - self._free

    @property
    def waiting(self) -> int:
        """Uploads that were let in and wait for their turn."""
        return sum(not turn.done() for queue in self._queues.values() for turn in queue)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Let an upload in, or raise :class:`NoFreeSlot` at once."""
        self._check()
        self._inflight += 1
        try:
            yield
        finally:
            self._inflight -= 1

    @asynccontextmanager
    async def slot(self, key_id: str) -> AsyncIterator[None]:
        """Wait for a turn to send to Coze; how long is for the caller to bound."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(key_id)
        try:
            yield
        finally:
            self._pass_on()

    def _check(self) -> None:
        if 0 < self._max_inflight <= self.inflight:
            log = f"{self.inflight} uploads in flight"
            raise NoFreeSlot(retry_after_seconds=RETRY_AFTER_SECONDS, log=log)

    async def _turn(self, key_id: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(key_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._give_up(key_id, turn)
            else:  # it came in the very moment in which it was no longer wanted
                self._pass_on()
            raise

    def _give_up(self, key_id: str, turn: asyncio.Future[None]) -> None:
        queue = self._queues.get(key_id, deque())
        with suppress(ValueError):  # it was passed over already
            queue.remove(turn)
        if not queue:
            self._queues.pop(key_id, None)

    def _pass_on(self) -> None:
        """Give the slot to whoever is next; a turn that nobody waits for any more is left out."""
        while self._queues:
            turn = self._next()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def _next(self) -> asyncio.Future[None]:
        """The first turn of the key that waited longest for one; that key is then the last in the round."""
        key_id, queue = self._queues.popitem(last=False)
        turn = queue.popleft()
        if queue:
            self._queues[key_id] = queue
        return turn
