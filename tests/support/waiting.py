"""Waiting until something is so, by asking again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


def wait_for(condition: Callable[..., Any], seconds: float = 10.0) -> Any:
    """The condition's first answer that is truthy."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError("waited in vain")


async def until(condition: Callable[..., Any], seconds: float = 15.0) -> None:
    """The same for tests in an event loop; the condition may be a coroutine function."""
    give_up = time.monotonic() + seconds
    while True:
        held = condition()
        if await held if asyncio.iscoroutine(held) else held:
            return
        assert time.monotonic() < give_up, "waited in vain"
        await asyncio.sleep(0.01)
