"""How Alembic reaches the database: a connection of its own, in the thread that called it."""

from __future__ import annotations

import asyncio
import threading

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from broker.state.database import metadata
from broker.state.schema import check_known

# Any number will do, as long as nobody else takes the same lock in this database.
LOCK = 0xC02E_B40C
THREAD_SECONDS = 1.0


def _run(connection: Connection) -> None:
    """Processes that start at once take turns; whoever comes second finds the work done."""
    is_sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_sqlite else f"SELECT pg_advisory_xact_lock({LOCK})")
    context.configure(connection=connection, target_metadata=metadata)
    before = context.get_context().get_current_revision()
    check_known(before)
    context.config.attributes["before"] = before
    with context.begin_transaction():
        context.run_migrations()


async def _connect_and_run() -> None:
    before = set(threading.enumerate())
    engine = create_async_engine(context.config.attributes["url"])
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run)
    finally:
        await engine.dispose()
        # aiosqlite's, for a file that can't be opened, ends in a trace where the event loop is over by then.
        for thread in set(threading.enumerate()) - before:
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join, THREAD_SECONDS)


asyncio.run(_connect_and_run())
