"""Work that a cancelled caller does not break off."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uninterrupted(
    method: Callable[Arguments, Coroutine[Any, Any, Result]],
) -> Callable[Arguments, Coroutine[Any, Any, Result]]:
    """Run what must not be left half done to its end, and only then let its caller be cancelled.

    A transaction of the database's that is broken off in the midst of a call may stay open: aiosqlite's
    thread takes the lock all the same, after everybody who would let go of it has left.
    """

    @functools.wraps(method)
    async def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        work = asyncio.create_task(method(*arguments, **options))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await _over(work)
            if not work.cancelled():
                work.exception()  # its caller is not there to hear it
            raise

    return run


async def _over(work: asyncio.Task[Any]) -> None:
    """Until it is done, however often its caller is cancelled meanwhile; the database has time limits."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
