"""The server app's access token: what one that Coze refuses says of the next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.settings import Settings
from broker.upstream.breaker import Breaker
from broker.upstream.guard import Guard
from broker.upstream.oauth import REPLACE_EVERY_SECONDS, AppCredential, TokenExchange
from broker.upstream.pause import Pause
from broker.upstream.way import Way
from tests.support.clock import Clock
from tests.support.sandbox_control import SandboxControl


class Tokens:
    """One credential, and time that passes by itself between two tokens."""

    def __init__(self, credential: AppCredential, guard: Guard, clock: Clock) -> None:
        self.credential = credential
        self._guard = guard
        self._clock = clock

    async def next(self) -> str:
        self._clock.now += 2 * REPLACE_EVERY_SECONDS
        return await self.credential.get(self._guard.budget())


@pytest.fixture
async def tokens(sandbox: SandboxControl, clock: Clock) -> AsyncIterator[Tokens]:
    given: dict[str, Any] = {name.lower(): value for name, value in sandbox.environment.items()}
    settings = Settings(**given)
    app = settings.server_app
    assert app is not None
    way = Way().client(settings.coze_api_base, connect_timeout_seconds=5, read_timeout_seconds=5)
    async with way as client:
        guard = Guard(
            Breaker("coze", failures=0, open_seconds=1), Pause(None, max_seconds=0), retry_seconds=5
        )
        exchange = TokenExchange(client, settings.coze_host, guard)
        yield Tokens(AppCredential(exchange, app, monotonic=lambda: clock.now), guard, clock)


async def test_a_token_that_was_good_is_replaced(tokens: Tokens) -> None:
    first = await tokens.next()
    tokens.credential.taken(first)
    assert tokens.credential.forget(first)
    second = await tokens.next()
    assert second != first
    tokens.credential.taken(second)
    assert tokens.credential.forget(first)  # by one who took longer: the second is good
    assert tokens.credential.forget(second)


async def test_where_a_fresh_one_is_refused_no_other_is_promised_to_anybody(tokens: Tokens) -> None:
    """Whoever was under way with an older one hears the same, until Coze takes one again."""
    first = await tokens.next()
    assert tokens.credential.forget(first)
    second = await tokens.next()
    assert not tokens.credential.forget(second)
    third = await tokens.next()
    assert third != second
    assert [tokens.credential.forget(each) for each in (first, second, third)] == [False] * 3
    fourth = await tokens.next()
    tokens.credential.taken(fourth)
    assert tokens.credential.forget(third)
    assert tokens.credential.forget(fourth)
