"""The revisions of the schema: which one a database is at, and how it gets to the newest."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

VERSIONS = Path(__file__).parent / "migrations" / "versions"
REVISIONS = tuple(sorted(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*_*.py")))
"""Every revision that this version knows, the oldest first: files of migrations begin with theirs."""
HEAD_REVISION = REVISIONS[-1]
_VERSION = "alembic_version"


class SchemaError(Exception):
    """The database's schema is not the one that the code works with; the message says what to do."""


def check_known(revision: str | None) -> None:
    """Raise :class:`SchemaError` for a revision that only a newer version can have made."""
    if revision is not None and revision not in REVISIONS:
        raise SchemaError(
            f"the database is at revision {revision}, which this version does not know: a newer one made it. "
            "Run that one, or go back to a copy from before it."
        )


def check_current(revision: str | None) -> None:
    """Raise :class:`SchemaError` unless ``revision`` is the newest."""
    check_known(revision)
    if revision != HEAD_REVISION:
        where = "has no tables yet" if revision is None else f"is at revision {revision}"
        raise SchemaError(
            f"the database {where}, and this version needs {HEAD_REVISION}. Run: broker migrate"
        )


async def revision_of(engine: AsyncEngine) -> str | None:
    """The revision that a database is at; None while it has none of our tables.

    Asked of the database itself: importing the migration tool would double the time to start.
    """
    try:
        async with engine.connect() as connection:
            revision: str | None = await connection.scalar(sa.text(f"SELECT version_num FROM {_VERSION}"))  # noqa: S608 - a constant
    except (OperationalError, ProgrammingError):
        if await _has_version_table(engine):
            raise
        return None
    return revision


async def _has_version_table(engine: AsyncEngine) -> bool:
    async with engine.connect() as connection:
        return await connection.run_sync(lambda sync: sa.inspect(sync).has_table(_VERSION))


def upgrade(url: str) -> str | None:
    """Bring the schema to the newest revision; returns the one it was at. Not for an event loop's thread.

    Of processes that do so at once one migrates, and the others find it done. Raises :class:`SchemaError`.
    """
    from alembic import command  # noqa: PLC0415 - a third of a second, and seldom needed
    from alembic.config import Config  # noqa: PLC0415 - the same

    config = Config()
    config.set_main_option("script_location", "broker.state:migrations")
    config.attributes["url"] = url
    command.upgrade(config, "head")
    before: str | None = config.attributes["before"]
    return before
