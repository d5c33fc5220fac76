"""``Idempotency-Key``: an upload that is sent twice is stored once, and answered the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers

from broker.errors import InvalidRequest, OutcomeUnknown, Refusal, StoreUnavailable, UpstreamBadAnswer
from broker.observe import events, logs
from broker.state.idempotency import LEASE_SECONDS, Begun, Earlier, IdempotencyRecords

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
# A string of RFC 8941, as the header's draft has it, or the same without its quotes, as everybody writes it.
_KEY = re.compile(r'"([!#-\[\]-~]{1,255})"|([!#-\[\]-~]{1,255})')

NOTE_SECONDS = 5.0

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


def name_of(key: str, *, key_id: str, subject: str | None) -> str:
    """The row of a key: what one caller sends says nothing about another's."""
    return _digest([key_id, subject, key])


def fingerprint_of(file_name: str) -> str:
    """What is known of an upload before it is read; its content is compared once it was."""
    return _digest([file_name])


async def once(records: IdempotencyRecords, begun: Begun, work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Do the work, hold its row meanwhile, and write down what became of it."""
    renewing = asyncio.create_task(_keep(records, begun))
    try:
        answer = await work()
    except BaseException as error:
        await _failed(records, begun, error)
        raise
    finally:
        renewing.cancel()
    await _noted(records.finish(begun, answer))
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
        await _noted(records.finish(begun, None))
    else:
        await _noted(records.forget(begun))


async def _noted(writing: Coroutine[Any, Any, None]) -> None:
    """Write an outcome down, also when the request is stopped in this very moment.

    The outcome itself counts for more than whether it could be written down.
    """
    note = asyncio.create_task(_with_limit(writing))
    try:
        await asyncio.shield(note)
    except asyncio.CancelledError:
        await asyncio.wait([note])
        raise


async def _with_limit(writing: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(NOTE_SECONDS):
            await writing
    except (StoreUnavailable, TimeoutError) as error:
        detail = error.log if isinstance(error, StoreUnavailable) else "the store took too long"
        logs.warning("an upload's outcome could not be kept for its Idempotency-Key", detail=detail)


def _digest(parts: list[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
