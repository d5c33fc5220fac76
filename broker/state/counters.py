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

SWEEP_EVERY_SECONDS = 60


class Claims(Protocol):
    """Names that one caller at most may have."""

    async def claim(self, name: str, *, ttl_seconds: int) -> bool:
        """Take ``name`` for ``ttl_seconds``; True for the first caller, False for all others."""


class DatabaseClaims:
    """Claims as rows: they outlive a restart, and every process on the same database sees them."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now
        self._sweep_at = 0.0

    async def claim(self, name: str, *, ttl_seconds: int) -> bool:
        """Take ``name``; the primary key decides who was first."""
        now = int(self._now())
        try:
            async with self._database.transaction() as connection:
                await self._sweep(connection, now)
                await connection.execute(sa.insert(claims).values(name=name, expires_at=now + ttl_seconds))
        except IntegrityError:
            return False
        return True

    async def _sweep(self, connection: AsyncConnection, now: int) -> None:
        if now < self._sweep_at:
            return
        self._sweep_at = now + SWEEP_EVERY_SECONDS
        await connection.execute(sa.delete(claims).where(claims.c.expires_at < now))
