"""What may be had once: a token's uses, and names that belong to whoever took them first.

It fails closed: when it can't be known that a name is free, :class:`~broker.errors.StoreUnavailable` is
raised and nobody is let in. A store may lose what it knew, Redis when it is flushed. So each has an *epoch*,
a token says under which it was minted, and under any other it is good for nothing: it may have been used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.errors import ExpiredCredential
from broker.state.database import Database, claims
from broker.state.redis import PREFIX, Redis, Script
from broker.state.sweeping import Sweeping
from broker.state.uninterrupted import uninterrupted

Values = Mapping[str, Any]


class Claims(Protocol):
    """Names, up to 200 characters each, that are taken once. All raise :class:`StoreUnavailable`."""

    async def claim(self, name: str, *, ttl_seconds: int, uses: int = 1, epoch: str | None = None) -> bool:
        """Take one of the ``uses`` of ``name``; True for as many callers, False for all others.

        Raises :class:`ExpiredCredential` for an ``epoch`` that is not the store's; None is not compared.
        """

    async def used(self, name: str) -> int:
        """How many uses of ``name`` were taken."""

    async def hold(self, name: str, holder: str, *, ttl_seconds: int) -> bool:
        """Take ``name`` for ``holder``; True for the first who comes, and whenever it comes again."""

    async def epoch(self) -> str:
        """What tokens that are minted now are to carry."""


class DatabaseClaims:
    """Claims as rows: they outlive a restart, and every process on the same database sees them.

    Nothing is lost as long as the database isn't, so its epoch is always the same, the empty one.
    """

    def __init__(
        self,
        database: Database,
        now: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._now = now
        self._sweeping = Sweeping(now, ticks)

    async def claim(self, name: str, *, ttl_seconds: int, uses: int = 1, epoch: str | None = None) -> bool:
        """Take a use; the primary key decides who was first."""
        if epoch:
            raise _of_another_epoch(epoch)
        row = {"name": name, "used": 1, "expires_at": int(self._now()) + ttl_seconds}
        used = {"used": claims.c.used + 1}
        return await self._upsert(row, used, claims.c.used < uses)

    @uninterrupted
    async def used(self, name: str) -> int:
        """As the row says."""
        async with self._database.transaction() as connection:
            return await connection.scalar(sa.select(claims.c.used).where(claims.c.name == name)) or 0

    async def hold(self, name: str, holder: str, *, ttl_seconds: int) -> bool:
        """Take a name, or hold it for longer."""
        expires_at = int(self._now()) + ttl_seconds
        row = {"name": name, "holder": holder, "expires_at": expires_at}
        later = sa.case((claims.c.expires_at < expires_at, expires_at), else_=claims.c.expires_at)
        return await self._upsert(row, {"expires_at": later}, claims.c.holder == holder)

    async def epoch(self) -> str:
        """The empty one."""
        return ""

    @uninterrupted
    async def _upsert(self, row: Values, change: Values, may: sa.ColumnElement[bool]) -> bool:
        """Write the row, or change the one that is there and may be changed; whether either was done."""
        statement = self._database.insert(claims).values(row)
        statement = statement.on_conflict_do_update(index_elements=["name"], set_=change, where=may)
        async with self._database.transaction() as connection:
            await self._sweep(connection)
            return (await connection.execute(statement)).rowcount == 1

    async def _sweep(self, connection: AsyncConnection) -> None:
        before = self._sweeping.due()
        if before is not None:
            await connection.execute(sa.delete(claims).where(claims.c.expires_at < before))


_CLAIM = Script("""
if ARGV[1] == '1' and ARGV[2] ~= epoch then return {epoch, generation, -1} end
local used = tonumber(redis.call('GET', KEYS[2]) or '0')
if used >= tonumber(ARGV[3]) then return {epoch, generation, 0} end
local ttl = math.max(tonumber(ARGV[4]), redis.call('PTTL', KEYS[2]))
redis.call('SET', KEYS[2], used + 1, 'PX', ttl)
return {epoch, generation, 1}
""")
_HOLD = Script("""
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {epoch, generation, 0} end
local ttl = math.max(tonumber(ARGV[2]), redis.call('PTTL', KEYS[2]))
redis.call('SET', KEYS[2], ARGV[1], 'PX', ttl)
return {epoch, generation, 1}
""")
_USED = Script("return {epoch, generation, redis.call('GET', KEYS[2]) or '0'}")
_LOOK = Script("return {epoch, generation, epoch}")
_OTHER_EPOCH = -1

MARGIN_SECONDS = 3600
"""How much longer names are kept: Redis goes by its host's clock, and that may jump ahead and back."""


class RedisClaims:
    """Claims as keys of Redis, one for each name.

    What must outlive Redis, since no epoch guards it, belongs in the database.
    """

    def __init__(self, redis: Redis, *, margin_seconds: int = MARGIN_SECONDS) -> None:
        self._redis = redis
        self._margin_seconds = margin_seconds

    async def claim(self, name: str, *, ttl_seconds: int, uses: int = 1, epoch: str | None = None) -> bool:
        """Take a use; Redis does one script after the other."""
        compared = "0" if epoch is None else "1"
        (told,) = await self._redis.run(
            _CLAIM, [f"{PREFIX}claim:{name}"], compared, epoch or "", uses, self._milliseconds(ttl_seconds)
        )
        if told == _OTHER_EPOCH:
            raise _of_another_epoch(epoch)
        return bool(told)

    async def used(self, name: str) -> int:
        """As Redis says."""
        (told,) = await self._redis.run(_USED, [f"{PREFIX}claim:{name}"])
        return int(told)

    async def hold(self, name: str, holder: str, *, ttl_seconds: int) -> bool:
        """Take a name, or hold it for longer."""
        ttl = self._milliseconds(ttl_seconds)
        (told,) = await self._redis.run(_HOLD, [f"{PREFIX}hold:{name}"], holder, ttl)
        return bool(told)

    async def epoch(self) -> str:
        """That of the store as it is now."""
        (epoch,) = await self._redis.run(_LOOK, [])
        return str(epoch)

    def _milliseconds(self, ttl_seconds: float) -> int:
        return max(1, int((ttl_seconds + self._margin_seconds) * 1000))


def _of_another_epoch(epoch: str | None) -> ExpiredCredential:
    return ExpiredCredential(log=f"minted under epoch {epoch!r}, which the store of claims no longer has")
