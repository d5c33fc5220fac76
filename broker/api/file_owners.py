"""Whose a file at Coze is: of the upload that brought it through the broker, or of the first that a direct
upload was confirmed with. So no two uploads have a receipt for one file.
"""

from __future__ import annotations

import asyncio

from broker.api.services import Services
from broker.errors import StoreUnavailable
from broker.observe import logs
from broker.settings.fields import COZE_MAX_TTL_SECONDS

CLOCK_MARGIN_SECONDS = 60
"""How far Coze's clock may be behind ours."""

PATIENCE_SECONDS = 0.3
"""How long an upload that is over waits for it to be noted whose the file is."""
_under_way: set[asyncio.Task[bool]] = set()


async def own(broker: Services, file_id: str, upload: str) -> bool:
    """Make a file this upload's; False when it is another one's already.

    Raises :class:`~broker.errors.StoreUnavailable`.
    """
    return await broker.holds.hold(f"file:{file_id}", upload, ttl_seconds=seconds_of_interest(broker))


async def own_soon(broker: Services, file_id: str, upload: str) -> None:
    """The same for a file that has just come through the broker. Coze has it: a store that is slow goes on
    with this by itself, and one that is away undoes nothing.
    """
    task = asyncio.create_task(own(broker, file_id, upload))
    _under_way.add(task)
    task.add_done_callback(_over)
    await asyncio.wait([task], timeout=PATIENCE_SECONDS)


async def all_noted() -> None:
    """Wait for what is still being noted; the store has time limits of its own."""
    if _under_way:
        await asyncio.wait(_under_way)


def _over(task: asyncio.Task[bool]) -> None:
    _under_way.discard(task)
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception) and not isinstance(error, StoreUnavailable):
        logs.unexpected(error)


def seconds_of_interest(broker: Services) -> int:
    """For so long a token may be alive that could vouch for a file that is at Coze now."""
    return COZE_MAX_TTL_SECONDS + broker.settings.broker_upload_max_seconds + 2 * CLOCK_MARGIN_SECONDS
