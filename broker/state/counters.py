"""What is remembered only for a while.

``claim`` is for one-time use and fails closed: when it can't be known that a name is unclaimed,
:class:`~broker.errors.StoreUnavailable` is raised and nobody is let in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.state.database import Database, claims
from broker.state.sweeping import Sweeping
from broker.state.uninterrupted import uninterrupted


class Claims(Protocol):
    """Names that one caller at most may have."""

    async def claim(self, name: str, *, ttl_seconds: int) -> bool:
        """Take ``name`` for ``ttl_seconds``; True for the first caller, False for all others."""


class DatabaseClaims:
    """Claims as rows: they outlive a restart, and every process on the same database sees them."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._now = now
        self._sweeping = Sweeping(now, ticks)

    @uninterrupted
    async def claim(self, name: str, *, ttl_seconds: int) -> bool:
        """Take ``name``; the primary key decides who was first."""
        now = int(self._now())
        try:
            async with self._database.transaction() as connection:
                await self._sweep(connection)
                await connection.execute(sa.insert(claims).values(name=name, expires_at=now + ttl_seconds))
        except IntegrityError:
            return False
        return True

    async def _sweep(self, connection: AsyncConnection) -> None:
        before = self._sweeping.due()
        if before is not None:
            await connection.execute(sa.delete(claims).where(claims.c.expires_at < before))
