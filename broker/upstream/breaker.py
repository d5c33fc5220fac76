"""Whether an upstream is to be called at all, decided without I/O.

By hand, since purgatory, aiobreaker and circuitbreaker let everybody through once they are half-open, and
know calls that went well or badly, but none that proves nothing, as when the caller leaves.

*Closed*: calls pass. After so many failures in a row it is *open*: nothing passes, for a while. Then it is
*half-open*: a few calls pass as probes. The first one that tells decides: closed, or open again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

State = Literal["closed", "open", "half-open"]
Outcome = Literal["success", "failure", "neither"]
"""``neither``: the call ended for a reason that says nothing about the upstream."""

PROBES = 3
"""How many calls may find out at once whether a half-open upstream is back."""
PROBE_AGAIN_SECONDS = 2.0
"""When to come again while as many probes as may are under way."""


class Change(NamedTuple):
    """From one state to another. ``reason`` is the failure that opened it, for the log alone."""

    upstream: str
    state: State
    reason: str | None = None


@dataclass(frozen=True, eq=False)
class Ticket:
    """One call that was let through. Its outcome counts while the state is the one that it began in."""

    era: int
    until: float
    """From then on, on the breaker's clock, it holds no place among the probes."""


class Breaker:
    """The breaker of one upstream, named by its host.

    ``failures`` in a row open it for ``open_seconds``; 0 of them never do. ``now`` may be any clock of
    seconds that never goes back; ``on_change`` is told each change of state.
    """

    def __init__(
        self,
        upstream: str,
        *,
        failures: int,
        open_seconds: float,
        now: Callable[[], float] = time.monotonic,
        on_change: Callable[[Change], None] = lambda _: None,
    ) -> None:
        self.upstream = upstream
        self._most_failures = failures
        self._open_seconds = open_seconds
        self._now = now
        self._on_change = on_change
        self._state: State = "closed"
        self._era = 0
        self._failures = 0
        self._open_until = 0.0
        self._probes: list[Ticket] = []

    @property
    def state(self) -> State:
        """As it is by now: an open one is half-open once its time is over."""
        return "half-open" if self._state == "open" and self._now() >= self._open_until else self._state

    @property
    def open_seconds_left(self) -> float:
        """How long nothing will pass; 0 when it is not open."""
        return max(0.0, self._open_until - self._now()) if self.state == "open" else 0.0

    def enter(self) -> Ticket | float:
        """A ticket for one call, to be handed to ``leave``; or the seconds after which to ask again."""
        now = self._now()
        if self.state == "open":
            return self._open_until - now
        if self.state == "half-open":
            return self._probe(now)
        return Ticket(self._era, now)

    def leave(self, ticket: Ticket, outcome: Outcome, reason: str | None = None) -> None:
        """Tell what became of the call, once. What began before the last change of state is no news."""
        self._probes = [probe for probe in self._probes if probe is not ticket]
        if ticket.era != self._era or outcome == "neither":
            return
        if outcome == "success":
            self._failures = 0
            if self._state == "half-open":
                self._become("closed")
        else:
            self._failed(reason)

    def _probe(self, now: float) -> Ticket | float:
        """A probe may be a large file of a slow caller's: it does not hold up all others for that long."""
        if self._state == "open":
            self._become("half-open")
        self._probes = [probe for probe in self._probes if now < probe.until]
        if len(self._probes) >= PROBES:
            return min(PROBE_AGAIN_SECONDS, self._open_seconds)
        ticket = Ticket(self._era, now + self._open_seconds)
        self._probes.append(ticket)
        return ticket

    def _failed(self, reason: str | None) -> None:
        self._failures += 1
        is_enough = 0 < self._most_failures <= self._failures
        if self._state == "half-open" or is_enough:
            self._open_until = self._now() + self._open_seconds
            self._become("open", reason)

    def _become(self, state: State, reason: str | None = None) -> None:
        self._state, self._failures, self._probes = state, 0, []
        self._era += 1
        self._on_change(Change(self.upstream, state, reason))
