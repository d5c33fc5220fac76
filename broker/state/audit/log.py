"""The audit's table: rows put at its end, in one chain however many processes write, and read back.

Who holds the head's row holds the end of the chain, and the others wait.
"""

from __future__ import annotations

import functools
import hmac
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.errors import StoreUnavailable
from broker.state.audit.chain import LINK_COLUMNS, START, Chain, Head, Link, named
from broker.state.audit.row import AuditRow, Values
from broker.state.database import Database, audit_head, audit_spools
from broker.state.database import audit as table
from broker.state.uninterrupted import uninterrupted

PAGE_ROWS = 1000
WINDOW_ROWS = 20_000
"""How many rows one query looks through: a query has a time limit, a search in millions of rows has none."""


class Abandoned(Exception):
    """The batch was given up while it was on its way; it is not in the audit."""


@dataclass(frozen=True)
class Stretch:
    """Lines ``first`` to ``end`` (not within) of a spooled file, counted from 0."""

    name: str
    first: int
    end: int


@dataclass(slots=True)
class Batch:
    """Rows that are written together or not at all."""

    rows: Sequence[Values]
    spooled: Stretch | None = None
    """Where the rows come from, if they were spooled."""
    unless: Head | None = None
    """Not to be written where this row is in the audit: the rows were there already, and nobody knew."""
    attempted: Head | None = None
    """Set when the rows are handed over: from here on nobody knows, should the answer not come."""
    is_abandoned: bool = False


@dataclass(frozen=True)
class Found:
    """What the database says of the chain's end, in one look. ``head`` is None when its row is gone."""

    head: Head | None
    seal: str
    last_seq: int
    """The number of the last row there is; 0 when there is none."""


@dataclass(frozen=True)
class Filter:
    """Which rows to read; ``None`` takes any. Times are Unix seconds, the first within, the last not."""

    since: float | None = None
    until: float | None = None
    equal: dict[str, Any] = field(default_factory=dict)
    """Column and value."""

    @property
    def times(self) -> list[sa.ColumnElement[bool]]:
        """For a query's ``WHERE``: the bounds in time."""
        found = []
        if self.since is not None:
            found.append(table.c.at >= self.since)
        if self.until is not None:
            found.append(table.c.at < self.until)
        return found

    @property
    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """For a query's ``WHERE``: everything."""
        return [*self.times, *(table.c[name] == value for name, value in self.equal.items())]


class AuditLog:
    """The rows in the database, and the chain that they make under one key."""

    def __init__(self, database: Database, chain: Chain) -> None:
        self._database = database
        self.chain = chain
        self.head: Head | None = None
        """The end of the chain as this process left it; another may have gone on since."""
        self._seen = 0
        """The number that this process last saw at the chain's end; it can only grow."""

    # --- writing ----------------------------------------------------------------------------------------

    async def write(self, *rows: AuditRow) -> None:
        """Write rows now. Raises :class:`StoreUnavailable`."""
        await self.append(Batch([row.values() for row in rows]))

    @uninterrupted
    async def append(self, batch: Batch) -> None:
        """Write a batch; one without rows shows that it could be.

        Raises :class:`StoreUnavailable`, or :class:`Abandoned` when the batch was given up meanwhile, or its
        lines are in the audit already.
        """
        try:
            head = await self._appended(batch)
        except IntegrityError:
            # Somebody put a row where ours belongs. Look again, and go on behind it.
            self.head = None
            head = await self._appended_at_last(batch)
        if head is not None:
            self.head, self._seen = head, head.seq

    async def append_within(self, connection: AsyncConnection, *rows: AuditRow) -> None:
        """Write rows in a transaction of the caller's: they are there if what they tell of is.

        Others wait for the chain's end until that transaction is over, so let this be the last it does.
        """
        await self._put(connection, [row.values() for row in rows])

    async def _appended_at_last(self, batch: Batch) -> Head | None:
        try:
            return await self._appended(batch)
        except IntegrityError as error:
            raise StoreUnavailable(log=f"the audit takes no row: {error.orig}") from error

    async def _appended(self, batch: Batch) -> Head | None:
        """The new end of the chain; None when the rows were there before."""
        if batch.rows and batch.spooled is None:
            head = await self._appended_at_once(batch)
            if head is not None:
                return head
            batch.attempted = None
        async with self._database.transaction() as connection:
            head = await self._extended(connection, batch)
            if batch.is_abandoned:
                raise Abandoned
            batch.attempted = head
        return head

    async def _appended_at_once(self, batch: Batch) -> Head | None:
        """What is usual, at a fifth of the CPU; None when it is not as usual, and nothing was written."""
        if self._database.is_sqlite:
            async with self._database.driver() as driver:
                # In the connection's own thread: each statement would cross over and back three times.
                head: Head | None = await driver._execute(self._append_in_sqlite, batch, driver._conn)
                return head
        if self.head is None:
            return None
        async with self._database.driver() as driver:
            if batch.is_abandoned:
                raise Abandoned
            links, head = self.chain.extended(self.head, batch.rows)
            ends = (*self._head_row(head).values(), self.head.seq, self.chain.seal_of(self.head))
            batch.attempted = head
            done = await driver.execute(_APPEND_IN_POSTGRESQL, *ends, *zip(*links, strict=True))
        return head if done == f"INSERT 0 {len(links)}" else None

    def _append_in_sqlite(self, batch: Batch, connection: sqlite3.Connection) -> Head | None:
        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute(_END_IN_SQLITE).fetchone()
        found = Found(Head(*row[:2]), row[2], row[3] or 0) if row else None
        if found is None or found.head is None or not found.seal or any(self._doubts(found)):
            connection.rollback()
            return None
        links, head = self.chain.extended(found.head, batch.rows)
        for some in _in_powers_of_two(links):
            connection.execute(_insert_in_sqlite(len(some)), list(chain.from_iterable(some)))
        connection.execute(_ADVANCE_IN_SQLITE, self._head_row(head))
        # In this order: whoever gives the batch up sets the one and then looks at the other.
        batch.attempted = head
        if batch.is_abandoned:
            connection.rollback()
            raise Abandoned
        connection.commit()
        return head

    async def _extended(self, connection: AsyncConnection, batch: Batch) -> Head | None:
        if batch.spooled is not None:
            return await self._replayed(connection, batch, batch.spooled)
        return await self._put(connection, batch.rows)

    async def _replayed(self, connection: AsyncConnection, batch: Batch, spooled: Stretch) -> Head | None:
        """Once: the count of lines is in the same transaction as the rows."""
        await connection.execute(_LOCK)
        known = sa.select(audit_spools.c.lines).where(audit_spools.c.name == spooled.name)
        lines = await connection.scalar(known)
        if (lines or 0) != spooled.first:
            raise Abandoned
        if lines is None:
            await connection.execute(sa.insert(audit_spools).values(name=spooled.name, lines=spooled.end))
        else:
            ours = audit_spools.c.name == spooled.name
            await connection.execute(sa.update(audit_spools).where(ours).values(lines=spooled.end))
        if batch.unless is not None and await self._has(connection, batch.unless):
            return None
        return await self._put(connection, batch.rows)

    async def _has(self, connection: AsyncConnection, row: Head) -> bool:
        found = await connection.scalar(sa.select(table.c.hash).where(table.c.seq == row.seq))
        return found is not None and hmac.compare_digest(str(found), row.hash)

    async def _put(self, connection: AsyncConnection, rows: Sequence[Values]) -> Head:
        """Wait for the chain's end, and put the rows there, with what was not as it should be before them."""
        found = await self._locked(connection)
        head, doubts = await self._end(connection, found)
        links, new = self.chain.extended(head, [*(doubt.values() for doubt in doubts), *rows])
        if found.head is None:
            await connection.execute(sa.insert(audit_head).values(id=1, **self._head_row(new)))
        elif new != found.head or not found.seal:
            await connection.execute(sa.update(audit_head).values(**self._head_row(new)))
        if links:
            await connection.execute(sa.insert(table), named(links))
        return new

    def _head_row(self, head: Head) -> dict[str, Any]:
        return {"seq": head.seq, "hash": head.hash, "seal": self.chain.seal_of(head)}

    async def _locked(self, connection: AsyncConnection) -> Found:
        row = (await connection.execute(_LOCK)).first()
        last_seq = await connection.scalar(sa.select(sa.func.max(table.c.seq)))
        return _found(row, last_seq)

    async def _end(self, connection: AsyncConnection, found: Found) -> tuple[Head, list[AuditRow]]:
        """Where the chain goes on. What the writer finds wrong is written down: it may be gone by the time
        that somebody verifies.
        """
        head, whys = found.head or START, list(self._doubts(found))
        if whys and found.last_seq:
            last_hash = await connection.scalar(sa.select(table.c.hash).where(table.c.seq == found.last_seq))
            head = Head(max(head.seq, found.last_seq), str(last_hash))
        detail = {"head": str(found.head), "last_row": found.last_seq, "seen": self._seen}
        return head, [AuditRow(action="audit.doubt", result=why, detail=detail) for why in whys]

    def _doubts(self, found: Found) -> Iterator[str]:
        if found.head is None:
            yield "head_missing"
            return
        is_fresh = found.head == START and not found.seal
        if not is_fresh and not hmac.compare_digest(found.seal, self.chain.seal_of(found.head)):
            yield "head_not_ours"
        if found.head.seq < self._seen:
            yield "head_went_back"
        if found.last_seq > found.head.seq:
            yield "rows_behind_the_head"

    @uninterrupted
    async def forget_spool(self, name: str) -> None:
        """A spooled file is gone, and need not be known any more."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(audit_spools).where(audit_spools.c.name == name))

    @uninterrupted
    async def spooled_lines(self, name: str) -> int:
        """How many lines of a spooled file are in the audit."""
        async with self._database.transaction() as connection:
            known = sa.select(audit_spools.c.lines).where(audit_spools.c.name == name)
            return await connection.scalar(known) or 0

    # --- reading ----------------------------------------------------------------------------------------

    @uninterrupted
    async def found(self) -> Found:
        """The chain's end as it is in the database. Raises :class:`StoreUnavailable`."""
        last = sa.select(sa.func.max(table.c.seq)).scalar_subquery()
        columns = (audit_head.c.seq, audit_head.c.hash, audit_head.c.seal)
        async with self._database.transaction() as connection:
            row = (await connection.execute(sa.select(*columns, last.label("last")))).first()
            if row is not None:
                return _found(row, row.last)
            return _found(None, await connection.scalar(sa.select(sa.func.max(table.c.seq))))

    async def every_row(self, last_seq: int) -> AsyncIterator[Mapping[str, Any]]:
        """All rows up to ``last_seq``, by their numbers."""
        condition, after = table.c.seq <= last_seq, None
        while page := await self._page(
            [condition, *(() if after is None else (table.c.seq > after,))], PAGE_ROWS
        ):
            for row in page:
                yield row
            after = page[-1]["seq"]

    async def newest(self, which: Filter, limit: int) -> list[Mapping[str, Any]]:
        """The last ``limit`` rows that pass the filter, the newest last."""
        first, last = await self._bounds(which)
        rows: list[Mapping[str, Any]] = []
        while last >= first and len(rows) < limit:
            window = [table.c.seq > last - WINDOW_ROWS, table.c.seq <= last]
            rows += await self._page([*which.conditions, *window], limit - len(rows), newest_first=True)
            last -= WINDOW_ROWS
        return rows[::-1]

    async def matching(self, which: Filter) -> AsyncIterator[Mapping[str, Any]]:
        """Every row that passes the filter, the newest last, without holding them all."""
        first, last = await self._bounds(which)
        for start in range(first, last + 1, WINDOW_ROWS):
            window = [table.c.seq >= start, table.c.seq < min(start + WINDOW_ROWS, last + 1)]
            for row in await self._page([*which.conditions, *window]):
                yield row

    @uninterrupted
    async def _bounds(self, which: Filter) -> tuple[int, int]:
        """The lowest and the highest number in question."""
        bounds = sa.select(sa.func.min(table.c.seq), sa.func.max(table.c.seq)).where(*which.times)
        async with self._database.transaction() as connection:
            first, last = (await connection.execute(bounds)).one()
        return (1, 0) if first is None else (first, last)

    @uninterrupted
    async def _page(
        self,
        conditions: Sequence[sa.ColumnElement[bool]],
        limit: int | None = None,
        *,
        newest_first: bool = False,
    ) -> list[Mapping[str, Any]]:
        order = table.c.seq.desc() if newest_first else table.c.seq
        statement = sa.select(table).where(*conditions).order_by(order).limit(limit)
        async with self._database.transaction() as connection:
            return [dict(row._mapping) for row in await connection.execute(statement)]


def _found(row: Any, last_seq: int | None) -> Found:
    head = None if row is None else Head(row.seq, row.hash)
    return Found(head, "" if row is None else row.seal, last_seq or 0)


def _in_powers_of_two(links: list[Link]) -> Iterator[list[Link]]:
    """Many rows a statement, since each gives up the interpreter's lock and has to wait for it again; and
    few statements, since the driver remembers each one.
    """
    first = 0
    while first < len(links):
        count = 1 << (len(links) - first).bit_length() - 1
        yield links[first : first + count]
        first += count


@functools.cache
def _insert_in_sqlite(rows: int) -> str:
    row = f"({', '.join('?' * len(LINK_COLUMNS))})"
    return f"INSERT INTO audit ({_COLUMNS}) VALUES {', '.join([row] * rows)}"  # noqa: S608 - names of columns


_COLUMNS = ", ".join(LINK_COLUMNS)
_END_IN_SQLITE = "SELECT seq, hash, seal, (SELECT max(seq) FROM audit) FROM audit_head WHERE id = 1"
_ADVANCE_IN_SQLITE = "UPDATE audit_head SET seq = :seq, hash = :hash, seal = :seal WHERE id = 1"
_POSTGRESQL_TYPES = {"seq": "bigint", "at": "float8", "bytes": "bigint", "status": "int"}
_ARRAYS = ", ".join(
    f"${n}::{_POSTGRESQL_TYPES.get(name, 'text')}[]" for n, name in enumerate(LINK_COLUMNS, 6)
)
_APPEND_IN_POSTGRESQL = f"""
    WITH moved AS (
        UPDATE audit_head SET seq = $1, hash = $2, seal = $3
        WHERE id = 1 AND seq = $4 AND seal = $5 RETURNING 1
    )
    INSERT INTO audit ({_COLUMNS}) SELECT link.* FROM moved, unnest({_ARRAYS}) AS link
"""  # noqa: S608 - the names of columns
# To write the row is to hold it: in SQLite it takes the one write lock, in PostgreSQL the row's own.
_LOCK = (
    sa.update(audit_head)
    .where(audit_head.c.id == 1)
    .values(id=audit_head.c.id)
    .returning(audit_head.c.seq, audit_head.c.hash, audit_head.c.seal)
)
