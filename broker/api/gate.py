"""The gate behind authentication: is the caller within its limits, and is its credential still good?

Both are answered by one round trip to Redis, where there is one.
"""

from __future__ import annotations

import math

from broker.api.rate_headers import rate_headers
from broker.api.services import Services
from broker.auth.caller import USERS_KEY_ID, Caller
from broker.errors import RateLimited, Refusal, TooLarge
from broker.observe import events
from broker.state.limits import Verdict


async def enter(broker: Services, caller: Caller, *, size: int = 0) -> tuple[Caller, Verdict]:
    """Let a request of ``size`` bytes in: the caller, with the rights that it has by now.

    Raises :class:`RateLimited`, or what an API key or token that is revoked raises.
    """
    caller = await _with_limits_of_its_key(broker, caller)
    limits = [*broker.quotas.of_request(caller), *(broker.quotas.of_bytes(caller, size) if size else ())]
    verdict = await broker.limits.hit(limits)
    events.current().limit_headers = rate_headers(verdict, limits)
    if not verdict.allowed:
        raise _refusal(verdict)
    try:
        # By now the generation is as new as the answer about the limits.
        renewed = await broker.standing.check(caller, broker.generation.current())
        if renewed.key != caller.key:
            broker.authenticator.check(renewed)
    except Refusal:
        await settle(broker, caller, reserved=size, used=0, held_seconds=0.0)
        raise
    return renewed, verdict


async def _with_limits_of_its_key(broker: Services, caller: Caller) -> Caller:
    """A token says what it may do, but not how much: that is its key's."""
    if caller.issued is None or caller.key_id == USERS_KEY_ID:
        return caller
    key = await broker.keys.by_id(caller.key_id, generation=broker.generation.current())
    return caller if key is None else caller.renewed(key)


async def epoch(broker: Services, verdict: Verdict) -> str:
    """The epoch that a token is to carry. Raises :class:`StoreUnavailable` when it can't be known: nothing is
    minted while it could not be told whether it was used.
    """
    return await broker.claims.epoch() if verdict.shared is None else verdict.shared.epoch


async def settle(broker: Services, caller: Caller, *, reserved: int, used: int, held_seconds: float) -> None:
    """Give back what was reserved of the byte limits ``held_seconds`` ago and not used. Another host's clock
    may have told those seconds, so there may be fewer than none.
    """
    if reserved > used:
        for limit in broker.quotas.of_bytes(caller, reserved):
            await broker.limits.give_back(limit, reserved - used, held_seconds=max(0.0, held_seconds))


def _refusal(verdict: Verdict) -> Refusal:
    """Says which limit it was; what is over all of it by itself can't ever pass."""
    limit = verdict.limit
    if limit is None:
        return RateLimited()
    whose, _, unit = limit.name.partition("-")
    what = f"{limit.quota:,} {unit or 'requests'} in {limit.window_seconds:g} s"
    if verdict.retry_after_seconds is None:
        return TooLarge(f"The file has more bytes than this {_WHOSE[whose]} may upload at all, {what}.")
    return RateLimited(
        f"The rate limit of this {_WHOSE[whose]}, {what}, is reached. Wait as long as Retry-After says.",
        retry_after_seconds=max(1, math.ceil(verdict.retry_after_seconds)),
        log=f"limit {limit.name}",
    )


_WHOSE = {"key": "key", "subject": "subject", "ip": "address", "origin": "page"}
