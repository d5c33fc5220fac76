"""Who is waited for, for how long, and what it is called when it was too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from broker.errors import ClientLeft, ClientTooSlow, FinishDeadline, OutcomeUnknown, Refusal, UpstreamTimeout
from broker.transfer.pace import Pace, Patience, WaitingFor

SIDES: list[tuple[WaitingFor, type[Refusal]]] = [
    ("client", ClientTooSlow),
    ("upstream", UpstreamTimeout),
    ("answer", OutcomeUnknown),
]

LONG = 60.0
PATIENT = Patience(
    client=LONG, slot=LONG, store=LONG, credential=LONG, connection=LONG, upstream=LONG, answer=LONG
)


async def wait_for(pace: Pace, side: WaitingFor, then: Callable[[], None] = lambda: None) -> None:
    """Nobody moves for seconds; ``then`` happens at once."""
    async with pace.kept():
        pace.wait_for(side)
        asyncio.get_running_loop().call_later(0.02, then)
        await asyncio.sleep(5)


@pytest.mark.parametrize(("side", "refusal"), SIDES)
async def test_the_side_that_is_waited_for_too_long_names_the_refusal(
    side: WaitingFor, refusal: type[Refusal]
) -> None:
    pace = Pace(replace(PATIENT, **{side: 0.05}))
    with pytest.raises(refusal):
        await wait_for(pace, side)


async def test_a_side_that_moves_has_its_time_again() -> None:
    pace = Pace(replace(PATIENT, client=0.3))
    async with pace.kept():
        for _ in range(4):
            await asyncio.sleep(0.15)
            pace.received(1)


async def late(pace: Pace, *sides: WaitingFor) -> None:
    """The first side moves when its time is over, and the others at once: before the block hears of that."""
    loop, moved = asyncio.get_running_loop(), asyncio.Event()
    async with pace.kept():
        pace.wait_for("slot")
        loop.call_later(0.02, time.sleep, 0.1)  # a busy loop, which sees both of these only afterwards
        loop.call_later(0.04, moved.set)
        await moved.wait()
        for side in sides:
            pace.wait_for(side)
        await asyncio.sleep(0.3)


async def test_who_moves_at_the_last_moment_is_not_late() -> None:
    await late(Pace(replace(PATIENT, slot=0.06)), "store")


async def test_the_next_side_is_not_blamed_for_the_one_before() -> None:
    with pytest.raises(UpstreamTimeout):
        await late(Pace(replace(PATIENT, slot=0.06, upstream=0.1)), "store", "upstream")


async def test_the_token_s_deadline_is_over_even_for_who_moves_at_the_last_moment() -> None:
    with pytest.raises(FinishDeadline):
        await late(Pace(PATIENT, finish_in_seconds=0.06), "store")


async def test_the_token_s_deadline_is_not_outrun_by_who_moves_all_the_time() -> None:
    """A side that moves at each step of the loop does so before the block hears of its end, too."""
    pace = Pace(PATIENT, finish_in_seconds=0.05)
    give_up = time.monotonic() + 5

    async def move_all_the_time() -> None:
        async with pace.kept():
            while time.monotonic() < give_up:
                pace.wait_for("upstream")
                await asyncio.sleep(0)

    with pytest.raises(FinishDeadline):
        await move_all_the_time()


async def test_what_was_sent_before_the_client_s_leave_was_heard_has_its_answer() -> None:
    pace = Pace(PATIENT)
    async with pace.kept():
        pace.wait_for("upstream")
        pace.client_left()
        pace.wait_for("answer")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("side", ["client", "slot", "connection", "upstream"])
async def test_the_token_s_deadline_moves_for_nobody(side: WaitingFor) -> None:
    pace = Pace(PATIENT, finish_in_seconds=0.05)
    with pytest.raises(FinishDeadline):
        await wait_for(pace, side)


async def test_once_all_was_sent_the_answer_is_waited_for_beyond_the_token_s_deadline() -> None:
    pace = Pace(PATIENT, finish_in_seconds=0.05)
    async with pace.kept():
        pace.wait_for("answer")
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("side", ["client", "slot", "scanner", "credential", "upstream"])
async def test_a_client_that_leaves_ends_it_whoever_is_waited_for(side: WaitingFor) -> None:
    pace = Pace(PATIENT)
    with pytest.raises(ClientLeft):
        await wait_for(pace, side, pace.client_left)


@pytest.mark.parametrize("known", [False, True], ids=["Coze's answer is waited for", "it is known"])
async def test_a_client_that_leaves_takes_no_outcome_with_it(known: bool) -> None:
    pace = Pace(PATIENT)
    async with pace.kept():
        pace.wait_for("answer")
        if known:
            pace.over()
        pace.client_left()
        await asyncio.sleep(0.05)
    pace.client_left()


async def test_a_trickle_is_too_slow_in_all() -> None:
    pace = Pace(replace(PATIENT, client=0.1, client_bytes_per_second=1000))

    async def trickle() -> None:
        async with pace.kept():
            for _ in range(10):
                await asyncio.sleep(0.03)
                pace.received(1)

    with pytest.raises(ClientTooSlow):
        await trickle()
