"""The database: its tables, and how one is opened. SQLite by default; the URL decides."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from broker.errors import StoreUnavailable
from broker.observe import snapshot
from broker.state import schema
from broker.state.uninterrupted import uninterrupted

metadata = sa.MetaData()

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("owner", sa.String(200), nullable=False, server_default=""),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("origins", sa.JSON, nullable=False),
    sa.Column("rights", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("last_used_at", sa.BigInteger, nullable=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("revoked_at", sa.BigInteger, nullable=True),
)

api_key_secrets = sa.Table(
    "api_key_secrets",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(32), nullable=False, index=True),
    sa.Column("hint", sa.String(32), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, server_default="0"),
)
"""A key's secrets: one, or after a rotation the old one too until its grace is over (0: never)."""

revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("revoked_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)
"""Tokens that are not good any more: one by its ``jti``, or all that a subject or key had until then."""

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("used", sa.Integer, nullable=False, server_default="1"),
    sa.Column("holder", sa.String(200), nullable=True),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(32), nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=True),
    sa.Column("answer", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("lease_until", sa.Double, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False, index=True),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column(
        "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False
    ),
    sa.Column("at", sa.Double, nullable=False, index=True),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("result", sa.String(64), nullable=False),
    sa.Column("caller", sa.String(32)),
    sa.Column("key_id", sa.String(64)),
    sa.Column("key_hint", sa.String(32)),
    sa.Column("subject", sa.String(200)),
    sa.Column("token", sa.String(32)),
    sa.Column("client_ip", sa.String(64)),
    sa.Column("origin", sa.String(200)),
    sa.Column("route", sa.String(16)),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("file_id", sa.String(64)),
    sa.Column("request_id", sa.String(64)),
    sa.Column("logid", sa.String(128)),
    sa.Column("status", sa.Integer),
    sa.Column("method", sa.String(16)),
    sa.Column("path", sa.String(200)),
    sa.Column("detail", sa.Text),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
"""Who did what. The database itself refuses to change or delete a row; the hashes prove it (state/audit)."""

audit_head = sa.Table(
    "audit_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("seal", sa.String(64), nullable=False),
)
"""One row: the last row of the audit, sealed with a key that is not in the database."""

audit_spools = sa.Table(
    "audit_spools",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("lines", sa.BigInteger, nullable=False),
)
"""How much of a spooled file is in the audit already."""


class Database:
    """A pool of connections to one database.

    What goes wrong in a ``transaction`` surfaces as :class:`~broker.errors.StoreUnavailable`, its cause
    for the log.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.engine = _engine(self.url)
        self._has_failed = False
        self._kept: AsyncConnection | None = None
        self._kept_until = 0.0
        self._keeping = asyncio.Lock()
        errors = _errors_of_driver(is_sqlite=self.is_sqlite)
        self._integrity_error: type[Exception] = errors[0]
        self._faults: tuple[type[Exception], ...] = (*errors[1], DBAPIError, PoolTimeoutError, OSError)
        pool = self.engine.pool
        if isinstance(pool, sa.QueuePool):
            # The kept one is in use only for the moment that somebody has it.
            snapshot.count(
                "database_connections_in_use",
                lambda: pool.checkedout() - (self._kept is not None and not self._keeping.locked()),
            )

    async def make_ready(self) -> None:
        """SQLite, which is this broker's alone, is brought up to date; PostgreSQL must be, by its operator.

        Raises :class:`~broker.state.schema.SchemaError` when it is not, or is of a newer version.
        """
        if self.file is not None:
            await self.migrate()
        else:
            schema.check_current(await self.revision())

    async def migrate(self) -> str | None:
        """Bring the schema up to date; makes the database and its folder where there is none.

        Returns the revision that it was at. Raises :class:`~broker.state.schema.SchemaError` when a newer
        version made it.
        """
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            revision = await self.revision()
        except OperationalError:  # locked by one who makes it at this moment; whoever migrates waits for that
            revision = None
        schema.check_known(revision)
        if revision == schema.HEAD_REVISION:
            return revision
        return await asyncio.to_thread(schema.upgrade, self.url.render_as_string(hide_password=False))

    async def revision(self) -> str | None:
        """The revision that the schema is at; None where there is none yet. Makes nothing."""
        if self.file is not None and not self.file.exists():
            return None
        return await schema.revision_of(self.engine)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A connection whose work is committed at the end, or undone when an error leaves the block.

        To be used by what is ``uninterrupted`` alone.
        """
        try:
            async with self.engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise  # an answer, not a fault: the row is there already
        except (DBAPIError, PoolTimeoutError, OSError) as error:
            self._has_failed = True
            raise StoreUnavailable(log=f"{type(error).__name__}: {error}") from error

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Any]:
        """The driver's own connection, aiosqlite's or asyncpg's, for what is done so often that it must cost
        little: one that is kept for this, by one at a time. Whoever uses it commits for himself. Errors
        surface as in a ``transaction``.

        To be used by what is ``uninterrupted`` alone.
        """
        try:
            async with self._keeping:
                connection = await self._kept_connection()
                try:
                    yield (await connection.get_raw_connection()).driver_connection
                except BaseException:
                    await self._let_go()
                    raise
        except self._integrity_error as error:
            raise IntegrityError(None, None, error) from error
        except self._faults as error:
            self._has_failed = True
            raise StoreUnavailable(log=f"{type(error).__name__}: {error}") from error

    async def _kept_connection(self) -> AsyncConnection:
        """The same for a while: each time that one is taken from the pool, it is tried first."""
        if self._kept is None or time.monotonic() >= self._kept_until:
            await self._let_go()
            self._kept, self._kept_until = await self.engine.connect(), time.monotonic() + KEPT_SECONDS
        return self._kept

    async def _let_go(self) -> None:
        """Back to the pool, which undoes what was not committed."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.close()

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that may have an ``ON CONFLICT``: both dialects know it, and SQLAlchemy has it twice."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite, and else PostgreSQL."""
        return self.url.get_backend_name() == "sqlite"

    @uninterrupted
    async def ping(self) -> None:
        """Raise :class:`StoreUnavailable` unless the database answers from its tables.

        After a failure it must also take a write: a database on a full disk still answers.
        """
        async with self.transaction() as connection:
            await connection.execute(sa.select(claims.c.name).limit(1))
            if self._has_failed:
                name = f"ping:{secrets.token_hex(16)}"
                await connection.execute(sa.insert(claims).values(name=name, expires_at=0))
        self._has_failed = False

    async def close(self) -> None:
        """Close every connection."""
        await self._let_go()
        await self.engine.dispose()

    @property
    def file(self) -> Path | None:
        """Where SQLite keeps it; None for a database of another kind."""
        return Path(self.url.database) if self.is_sqlite and self.url.database else None


STORE_SECONDS = 5.0
"""How long the database may take to connect, to give a connection, and to answer."""
KEPT_SECONDS = 1.0


def _engine(url: sa.URL) -> AsyncEngine:
    if url.get_backend_name() != "sqlite":
        limits = {"timeout": STORE_SECONDS, "command_timeout": STORE_SECONDS}
        return create_async_engine(
            url, pool_pre_ping=True, hide_parameters=True, pool_timeout=STORE_SECONDS, connect_args=limits
        )
    limits = {"timeout": STORE_SECONDS}
    engine = create_async_engine(url, connect_args=limits, hide_parameters=True, pool_timeout=STORE_SECONDS)
    sa.event.listen(engine.sync_engine, "connect", _tune_sqlite)
    return engine


def _errors_of_driver(*, is_sqlite: bool) -> tuple[type[Exception], tuple[type[Exception], ...]]:
    """What the driver raises: where a row is there already, and at all."""
    if is_sqlite:
        return sqlite3.IntegrityError, (sqlite3.Error,)
    import asyncpg  # type: ignore[import-untyped]  # noqa: PLC0415 - an extra

    return asyncpg.IntegrityConstraintViolationError, (asyncpg.PostgresError, asyncpg.InterfaceError)


def _tune_sqlite(connection: Any, _: Any) -> None:
    """WAL lets readers and the writer work side by side, and survives a crash of the process."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
