"""Tokens that are taken back, by the store that every host asks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from broker.state.database import Database
from broker.state.revocations import Revocations

AHEAD_SECONDS = 4


@pytest.mark.parametrize("generation", [None, "one"])
async def test_a_token_from_a_host_whose_clock_is_ahead_is_taken_back(
    database: Database, generation: str | None
) -> None:
    revocations = Revocations(database, ttl_seconds=900)
    issued_at = int(time.time()) + AHEAD_SECONDS
    await revocations.revoke("token", "that one")
    token: dict[str, Any] = {
        "subject": "anna",
        "key_id": "key_1",
        "issued_at": issued_at,
        "generation": generation,
    }
    assert await revocations.cover(jti="that one", **token)
    assert not await revocations.cover(jti="another", **token)
