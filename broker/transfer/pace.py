"""How long an upload may wait for whom.

There is one alarm for an upload. Each side that is waited for sets it anew, so a large file may take
its time as long as it moves, and the one deadline that never moves is the token's own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from broker.errors import (
    ClientLeft,
    ClientTooSlow,
    FinishDeadline,
    NoFreeSlot,
    OutcomeUnknown,
    Refusal,
    ScannerUnavailable,
    StoreUnavailable,
    UpstreamLimit,
    UpstreamTimeout,
)

WaitingFor = Literal[
    "client", "slot", "turn", "scanner", "store", "credential", "connection", "upstream", "answer"
]

_REFUSALS: dict[WaitingFor, type[Refusal]] = {
    "client": ClientTooSlow,
    "slot": NoFreeSlot,
    "turn": UpstreamLimit,
    "scanner": ScannerUnavailable,
    "store": StoreUnavailable,
    "credential": UpstreamTimeout,
    "connection": UpstreamTimeout,
    "upstream": UpstreamTimeout,
    "answer": OutcomeUnknown,
}
RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True)
class Patience:
    """Seconds that each side may let the other wait."""

    client: float
    slot: float
    store: float
    credential: float
    connection: float
    upstream: float
    answer: float
    scanner: float = 60
    turn: float = 60
    client_bytes_per_second: float = 0
    """How fast the client must be, on average over as long as it may send nothing."""


class Pace:
    """Ends the block that ``kept`` opens when a side takes too long.

    A large file changes sides thousands of times a second. So that is only noted; the alarm looks at the
    note when it goes off, and is set for later when the side that is waited for still has time.
    """

    def __init__(self, patience: Patience, finish_in_seconds: float | None = None) -> None:
        self._patience = patience
        self._finish_in_seconds = finish_in_seconds
        self._finish_at = math.inf
        self._waiting_for: WaitingFor = "client"
        self._loop = asyncio.get_running_loop()
        self._timeout: asyncio.Timeout | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._stopped_by: Refusal | None = None
        self._is_ending = False
        """The block is told to end, and may go on for a step before it hears."""
        self._since = 0.0
        self._window_seconds = 0.0
        self._window_bytes = 0

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Raises :class:`FinishDeadline`, or the refusal that belongs to the side that was too slow."""
        if self._finish_in_seconds is not None:
            self._finish_at = self._loop.time() + self._finish_in_seconds
        try:
            async with asyncio.timeout(None) as self._timeout:
                self.wait_for("client")
                yield
        except TimeoutError:
            raise self._refusal() from None
        finally:
            self._timeout = None
            self._end_alarm()

    def wait_for(self, side: WaitingFor) -> None:
        """From now on ``side`` is the one that has to move."""
        self._waiting_for = side
        self._since = self._loop.time()
        if self._is_ending:
            self._take_back()
        if self._deadline() < self._alarm_at:
            self._set_alarm()

    def _take_back(self) -> None:
        """Whoever was late has moved before the block heard of it: nobody else is to blame for that. What was
        stopped stays so, and so does what is beyond the token's own deadline, or a side that moves all the
        time would outrun its end for ever; but not once all was sent.
        """
        if self._timeout is None or self._timeout.expired():
            return
        stays_so = self._stopped_by is not None or self._loop.time() >= self._finish_at
        if self._waiting_for == "answer" or not stays_so:
            self._is_ending, self._stopped_by = False, None
            self._timeout.reschedule(None)
            self._end_alarm()

    def _end(self, timeout: asyncio.Timeout) -> None:
        self._is_ending = True
        timeout.reschedule(self._loop.time())

    def _deadline(self) -> float:
        """Once all was sent, the outcome is worth more than the token's own deadline."""
        at = self._side_deadline()
        return at if self._waiting_for == "answer" else min(at, self._finish_at)

    def _side_deadline(self) -> float:
        at: float = self._since + getattr(self._patience, self._waiting_for)
        return at

    def _set_alarm(self) -> None:
        self._end_alarm()
        if self._timeout is not None:
            self._alarm_at = self._deadline()
            self._alarm = self._loop.call_at(self._alarm_at, self._ring, self._timeout)

    def _end_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm, self._alarm_at = None, math.inf

    def _ring(self, timeout: asyncio.Timeout) -> None:
        if self._loop.time() < self._deadline():
            self._set_alarm()
        else:
            self._end(timeout)

    def over(self) -> None:
        """From now on nobody is waited for: the outcome is known."""
        self._end_alarm()
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(None)
        self._timeout = None

    def client_left(self) -> None:
        """The client is gone: end the block with :class:`ClientLeft`."""
        self.stop(ClientLeft(log=f"while {self._waiting_for} was waited for"))

    @property
    def ended_by(self) -> Refusal | None:
        """Why the block was told to end; None while it was not."""
        return self._refusal() if self._is_ending else None

    def stop(self, refusal: Refusal) -> None:
        """End the block with ``refusal``.

        Not so once all was sent: then Coze's answer is waited for, for the record and whoever asks again.
        """
        if self._waiting_for == "answer" or self._timeout is None or self._timeout.expired():
            return
        self._stopped_by = refusal
        self._end(self._timeout)

    def received(self, size: int) -> None:
        """So many bytes came from the client. If it was waited for, it has as long again for the next ones;
        the time that others take doesn't count.

        Raises :class:`ClientTooSlow` when they come too slowly, one by one so to say.
        """
        now = self._loop.time()
        self._window_bytes += size
        if self._waiting_for == "client":
            self._window_seconds += now - self._since
            self._since = now
            if self._is_ending:
                self.wait_for("client")
        if self._window_seconds < self._patience.client:
            return
        if self._window_bytes < self._patience.client_bytes_per_second * self._window_seconds:
            raise ClientTooSlow(log=f"{self._window_bytes} bytes in {self._window_seconds:.0f} s")
        self._window_seconds, self._window_bytes = 0.0, 0

    def _refusal(self) -> Refusal:
        if self._stopped_by is not None:
            return self._stopped_by
        if self._finish_at <= self._side_deadline() and self._waiting_for != "answer":
            return FinishDeadline()
        side = self._waiting_for
        wait = RETRY_AFTER_SECONDS if side in ("slot", "turn", "scanner") else None
        return _REFUSALS[side](
            log=f"waited {getattr(self._patience, side):g} s for {side}", retry_after_seconds=wait
        )
