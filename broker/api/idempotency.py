"""``Idempotency-Key``: an upload that is sent twice is stored once, and answered the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay
from tenacity.wait import wait_random_exponential

from broker.errors import InvalidRequest, OutcomeUnknown, Refusal, StoreUnavailable, UpstreamBadAnswer
from broker.observe import events, logs
from broker.state.idempotency import LEASE_SECONDS, Begun, Earlier, IdempotencyRecords

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
# A string of RFC 8941, as the header's draft has it, or the same without its quotes, as everybody writes it.
_KEY = re.compile(r'"([!#-\[\]-~]{1,255})"|([!#-\[\]-~]{1,255})')

NOTE_SECONDS = 5.0
"""How long an answer waits for being written down."""
PERSIST_SECONDS = 120.0
_notes: set[asyncio.Task[None]] = set()
"""What is still being written; the event loop alone would forget it."""

Answer = dict[str, Any]


def key_of(headers: Headers) -> str | None:
    """The request's key; None without one. Raises :class:`InvalidRequest` for one that can't be used."""
    values = headers.getlist(HEADER)
    if not values:
        return None
    match = _KEY.fullmatch(values[0].strip())
    if match is None or len(values) > 1:
        raise InvalidRequest(f"Send one {HEADER} of 1 to 255 visible characters, a random UUID for one.")
    return match[1] or match[2]


def name_of(key: str, *, key_id: str, subject: str | None, of: str = "upload") -> str:
    """The row of a key: what one caller sends says nothing about another's, and what it is sent to counts."""
    return _digest([key_id, subject, key] if of == "upload" else [key_id, subject, key, of])


def fingerprint_of(*parts: str | None) -> str:
    """What tells a request from another one with the same key. Of an upload that is its file's name; its
    content is compared once it was read.
    """
    return _digest(list(parts))


async def once(
    records: IdempotencyRecords,
    begun: Begun,
    work: Callable[[], Awaitable[Answer]],
    *,
    ttl_seconds: int | None = None,
) -> Answer:
    """Do the work, hold its row meanwhile, and write down what became of it.

    It is kept for ``ttl_seconds``, or as long as any row is.
    """
    renewing = asyncio.create_task(_keep(records, begun))
    try:
        answer = await work()
    except BaseException as error:
        await _failed(records, begun, error)
        raise
    finally:
        renewing.cancel()
    await _noted(partial(records.finish, begun, answer, ttl_seconds=ttl_seconds))
    return answer


def answer_of(earlier: Earlier) -> Answer:
    """The answer that the same request got. Raises :class:`OutcomeUnknown` when it got none."""
    if earlier.answer is None:
        raise OutcomeUnknown(log="the first request with this Idempotency-Key ended without an answer")
    events.current().replayed = True
    return earlier.answer


def replayed_header() -> dict[str, str]:
    """Says in an answer that it is an earlier one."""
    return {REPLAYED_HEADER: "true"} if events.current().replayed else {}


async def _keep(records: IdempotencyRecords, begun: Begun) -> None:
    while True:
        await asyncio.sleep(LEASE_SECONDS / 3)
        with suppress(StoreUnavailable):
            await records.renew(begun)


async def _failed(records: IdempotencyRecords, begun: Begun, error: BaseException) -> None:
    """Nothing was stored, so it may be sent again; unless the last byte was out, and Coze didn't say no."""
    said_no = isinstance(error, Refusal) and not isinstance(error, OutcomeUnknown | UpstreamBadAnswer)
    if events.current().sent == "all" and not said_no:
        await _noted(partial(records.finish, begun, None))
    else:
        await _noted(partial(records.forget, begun))


async def _noted(write: Callable[[], Awaitable[None]]) -> None:
    """Write an outcome down. It counts for more than the writing, which goes on if it takes too long."""
    note = asyncio.create_task(_persist(write))
    _notes.add(note)
    note.add_done_callback(_notes.discard)
    try:
        await asyncio.wait([note], timeout=NOTE_SECONDS)
    except asyncio.CancelledError:
        await asyncio.wait([note], timeout=NOTE_SECONDS)
        raise


async def _persist(write: Callable[[], Awaitable[None]]) -> None:
    again = AsyncRetrying(
        retry=retry_if_exception_type(StoreUnavailable),
        stop=stop_after_delay(PERSIST_SECONDS),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    try:
        await again(write)
    except StoreUnavailable as error:
        logs.warning("an upload's outcome could not be kept for its Idempotency-Key", detail=error.log)


def _digest(parts: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
