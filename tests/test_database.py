"""The database: made at the first start, shared by processes, and shut when it can't be trusted."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from broker.auth.api_keys import ApiKeys
from broker.errors import ExpiredCredential, InvalidCredential, StoreUnavailable
from broker.state.counters import DatabaseClaims
from broker.state.database import HEAD_REVISION, Database, metadata
from tests.support import needs
from tests.support.broker_process import Broker, running_broker
from tests.support.sandbox_control import SandboxControl

SMALL = {"file": ("a.csv", b"1")}

# --- one contract, two databases ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
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
    address: str = request.getfixturevalue("postgresql")
    name = f"test_{os.urandom(4).hex()}"
    subprocess.run([*_psql(address), "-c", f"CREATE DATABASE {name}"], check=True, capture_output=True)
    return address.removesuffix("postgres") + name


def _psql(url: str) -> list[str]:
    psql = needs.executable("psql", "/usr/lib/postgresql/*/bin/psql")
    return [psql, url.replace("+asyncpg", "")]


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.migrate()
    yield database
    await database.close()


async def test_the_migrations_make_what_the_code_describes(database: Database) -> None:
    def compare(connection: sa.Connection) -> Any:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return compare_metadata(context, metadata)

    async with database.engine.connect() as connection:
        assert await connection.run_sync(compare) == []
        version = await connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    assert version == HEAD_REVISION


async def test_a_schema_that_is_current_is_left_alone(url: str, database: Database) -> None:
    """The second start neither migrates nor loses what is there."""
    claims = DatabaseClaims(database)
    assert await claims.claim("kept", ttl_seconds=60)
    second = Database(url)
    assert await second._is_current()
    await second.migrate()
    assert not await DatabaseClaims(second).claim("kept", ttl_seconds=60)
    await second.close()


async def test_keys_are_found_by_themselves_alone(database: Database) -> None:
    now = [1000.0]
    keys = ApiKeys(database, b"pepper", lambda: now[0])
    key, secret = await keys.create(name="标题", scopes=["files:upload"], origins=["https://a.example"])
    brief, brief_secret = await keys.create(name="brief", scopes=["files:upload"], expires_at=1010)
    assert await keys.authenticate(secret) == key
    assert await keys.list() == sorted([key, brief], key=lambda each: each.id)
    another = "y" if secret.endswith("x") else "x"
    for wrong in (secret[:-1] + another, secret.replace("sk", "pk"), "", "cub_sk_"):
        with pytest.raises(InvalidCredential):
            await keys.authenticate(wrong)
    with pytest.raises(InvalidCredential):
        await ApiKeys(database, b"another pepper").authenticate(secret)
    now[0] = 1009.9
    assert await keys.authenticate(brief_secret) == brief
    now[0] = 1010
    with pytest.raises(ExpiredCredential):
        await keys.authenticate(brief_secret)
    assert await keys.revoke(key.id)
    assert not await keys.revoke(key.id)
    assert not await keys.revoke("key_unknown")
    with pytest.raises(InvalidCredential):
        await keys.authenticate(secret)


async def test_a_key_is_as_another_process_left_it_a_second_ago(database: Database) -> None:
    here, there = ApiKeys(database, b"pepper"), ApiKeys(database, b"pepper")
    key, secret = await here.create(name="x", scopes=["files:upload"])
    assert await here.authenticate(secret) == key
    assert await there.revoke(key.id)
    give_up = time.monotonic() + 2
    while await is_taken(here, secret):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    assert not await is_taken(there, secret)


async def is_taken(keys: ApiKeys, secret: str) -> bool:
    try:
        await keys.authenticate(secret)
    except InvalidCredential:
        return False
    return True


async def test_a_claim_is_forgotten_when_its_time_is_over(database: Database) -> None:
    now = [1000.0]
    claims = DatabaseClaims(database, lambda: now[0])
    assert await claims.claim("a", ttl_seconds=100)
    now[0] = 1100
    assert not await claims.claim("a", ttl_seconds=100)
    now[0] = 1200
    assert await claims.claim("a", ttl_seconds=100)


CLAIM_25_TIMES = """
import asyncio, sys
from broker.state.counters import DatabaseClaims
from broker.state.database import Database

async def main():
    database = Database(sys.argv[1])
    claims = DatabaseClaims(database)
    await database.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    for name in ("one", "two", "three"):
        won = await asyncio.gather(*(claims.claim(name, ttl_seconds=60) for _ in range(25)))
        print(sum(won), flush=True)
    await database.close()

asyncio.run(main())
"""


async def test_of_fifty_who_claim_a_name_from_two_processes_one_gets_it(url: str, database: Database) -> None:
    async def start() -> asyncio.subprocess.Process:
        pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        return await asyncio.create_subprocess_exec(sys.executable, "-c", CLAIM_25_TIMES, url, **pipes)

    processes = [await start(), await start()]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    told = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    won = [[int(line) for line in out.split()] for out, _ in told]
    assert [sum(each) for each in zip(*won, strict=True)] == [1, 1, 1], won


MIGRATE_AT = """
import asyncio, sys, time
from broker.state.database import Database

async def main():
    database = Database(sys.argv[1])
    time.sleep(max(0, float(sys.argv[2]) - time.time()))
    await database.migrate()
    await database.close()

asyncio.run(main())
"""


def test_processes_that_start_at_once_make_one_schema(url: str) -> None:
    """Whoever comes second waits and finds the work done."""
    command = [sys.executable, "-c", MIGRATE_AT, url, str(time.time() + 1.5)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    told = [process.communicate()[1].decode()[-500:] for process in processes]
    assert told == ["", "", ""]


# --- processes -----------------------------------------------------------------------------------------


def upload(broker: Broker, token: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token['access_token']}"}
    return httpx.post(f"{broker.url}/proxy/upload", files=SMALL, headers=headers)


def test_a_used_token_stays_used_after_a_restart(folder: Path, sandbox: SandboxControl) -> None:
    """So do keys, and tokens that were not used: the data folder is all that a broker remembers by."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with running_broker(folder, sandbox.environment, PORT=port) as broker:
        used, unused = (broker.mint(size=1, route="proxy") for _ in range(2))
        assert upload(broker, used).status_code == 200
        assert upload(broker, used).json()["code"] == "token_used"
        key = broker.secret_key
    with running_broker(folder, sandbox.environment, PORT=port) as broker:
        assert upload(broker, used).json()["code"] == "token_used"
        assert upload(broker, unused).status_code == 200
        assert broker.mint(key=key, size=1)["access_token"]
    assert len(sandbox.events(kind="upload", outcome="stored")) == 2


def test_what_is_secret_on_disk_is_its_owners_alone(broker: Broker) -> None:
    data_dir = Path(broker.environment["BROKER_DATA_DIR"])
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    for name in ("key-pepper", "signing-keys.pem"):
        assert stat.S_IMODE((data_dir / name).stat().st_mode) == 0o600
    assert not list(data_dir.glob(".*")), "nothing half-made is left"


def test_brokers_that_start_at_once_on_an_empty_folder_agree(folder: Path, sandbox: SandboxControl) -> None:
    """One pepper, one signing key, one schema, whoever came first."""
    shared = {"BROKER_DATA_DIR": str(folder / "data")}
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        start = [running_broker(folder / name, sandbox.environment, **shared) for name in ("one", "two")]
        one, two = pool.map(stack.enter_context, start)
        rings = [httpx.get(f"{broker.url}/.well-known/jwks.json").json() for broker in (one, two)]
        assert rings[0] == rings[1]
        assert one.mint(key=two.secret_key, size=1)
        assert two.mint(key=one.secret_key, size=1)


@pytest.fixture(scope="module")
def broker_without_store(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Broker, dict[str, Any]]]:
    """A broker whose database's file became junk while it runs, and a token from before."""
    folder = tmp_path_factory.mktemp("junk")
    with running_broker(folder, session_sandbox.environment) as broker:
        token = broker.mint(size=1, route="proxy")
        for path in (folder / "data").glob("broker.db*"):
            path.write_bytes(b"junk" * 2000)
        _wait_until_forgotten(broker)
        yield broker, token


def _wait_until_forgotten(broker: Broker) -> None:
    """A key that was found is good for a second."""
    give_up = time.monotonic() + 5
    while httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth()).status_code == 200:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_without_its_database_nobody_is_let_in(
    broker_without_store: tuple[Broker, dict[str, Any]], sandbox: SandboxControl
) -> None:
    broker, token = broker_without_store
    assert httpx.get(f"{broker.url}/health").status_code == 200
    answers = [
        upload(broker, token),
        httpx.post(f"{broker.url}/proxy/upload", files=SMALL, headers=broker.auth()),
        httpx.post(f"{broker.url}/token", json={"size": 1}, headers=broker.auth()),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.json()["retryable"]
    envelope = httpx.post(f"{broker.url}/v1/files/upload", files=SMALL, headers=broker.auth())
    assert (envelope.status_code, envelope.json()["code"]) == (503, 5000)
    assert sandbox.events(kind="upload") == []


def test_without_its_database_it_is_not_ready(broker_without_store: tuple[Broker, dict[str, Any]]) -> None:
    broker, _ = broker_without_store
    ready = httpx.get(f"{broker.url}/ready")
    assert ready.status_code == 503
    assert ready.json() == {"ready": False, "checks": {"store": "store_unavailable"}}
    assert httpx.get(f"{broker.url}/health").status_code == 200


def test_a_locked_database_shuts_and_opens_again(folder: Path, sandbox: SandboxControl) -> None:
    with running_broker(folder, sandbox.environment) as broker:
        token = broker.mint(size=1, route="proxy")
        lock = sqlite3.connect(folder / "data" / "broker.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        answer = httpx.post(
            f"{broker.url}/proxy/upload",
            files=SMALL,
            headers={"Authorization": f"Bearer {token['access_token']}"},
            timeout=20,
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        lock.execute("ROLLBACK")
        lock.close()
        assert upload(broker, token).status_code == 200, "what was not claimed can be used"


async def test_an_unreachable_server_is_an_unavailable_store() -> None:
    pytest.importorskip("asyncpg")
    database = Database("postgresql+asyncpg://user:password@127.0.0.1:1/db")
    with pytest.raises(StoreUnavailable) as raised:
        await database.ping()
    assert "password" not in str(raised.value) + str(raised.value.log)
    await database.close()


def test_a_broker_works_on_postgresql(folder: Path, sandbox: SandboxControl, postgresql: str) -> None:
    subprocess.run([*_psql(postgresql), "-c", "CREATE DATABASE whole"], check=True, capture_output=True)
    url = postgresql.replace("+asyncpg", "").removesuffix("postgres") + "whole"
    with running_broker(folder, sandbox.environment, DATABASE_URL=url) as broker:
        token = broker.mint(size=1, route="proxy")
        assert upload(broker, token).status_code == 200
        assert upload(broker, token).json()["code"] == "token_used"
        assert not list((folder / "data").glob("*.db"))
