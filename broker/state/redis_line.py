"""One connection to Redis that all callers of a process share.

redis-py's own pool lends a connection to one caller at a time. Commands on a shared one cost a third of the
CPU when many call at once, a burst needs no queue, and a caller that is cancelled breaks nothing off: its
answer comes and is dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.errors import StoreUnavailable

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

LOOK_SECONDS = 0.04
PATIENCE_LOOKS = 5
"""A call that is unanswered after so many looks is lost, and the line with it: 0.2 seconds. Looks are counted
and not seconds, so that an event loop that was busy for a while is not taken for a server that is silent."""


class Loss(NamedTuple):
    """Why a line is gone. ``is_closed``: by the other side, as servers do with idle ones."""

    reason: str
    is_closed: bool = False


class _Call(NamedTuple):
    answer: asyncio.Future[Any]
    sent_at_look: int


class Line:
    """A connection that is open. Answers come in the order of the commands."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._calls: deque[_Call] = deque()
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None
        self.lost: asyncio.Future[Loss] = self._loop.create_future()
        """Done when the line can't be used any more."""
        self._reader = asyncio.create_task(self._read())

    @property
    def in_flight(self) -> int:
        """Commands whose answers are still to come."""
        return len(self._calls)

    async def call(self, *command: Any) -> Any:
        """Send a command; its answer, or the error that Redis answers with.

        Raises :class:`StoreUnavailable` when the line is lost, or no answer comes in time.
        """
        if self.lost.done():
            raise StoreUnavailable(log=self.lost.result().reason)
        call = _Call(self._loop.create_future(), self._looks)
        self._calls.append(call)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
        packed = self._connection.pack_command(*command)
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except Exception as error:
            self.lose(Loss(f"{type(error).__name__}: {error}"))
        return await call.answer

    def lose(self, loss: Loss) -> None:
        """Use the line no more; whoever waits for an answer is told that none will come."""
        if self.lost.done():
            return
        self.lost.set_result(loss)
        if self._timer is not None:
            self._timer.cancel()
        for call in self._calls:
            if not call.answer.done():
                call.answer.set_exception(StoreUnavailable(log=loss.reason))
                call.answer.exception()  # whoever asked may be gone
        self._calls.clear()

    async def close(self) -> None:
        """Let go of the connection."""
        self.lose(Loss("closed"))
        self._reader.cancel()
        await asyncio.wait([self._reader])
        with suppress(Exception):
            await self._connection.disconnect(nowait=True)

    async def _read(self) -> None:
        from redis.exceptions import ConnectionError as Closed
        from redis.exceptions import ResponseError

        try:
            while True:
                try:
                    self._tell(await self._connection.read_response())
                except ResponseError as error:
                    self._tell(error)
        except Exception as error:
            self.lose(Loss(f"{type(error).__name__}: {error}", isinstance(error, Closed)))

    def _tell(self, answer: Any) -> None:
        call = self._calls.popleft()
        if call.answer.done():
            return
        if isinstance(answer, Exception):
            call.answer.set_exception(answer)
        else:
            call.answer.set_result(answer)

    def _look(self) -> None:
        """Whether the oldest call was answered; looks as long as there is one."""
        self._looks += 1
        self._timer = None
        if not self._calls:
            return
        if self._looks - self._calls[0].sent_at_look >= PATIENCE_LOOKS:
            self.lose(Loss(f"no answer within {LOOK_SECONDS * PATIENCE_LOOKS:g} seconds"))
        else:
            self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
