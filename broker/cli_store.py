"""Commands that work on the database itself: it is opened, one thing is done with it, it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from broker import settings
from broker.settings import Settings
from broker.terminal import Result, or_stop, say

if TYPE_CHECKING:
    from broker.state.database import Database


def with_ready_database(work: Callable[[Settings, Database], Awaitable[Result]]) -> Result:
    """What ``work`` gives, with a database that is up to date; the command ends where there is none."""

    async def run(given: Settings, database: Database) -> Result:
        await database.make_ready()
        return await work(given, database)

    return with_database(run)


def store_settings() -> Settings:
    """The settings, checked as far as the database needs them; the command ends where they are wrong."""
    given = or_stop(settings.load_for_store)
    for sentence in settings.env_file_troubles():
        say("yellow", "warning", sentence)
    return given


def with_database(work: Callable[[Settings, Database], Awaitable[Result]]) -> Result:
    """The same with the database as it is."""
    given = store_settings()
    from broker import opening
    from broker.observe import logs
    from broker.state.database import Database

    logs.configure(given.broker_log_format, "warning")

    async def run() -> Result:
        database = Database(given.resolved_database_url)
        try:
            return await work(given, database)
        finally:
            await opening.close(database)

    def run_and_tell() -> Result:
        with opening.troubles_told():
            return asyncio.run(run())

    return or_stop(run_and_tell)
