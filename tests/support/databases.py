"""Databases to test with: SQLite in a file, and a PostgreSQL server that the tests start themselves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.state.database import Database
from tests.support import needs


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Where the tests' PostgreSQL server is."""
    with running_postgresql() as address:
        yield address


@contextmanager
def running_postgresql() -> Iterator[str]:
    """A PostgreSQL server of its own on a free port; it refuses to run as root."""
    initdb = Path(needs.executable("initdb", "/usr/lib/postgresql/*/bin/initdb"))
    pytest.importorskip("asyncpg")
    as_user = [needs.executable("runuser"), "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="broker-postgresql-"))
    if as_user:
        shutil.chown(folder, "postgres")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["-D", str(folder / "data")]

    def run(*command: str) -> None:
        subprocess.run([*as_user, *command], check=True, capture_output=True, cwd=folder)

    run(str(initdb), *options, "-U", "broker", "-A", "trust", "-N")
    listen = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
    control = [str(initdb.with_name("pg_ctl")), *options, "-w"]
    run(*control, "-l", str(folder / "log"), "-o", listen, "start")
    try:
        yield f"postgresql+asyncpg://broker@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where an empty database is."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{folder / 'data' / 'broker.db'}"
    return new_database(request.getfixturevalue("postgresql"))


def new_database(address: str) -> str:
    """Where an empty database is, on the server at ``address``."""
    name = f"test_{os.urandom(4).hex()}"
    subprocess.run([*psql(address), "-c", f"CREATE DATABASE {name}"], check=True, capture_output=True)
    return address.removesuffix("postgres") + name


def psql(url: str) -> list[str]:
    """The command that talks to the server at ``url``."""
    program = needs.executable("psql", "/usr/lib/postgresql/*/bin/psql")
    return [program, url.replace("+asyncpg", "")]


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.migrate()
    yield database
    await database.close()
