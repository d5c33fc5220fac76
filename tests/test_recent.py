"""What was just found need not be looked up again; that there was nothing is asked anew each time."""

from __future__ import annotations

import asyncio

import pytest

from broker.state.recent import Recent


class Store:
    """Counts the questions, and answers when it is told to."""

    def __init__(self) -> None:
        self.rows = {"a": "A", "b": "B", "c": "C"}
        self.asked: list[str] = []
        self.now = 0.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.recent = Recent(self.find, seconds=1, max_entries=2, now=lambda: self.now)

    async def find(self, name: str) -> str | None:
        self.asked.append(name)
        await self.may_answer.wait()
        if name == "failing":
            raise OSError
        return self.rows.get(name)


async def test_an_answer_is_good_for_a_second_from_when_it_was_asked_for() -> None:
    store = Store()
    assert await store.recent.get("a") == "A"
    store.rows["a"] = "other"
    store.now = 0.9
    assert await store.recent.get("a") == "A"
    store.now = 1
    assert await store.recent.get("a") == "other"
    assert store.asked == ["a", "a"]


async def test_an_answer_of_another_generation_is_asked_for_again() -> None:
    store = Store()
    for generation in (1, 1, 2, 2, 1):
        assert await store.recent.get("a", generation) == "A"
    assert store.asked == ["a", "a", "a"]


async def test_who_knows_of_a_change_does_not_wait_for_an_answer_from_before_it() -> None:
    store = Store()
    store.may_answer.clear()
    before = asyncio.ensure_future(store.recent.get("a", 1))
    after = asyncio.ensure_future(store.recent.get("a", 2))
    while len(store.asked) < 2:
        await asyncio.sleep(0)
    store.may_answer.set()
    assert (await before, await after) == ("A", "A")
    await store.recent.get("a", 2)
    assert store.asked == ["a", "a"], "the later answer is the one that is kept"


async def test_without_a_generation_nothing_is_kept() -> None:
    store = Store()
    await store.recent.get("a")
    for _ in range(2):
        assert await store.recent.get("a", None) == "A"
    assert store.asked == ["a", "a", "a"]


async def test_what_is_forgotten_is_asked_for_again() -> None:
    store = Store()
    await store.recent.get("a")
    store.recent.forget()
    await store.recent.get("a")
    assert store.asked == ["a", "a"]


async def test_an_answer_that_was_forgotten_on_its_way_is_not_kept() -> None:
    store = Store()
    store.may_answer.clear()
    waiting = asyncio.ensure_future(store.recent.get("a"))
    await asyncio.sleep(0)
    store.recent.forget()
    store.may_answer.set()
    await waiting
    await store.recent.get("a")
    assert store.asked == ["a", "a"]


async def test_nothing_and_failures_are_not_kept() -> None:
    store = Store()
    for _ in range(2):
        assert await store.recent.get("unknown") is None
        with pytest.raises(OSError):  # noqa: PT011 - it has no message
            await store.recent.get("failing")
    assert store.asked == ["unknown", "failing"] * 2


async def test_many_who_ask_at_once_ask_once() -> None:
    store = Store()
    store.may_answer.clear()
    waiting = [asyncio.ensure_future(store.recent.get("a")) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # the one whose question it was
    await asyncio.sleep(0)
    store.may_answer.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == ["A"] * 49
    assert store.asked == ["a"]


async def test_only_so_many_are_kept() -> None:
    store = Store()
    for name in ("a", "b", "c", "b", "a"):
        await store.recent.get(name)
    assert store.asked == ["a", "b", "c", "a"]
