"""POST /token: a short-lived, narrow credential for one upload, and the way it is to go."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from broker.api import auditing, gate, idempotency
from broker.api.bodies import read_json
from broker.api.minting import Minting, note_answer
from broker.api.rendering import NO_STORE
from broker.api.services import Services, services
from broker.api.token_request import TokenRequest
from broker.auth.caller import Caller
from broker.client_address import bucket_of
from broker.errors import IdempotencyKeyReused
from broker.observe import events
from broker.state.idempotency import Begun


async def mint(request: Request) -> JSONResponse:
    """Who asks, what for, is it within the limits; then the token, once it is in the audit."""
    broker = services(request)
    events.current().action = "token.mint"
    caller = await broker.authenticator.minter(request)
    asked = await read_json(request, TokenRequest)
    caller = caller.acting_for(asked.subject)
    events.current().subject = caller.subject
    key = idempotency.key_of(request.headers)
    caller, verdict = await gate.enter(broker, caller, size=asked.size * asked.uses)
    is_new = False
    try:
        minting = Minting(broker, caller, asked, await gate.epoch(broker, verdict))
        answer = await (minting.answer() if key is None else _once(minting, key))
        note_answer(answer, asked)
        await auditing.record(broker)
        is_new = not events.current().replayed
    finally:
        if not is_new:  # bytes stay reserved for a token that is, and for nothing else
            await _give_back(broker, caller, asked.size * asked.uses)
    return JSONResponse(answer, headers=NO_STORE | idempotency.replayed_header())


async def _give_back(broker: Services, caller: Caller, reserved: int) -> None:
    held_seconds = time.monotonic() - events.current().started
    await gate.settle(broker, caller, reserved=reserved, used=0, held_seconds=held_seconds)


async def _once(minting: Minting, key: str) -> dict[str, Any]:
    """The answer that the same request got before, as long as its token lives. It is kept sealed."""
    broker, caller, asked = minting.broker, minting.caller, minting.asked
    name = idempotency.name_of(key, key_id=caller.key_id, subject=_whose(caller), of="token")
    fingerprint = idempotency.fingerprint_of(asked.model_dump_json(), caller.origin)
    ttl_seconds = broker.policy.ttl_seconds(asked.ttl_seconds)
    begun = await broker.idempotency.begin(name, fingerprint)
    if not isinstance(begun, Begun):
        return _aged(_opened(broker, idempotency.answer_of(begun), name))

    async def work() -> dict[str, Any]:
        return {"sealed": broker.sealer.seal(await minting.answer(), name)}

    sealed = await idempotency.once(broker.idempotency, begun, work, ttl_seconds=ttl_seconds)
    return broker.sealer.open(sealed["sealed"], name)


def _opened(broker: Services, kept: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        return broker.sealer.open(kept["sealed"], name)
    except ValueError as error:  # the pepper is another one since
        raise IdempotencyKeyReused(log=f"the kept answer can't be opened: {error}") from error


def _whose(caller: Caller) -> str | None:
    """Whoever opens a page has its key: callers who are no servers are told apart by address, if by nothing
    else, so that nobody gets a token by guessing another one's ``Idempotency-Key``.
    """
    return caller.subject or (None if caller.is_server else bucket_of(caller.address))


def _aged(answer: dict[str, Any]) -> dict[str, Any]:
    """The same token, and the time that it has left by now."""
    return {**answer, "expires_in": max(0, answer["expires_at"] - int(time.time()))}
