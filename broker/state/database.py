"""The database: its tables, and how one is opened. SQLite by default; the URL decides."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from broker.errors import StoreUnavailable
from broker.observe import snapshot
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


class Database:
    """A pool of connections to one database.

    What goes wrong in a ``transaction`` surfaces as :class:`~broker.errors.StoreUnavailable`, its cause
    for the log.
    """

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.engine = _engine(self.url)
        self._has_failed = False
        pool = self.engine.pool
        if isinstance(pool, sa.QueuePool):
            snapshot.count("database_connections_in_use", pool.checkedout)

    async def migrate(self) -> None:
        """Bring the schema up to date; makes the database and its folder where there is none."""
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if await self._is_current():
            return
        await asyncio.to_thread(_upgrade, self.url.render_as_string(hide_password=False))

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
        await self.engine.dispose()

    async def _is_current(self) -> bool:
        """Asked of the database itself: importing the migration tool would double the time to start."""
        try:
            async with self.engine.connect() as connection:
                version = await connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        except SQLAlchemyError:
            return False
        return bool(version == HEAD_REVISION)


STORE_SECONDS = 5.0
"""How long the database may take to connect, to give a connection, and to answer."""

HEAD_REVISION = "0003"


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


def _tune_sqlite(connection: Any, _: Any) -> None:
    """WAL lets readers and the writer work side by side, and survives a crash of the process."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _upgrade(url: str) -> None:
    from alembic import command  # noqa: PLC0415 - a third of a second, and seldom needed
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "broker.state:migrations")
    config.attributes["url"] = url
    command.upgrade(config, "head")
