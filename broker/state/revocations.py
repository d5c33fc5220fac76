"""Tokens that are taken back before their time: one, or all that a subject or a key had until then.

A row is kept as long as a token that it covers could live. Few are alive at once, so that every process
keeps them in memory and looks at the database once a second, or as soon as the generation says that
something changed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.state.database import Database
from broker.state.database import revocations as table
from broker.state.recent import Recent
from broker.state.sweeping import Sweeping
from broker.state.uninterrupted import uninterrupted

Kind = Literal["token", "subject", "key", "key_subject"]
MAX_IN_MEMORY = 10_000
"""Beyond that each question goes to the database."""

Live = Mapping[tuple[str, str], int]
Witness = Callable[[AsyncConnection], Awaitable[None]]


class Revocations:
    """``ttl_seconds`` is the longest that a token, with its upload, can live."""

    def __init__(
        self,
        database: Database,
        *,
        ttl_seconds: int,
        now: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._sweeping = Sweeping(now, ticks)
        self._recent: Recent[Live] = Recent(self._load, now=ticks)

    async def revoke(self, kind: Kind, *names: str, witness: Witness | None = None) -> None:
        """From now on no token with this ``jti``, or that this subject or key had until now, is good.

        ``witness`` writes it down in the same transaction. Raises :class:`~broker.errors.StoreUnavailable`
        when it can't be kept.
        """
        await self._write(kind, name_of(*names), int(self._now()), witness)
        self._recent.forget()

    async def cover(
        self, *, jti: str, subject: str, key_id: str, issued_at: int, generation: object = None
    ) -> bool:
        """Whether a token was taken back. ``generation`` is the newest that is known of, if one is."""
        names = [
            ("token", name_of(jti)),
            ("subject", name_of(subject)),
            ("key", name_of(key_id)),
            ("key_subject", name_of(key_id, subject)),
        ]
        live = None if generation is None else await self._recent.get("live", generation)
        if live is None or len(live) >= MAX_IN_MEMORY:
            live = await self._find(names)
        # One token is meant whenever it was made: the clock of the host that made it may be ahead of ours.
        return any(name[0] == "token" or issued_at <= live[name] for name in names if name in live)

    @uninterrupted
    async def _write(self, kind: Kind, name: str, now: int, witness: Witness | None) -> None:
        values = {"revoked_at": now, "expires_at": now + self._ttl_seconds}
        statement = (
            self._database.insert(table)
            .values(kind=kind, name=name, **values)
            .on_conflict_do_update(index_elements=["kind", "name"], set_=values)
        )
        async with self._database.transaction() as connection:
            before = self._sweeping.due()
            if before is not None:
                await connection.execute(sa.delete(table).where(table.c.expires_at < before))
            await connection.execute(statement)
            if witness is not None:
                await witness(connection)

    @uninterrupted
    async def _load(self, _: str) -> Live | None:
        live = table.c.expires_at >= int(self._now())
        statement = sa.select(table.c.kind, table.c.name, table.c.revoked_at).where(live).limit(MAX_IN_MEMORY)
        async with self._database.transaction() as connection:
            return {(row.kind, row.name): row.revoked_at for row in await connection.execute(statement)}

    @uninterrupted
    async def _find(self, names: list[tuple[str, str]]) -> Live:
        statement = sa.select(table.c.kind, table.c.name, table.c.revoked_at).where(
            sa.tuple_(table.c.kind, table.c.name).in_(names)
        )
        async with self._database.transaction() as connection:
            return {(row.kind, row.name): row.revoked_at for row in await connection.execute(statement)}


def name_of(*parts: str) -> str:
    """What a row is kept under. A digest: subjects are people, and may be of any length."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
