"""The same thing tried in several ways, the next one beside a first that takes its time (RFC 8305 §5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from broker.state.uninterrupted import uninterrupted

NEXT_SECONDS = 1.0
"""How long one may take before the next is begun, where there is time enough for all."""

Result = TypeVar("Result")


async def first_of(
    attempts: Sequence[Callable[[], Awaitable[Result]]],
    *,
    within_seconds: float,
    drop: Callable[[Result], Any],
) -> Result:
    """What the first attempt gives that succeeds. The next begins when one has failed, or has taken so long
    that there would not be time for all of them in ``within_seconds``.

    What another one has brought, too, is given to ``drop``. Raises the last one's error when all failed.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    next_seconds = min(NEXT_SECONDS, within_seconds / (len(attempts) + 1))
    running = set[asyncio.Future[Result]]()
    try:
        winner = await _winner(list(attempts), running, next_seconds)
    except BaseException:
        await _end(running, drop)
        raise
    try:
        await _end(running, drop)
    except BaseException:  # whoever wanted it has left
        drop(winner)
        raise
    return winner


async def _winner(
    left: list[Callable[[], Awaitable[Result]]], running: set[asyncio.Future[Result]], next_seconds: float
) -> Result:
    """The first result; what is under way beside it stays in ``running``."""
    while True:
        if left:
            running.add(asyncio.ensure_future(left.pop(0)()))
        patience = next_seconds if left else None
        await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in running if task.done()]:
            running.discard(task)
            error = task.exception()
            if error is None:
                return task.result()
            if not (left or running):
                raise error


@uninterrupted
async def _end(running: set[asyncio.Future[Result]], drop: Callable[[Result], Any]) -> None:
    """What is under way ends at once; a connection may be there all the same."""
    for task in running:
        task.cancel()
    for result in await asyncio.gather(*running, return_exceptions=True):
        if not isinstance(result, BaseException):
            drop(result)
