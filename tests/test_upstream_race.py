"""Of several attempts one wins; what the others bring is dropped, however the race ends."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import pytest

from broker.upstream.race import first_of
from tests.support.waiting import until


class Lanes:
    """Attempts to be let through one by one; each may be slow to hear that it is cancelled."""

    def __init__(self, names: str) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.dropped: list[str] = []
        self.through = {name: asyncio.Event() for name in names}
        self.end = {name: asyncio.Event() for name in names}

    async def run(self, name: str) -> str:
        self.begun.append(name)
        try:
            await self.through[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            await self.end[name].wait()  # it has something by then
        return name

    def race(self) -> asyncio.Task[str]:
        attempts: list[Callable[[], asyncio.Task[str]]] = [
            functools.partial(lambda name: asyncio.ensure_future(self.run(name)), name)
            for name in self.through
        ]
        return asyncio.ensure_future(first_of(attempts, within_seconds=0.1, drop=self.dropped.append))


@pytest.fixture
async def lanes() -> Lanes:
    return Lanes("abc")


async def test_what_the_losers_bring_is_dropped(lanes: Lanes) -> None:
    race = lanes.race()
    await until(lambda: lanes.begun == ["a", "b", "c"])
    lanes.through["b"].set()
    await until(lambda: len(lanes.cancelled) == 2)
    lanes.end["a"].set()
    lanes.end["c"].set()
    assert await race == "b"
    assert sorted(lanes.dropped) == ["a", "c"]


async def test_the_winner_is_dropped_when_nobody_waits_for_it_any_more(lanes: Lanes) -> None:
    """Its caller leaves while the others are ended; once, and again."""
    race = lanes.race()
    await until(lambda: lanes.begun == ["a", "b", "c"])
    lanes.through["b"].set()
    await until(lambda: len(lanes.cancelled) == 2)
    for _ in range(2):
        race.cancel()
        await asyncio.sleep(0)
    lanes.end["a"].set()
    lanes.end["c"].set()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert sorted(lanes.dropped) == ["a", "b", "c"]


async def test_who_is_cancelled_twice_leaves_nothing_behind(lanes: Lanes) -> None:
    race = lanes.race()
    await until(lambda: lanes.begun == ["a", "b", "c"])
    race.cancel()
    await until(lambda: len(lanes.cancelled) == 3)
    race.cancel()
    await asyncio.sleep(0)
    for end in lanes.end.values():
        end.set()
    with pytest.raises(asyncio.CancelledError):
        await race
    await until(lambda: sorted(lanes.dropped) == ["a", "b", "c"])
