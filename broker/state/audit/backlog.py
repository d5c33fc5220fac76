"""Rows that wait to be written: those that somebody waits for, those of what was done, those of refusals.

The last two are bounded. What comes when there is no room is counted, and told in a row of its own later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from broker.errors import AuditUnavailable
from broker.state.audit.row import AuditRow, Values

MAX_NOTES = 10_000
MAX_REFUSALS = 2_000
"""A flood of refusals must not cost memory, nor crowd out what was done."""


@dataclass(slots=True)
class Taken:
    """Rows that are on their way, in this order."""

    records: list[tuple[Values, asyncio.Future[None]]] = field(default_factory=list)
    notes: list[Values] = field(default_factory=list)
    refusals: list[Values] = field(default_factory=list)

    @property
    def rows(self) -> list[Values]:
        """All of them."""
        return [*(values for values, _ in self.records), *self.notes, *self.refusals]


class Backlog:
    """What waits, in the order of its coming."""

    def __init__(self, *, max_notes: int = MAX_NOTES, max_refusals: int = MAX_REFUSALS) -> None:
        self.records: deque[tuple[Values, asyncio.Future[None]]] = deque()
        self.notes: deque[Values] = deque()
        self.refusals: deque[Values] = deque()
        self._max_notes = max_notes
        self._max_refusals = max_refusals
        self._lost = {"rows": 0, "refusals": 0}

    def __len__(self) -> int:
        return len(self.records) + len(self.notes) + len(self.refusals)

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits for a row to be written."""
        return bool(self.records)

    @property
    def has_lost(self) -> bool:
        """Whether there was no room for a row since ``tell_lost``."""
        return any(self._lost.values())

    def note(self, values: Values, *, is_refusal: bool) -> None:
        """Keep a row, or count it where there is no room."""
        queue, most = (self.refusals, self._max_refusals) if is_refusal else (self.notes, self._max_notes)
        if len(queue) < most:
            queue.append(values)
        else:
            self.lose(refusals=int(is_refusal), rows=int(not is_refusal))

    def lose(self, *, rows: int = 0, refusals: int = 0) -> None:
        """Count rows that can't be kept."""
        self._lost["rows"] += rows
        self._lost["refusals"] += refusals

    def lose_all(self) -> None:
        """Count what is left: there is no time and no place for it."""
        self.lose(rows=len(self.notes), refusals=len(self.refusals))
        self.notes.clear()
        self.refusals.clear()

    def tell_lost(self) -> None:
        """Have a row that says how many were lost since the last one; it goes first."""
        if self.has_lost:
            self.notes.appendleft(
                AuditRow(action="audit.gap", result="rows_lost", detail=self._lost).values()
            )
            self._lost = {"rows": 0, "refusals": 0}

    def take(self, most: int) -> Taken:
        """The next rows, ``most`` at the most: first those that somebody waits for, refusals last."""
        taken = Taken()
        while self.records and len(taken.records) < most:
            values, future = self.records.popleft()
            if not future.done():  # whoever waited may have left
                taken.records.append((values, future))
        taken.notes = _popped(self.notes, most - len(taken.records))
        taken.refusals = _popped(self.refusals, most - len(taken.records) - len(taken.notes))
        return taken

    def put_back(self, taken: Taken) -> None:
        """They were not written."""
        self.notes.extendleft(reversed(taken.notes))
        self.refusals.extendleft(reversed(taken.refusals))

    def refuse(self, records: Iterable[tuple[Values, asyncio.Future[None]]], why: str) -> None:
        """Tell whoever waits, for these rows and for all that are here, that they can't be written."""
        for _, future in (*records, *self.records):
            if not future.done():
                future.set_exception(AuditUnavailable(log=why))
        self.records.clear()


def _popped(queue: deque[Values], most: int) -> list[Values]:
    return [queue.popleft() for _ in range(min(len(queue), most))]


def first(queue: deque[Values], most: int) -> list[Values]:
    """The next ``most`` of a queue, which stay in it."""
    return list(islice(queue, most))


def drop(queue: deque[Values], count: int) -> None:
    """Forget the next ``count`` of a queue."""
    for _ in range(count):
        queue.popleft()
