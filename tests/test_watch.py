"""The look at uploads under way, which must never be the last one."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from broker.api.watch import Watch
from broker.auth.api_keys import ApiKeys
from broker.auth.caller import Call, Caller
from broker.auth.standing import Standing
from broker.errors import InvalidCredential
from broker.state.database import Database
from broker.state.generation import AlwaysAsk
from broker.state.revocations import Revocations
from broker.transfer.pace import Pace, Patience

LONG = 60.0
OF_NO_KEY = Caller(kind="secret_key", key_id="key_0000000000000000", scopes=(), call=Call())


class Stumbling(AlwaysAsk):
    """Fails as nobody expects, the first time that it is asked."""

    def __init__(self) -> None:
        self.times_asked = 0

    async def newest(self) -> str | None:
        self.times_asked += 1
        if self.times_asked == 1:
            raise RuntimeError
        return None


async def test_after_what_nobody_expected_it_looks_again(database: Database) -> None:
    standing = Standing(ApiKeys(database, b"pepper"), Revocations(database, ttl_seconds=60))
    generation, pace = Stumbling(), Pace(Patience(LONG, LONG, LONG, LONG, LONG, LONG, LONG))
    watch = Watch(standing, generation)
    looking = asyncio.create_task(watch.run())
    with watch.over(OF_NO_KEY, pace), pytest.raises(InvalidCredential):
        async with pace.kept():
            await asyncio.Event().wait()
    assert generation.times_asked > 1
    looking.cancel()
    with suppress(asyncio.CancelledError):
        await looking
