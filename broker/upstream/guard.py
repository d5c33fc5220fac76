"""What stands around every call to Coze: the breaker before it, what is learned from it, and whether it may
be made again.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.stop import stop_base
from tenacity.wait import wait_random_exponential

from broker.errors import (
    Refusal,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamDown,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from broker.observe import logs, snapshot
from broker.upstream.answers import asks_for_less, outcome_of
from broker.upstream.breaker import Breaker, Change, State, Ticket
from broker.upstream.client import CLIENT_ERRORS
from broker.upstream.pause import Pause

MAX_ATTEMPTS = 3
BACKOFF = wait_random_exponential(multiplier=0.2, max=2)

Result = TypeVar("Result")
_STATES: tuple[State, ...] = ("closed", "half-open", "open")


class Budget(stop_base):
    """How long the calls that are made for one request may be repeated, from now on and all together."""

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Whether it is over by the time of the next attempt: none begins then."""
        return time.monotonic() + retry_state.upcoming_sleep >= self._ends_at

    @property
    def is_over(self) -> bool:
        """Whether nothing may be repeated any more."""
        return time.monotonic() >= self._ends_at


class Guard:
    """The breaker, the common pause and the retry budget of one upstream.

    ``retry_seconds`` is what each request has for repeating.
    """

    def __init__(self, breaker: Breaker, pause: Pause, *, retry_seconds: float) -> None:
        self.breaker = breaker
        self.pause = pause
        self._retry_seconds = retry_seconds
        snapshot.count("coze_breaker_state", lambda: _STATES.index(breaker.state))

    def check(self) -> None:
        """Raises :class:`UpstreamDown` while nothing that is sent would get through."""
        seconds = self.breaker.open_seconds_left
        if seconds > 0:
            raise _down(seconds, self.breaker)

    def budget(self, max_seconds: float = math.inf) -> Budget:
        """A request's own, to be handed to all its calls; of ``max_seconds`` if that is less."""
        return Budget(min(max_seconds, self._retry_seconds))

    @asynccontextmanager
    async def attempt(self, ended_by: Callable[[], Refusal | None] = lambda: None) -> AsyncIterator[None]:
        """Around one call: raises :class:`UpstreamDown` instead of letting it begin, and learns from its end.

        ``ended_by`` tells why the call was stopped from outside, when it was.
        """
        ticket = self.breaker.enter()
        if not isinstance(ticket, Ticket):
            raise _down(ticket, self.breaker)
        try:
            yield
        except BaseException as error:
            await self._learn(ticket, error if isinstance(error, Refusal) else ended_by())
            raise
        self.breaker.leave(ticket, "success")

    async def repeated_call(
        self, once: Callable[[], Awaitable[Result]], budget: Budget, *, patient: bool = True
    ) -> Result:
        """Make a call that may be repeated, as often as the budget allows. Where it is not ``patient``, it is
        not repeated when Coze asks for less, or asked for a pause that is not over.
        """

        async def attempt() -> Result:
            await self._check_pause()
            async with self.attempt():
                return await once()

        return await repeating(budget, lambda error: _may_pass(error, patient=patient))(attempt)

    async def _check_pause(self) -> None:
        seconds = await self.pause.seconds_left()
        if seconds > 0:
            raise UpstreamBusy(log="Coze asked for a pause", retry_after_seconds=math.ceil(seconds))

    async def _learn(self, ticket: Ticket, refusal: Refusal | None) -> None:
        if refusal is None:
            self.breaker.leave(ticket, "neither")
            return
        self.breaker.leave(ticket, outcome_of(refusal), f"{refusal.code}: {refusal.log}")
        if asks_for_less(refusal):
            await self.pause.begin(refusal.retry_after_seconds or 0, reason=refusal.log)


def repeating(
    budget: Budget,
    may_repeat: Callable[[BaseException], bool],
    before_next: Callable[[RetryCallState], None] | None = None,
) -> AsyncRetrying:
    """Three attempts at most, none of which begins after the budget is over.

    In between it waits for longer and longer, by chance; at least as long as Coze's ``Retry-After``.
    """
    return AsyncRetrying(
        retry=retry_if_exception(may_repeat),
        stop=stop_after_attempt(MAX_ATTEMPTS) | budget,
        wait=_wait,
        before_sleep=before_next,
        reraise=True,
    )


def log_change(change: Change) -> None:
    """One line for each change of a breaker's state."""
    if change.state == "open":
        logs.warning("coze is down", upstream=change.upstream, detail=change.reason)
    elif change.state == "half-open":
        logs.info("coze is tried again", upstream=change.upstream)
    else:
        logs.info("coze is back", upstream=change.upstream)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, UpstreamCredentialRefused):  # with another one, at once
        return 0.0
    least = error.retry_after_seconds if isinstance(error, Refusal) else None
    return (least or 0) + BACKOFF(state)  # by chance in any case: all were told the same Retry-After


def _may_pass(error: BaseException, *, patient: bool) -> bool:
    """Whether it may be over the next time: the line, or Coze, had a moment's trouble."""
    if isinstance(error, UpstreamBusy):
        is_of_a_pause = error.reply is None  # then Coze was not asked
        return patient or not (is_of_a_pause or asks_for_less(error))
    if isinstance(error, UpstreamUnreachable | UpstreamTimeout | UpstreamFailed):
        return True
    return isinstance(error, Refusal) and isinstance(error.__cause__, CLIENT_ERRORS)


def _down(seconds: float, breaker: Breaker) -> UpstreamDown:
    return UpstreamDown(
        log=f"the breaker of {breaker.upstream} is {breaker.state}",
        retry_after_seconds=max(1, math.ceil(seconds)),
    )
