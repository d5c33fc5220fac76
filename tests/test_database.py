"""The database: made at the first start, shared by processes, and shut when it can't be trusted."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from broker.api import idempotency
from broker.auth.api_keys import ApiKeys
from broker.errors import (
    ExpiredCredential,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    InvalidCredential,
    StoreUnavailable,
)
from broker.state.claims import DatabaseClaims
from broker.state.database import STORE_SECONDS, Database, metadata
from broker.state.idempotency import LEASE_SECONDS, Begun, Earlier, IdempotencyRecords
from broker.state.schema import HEAD_REVISION
from tests.support.broker_process import Broker, running_broker
from tests.support.clock import Clock
from tests.support.databases import psql
from tests.support.sandbox_control import SandboxControl

SMALL = {"file": ("a.csv", b"1")}


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
    assert await second.revision() == HEAD_REVISION
    assert await second.migrate() == HEAD_REVISION
    assert not await DatabaseClaims(second).claim("kept", ttl_seconds=60)
    await second.close()


async def test_keys_are_found_by_themselves_alone(database: Database) -> None:
    now = [1000.0]
    keys = ApiKeys(database, b"pepper", lambda: now[0])
    key, secret = await keys.create(name="标题", scopes=["files:upload"], origins=["https://a.example"])
    brief, brief_secret = await keys.create(name="brief", scopes=["files:upload"], expires_at=1010)
    assert await keys.authenticate(secret) == key
    assert list((await keys.list()).keys) == sorted([key, brief], key=lambda each: each.id)
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
    assert ready.json()["ready"] is False
    assert ready.json()["checks"]["store"] == "store_unavailable"
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
    subprocess.run([*psql(postgresql), "-c", "CREATE DATABASE whole"], check=True, capture_output=True)
    url = postgresql.replace("+asyncpg", "").removesuffix("postgres") + "whole"
    with running_broker(folder, sandbox.environment, DATABASE_URL=url) as broker:
        token = broker.mint(size=1, route="proxy")
        assert upload(broker, token).status_code == 200
        assert upload(broker, token).json()["code"] == "token_used"
        assert not list((folder / "data").glob("*.db"))


# --- requests that may be sent twice --------------------------------------------------------------------


@pytest.fixture
def records(database: Database, clock: Clock) -> IdempotencyRecords:
    return IdempotencyRecords(database, ttl_seconds=100, wait_seconds=0.3, now=clock, ticks=clock)


async def begun(records: IdempotencyRecords, name: str = "name", fingerprint: str = "file") -> Begun:
    found = await records.begin(name, fingerprint)
    assert isinstance(found, Begun)
    return found


async def test_what_became_of_a_request_is_told_to_the_next(records: IdempotencyRecords) -> None:
    first, other = await begun(records), await begun(records, "another name")
    await records.commit(first, "digest")
    await records.finish(first, {"id": "7"})
    assert await records.begin("name", "file") == Earlier("digest", {"id": "7"})
    await records.commit(other, "digest of the other")
    await records.finish(other, None)
    assert await records.begin("another name", "file") == Earlier("digest of the other", None)


async def test_another_request_under_the_same_name_is_refused(records: IdempotencyRecords) -> None:
    await begun(records)
    with pytest.raises(IdempotencyKeyReused):
        await records.begin("name", "another file")


async def test_a_request_that_came_to_nothing_may_be_sent_again(records: IdempotencyRecords) -> None:
    first = await begun(records)
    await records.forget(first)
    second = await begun(records, fingerprint="another file")
    await records.forget(first)  # whose row it no longer is
    with pytest.raises(IdempotencyInProgress) as refused:
        await records.begin("name", "another file")
    assert refused.value.retry_after_seconds
    assert second.owner != first.owner


async def test_the_second_waits_for_the_first(database: Database, clock: Clock) -> None:
    patient = IdempotencyRecords(database, ttl_seconds=100, wait_seconds=10, now=clock)
    first = await begun(patient)
    second = asyncio.create_task(patient.begin("name", "file"))
    await asyncio.sleep(0.3)
    assert not second.done()
    await patient.commit(first, "digest")
    await patient.finish(first, {"id": "7"})
    assert await second == Earlier("digest", {"id": "7"})


async def test_the_row_of_a_process_that_died_is_taken_over_once_its_lease_is_out(
    records: IdempotencyRecords, clock: Clock
) -> None:
    dead = await begun(records)
    clock.now += LEASE_SECONDS - 1
    await records.renew(dead)
    clock.now += LEASE_SECONDS - 1
    with pytest.raises(IdempotencyInProgress):
        await records.begin("name", "file")
    clock.now += 2
    heir = await begun(records)
    with pytest.raises(StoreUnavailable):  # the dead one wakes up, and must not send its last byte
        await records.commit(dead, "digest")
    await records.commit(heir, "digest")
    await records.finish(heir, {"id": "7"})


async def test_a_process_that_died_when_its_last_byte_was_out_leaves_a_doubt(
    records: IdempotencyRecords, clock: Clock
) -> None:
    dead = await begun(records)
    await records.commit(dead, "digest")
    clock.now += LEASE_SECONDS + 1
    assert await records.begin("name", "file") == Earlier("digest", None)
    await records.finish(dead, {"id": "7"})  # it was only slow
    assert await records.begin("name", "file") == Earlier("digest", {"id": "7"})


async def test_of_many_who_come_for_a_row_at_once_one_gets_it(
    records: IdempotencyRecords, clock: Clock
) -> None:
    for _ in ("a fresh row", "the row of one that died"):
        found = await asyncio.gather(
            *(records.begin("name", "file") for _ in range(10)), return_exceptions=True
        )
        assert sum(isinstance(each, Begun) for each in found) == 1
        assert sum(isinstance(each, IdempotencyInProgress) for each in found) == 9
        clock.now += LEASE_SECONDS + 1


async def test_an_answer_is_kept_as_long_as_was_said(records: IdempotencyRecords, clock: Clock) -> None:
    first = await begun(records)
    await records.finish(first, {"id": "7"})
    clock.now += 99
    assert isinstance(await records.begin("name", "file"), Earlier)
    clock.now += 62  # rows are swept once a minute
    await begun(records, "name", "another file")


async def test_a_row_that_is_held_is_not_swept(
    database: Database, records: IdempotencyRecords, clock: Clock
) -> None:
    """However long the upload takes, and however short answers are kept."""
    first = await begun(records)
    for _ in range(9):
        clock.now += LEASE_SECONDS - 1
        await records.renew(first)
    await begun(records, "another name")  # which sweeps
    await records.commit(first, "digest")
    await records.finish(first, {"id": "7"})
    assert await records.begin("name", "file") == Earlier("digest", {"id": "7"})


async def test_an_outcome_is_written_down_though_the_request_is_stopped(
    records: IdempotencyRecords,
) -> None:
    first = await begun(records)

    async def work() -> dict[str, Any]:
        await records.commit(first, "digest")
        asyncio.get_running_loop().call_soon(task.cancel)
        return {"id": "7"}

    task = asyncio.create_task(idempotency.once(records, first, work))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await records.begin("name", "file") == Earlier("digest", {"id": "7"})


async def test_callers_that_are_cancelled_leave_no_lock_behind(
    database: Database, records: IdempotencyRecords, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it happens, and however many: whoever comes next finds the database free, and nothing is left
    half closed, which asyncio and the pool would tell the log.
    """
    claims, chance = DatabaseClaims(database), random.Random(7)

    async def work(number: int) -> None:
        await claims.claim(f"claim {number}", ttl_seconds=60)
        row = await begun(records, f"row {number}")
        await records.commit(row, "digest")
        await records.finish(row, {"id": "7"})

    for _ in range(8):
        tasks = [asyncio.create_task(work(chance.randrange(1 << 60))) for _ in range(12)]
        for task in tasks:
            cancel_again_and_again(task, after_seconds=chance.random() * 0.02)
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(2):
            assert await claims.claim(f"after {chance.random()}", ttl_seconds=60)
    await database.close()
    gc.collect()
    assert caplog.messages == [], "a connection that nobody closed"


def cancel_again_and_again(task: asyncio.Task[None], *, after_seconds: float) -> None:
    """As a client that leaves, a time limit and a shutdown may do, one after the other: what undoes the
    transaction is then cancelled, too.
    """
    for number in range(4):
        asyncio.get_running_loop().call_later(after_seconds + number * 0.0005, task.cancel)


async def test_a_beginning_that_is_cancelled_holds_no_row(records: IdempotencyRecords) -> None:
    for _ in range(20):
        task = asyncio.create_task(records.begin("name", "file"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await records.forget(await begun(records))


async def test_a_server_that_takes_connections_and_never_answers_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        database = Database(f"postgresql+asyncpg://broker@127.0.0.1:{mute.getsockname()[1]}/postgres")
        async with asyncio.timeout(STORE_SECONDS * 2):
            with pytest.raises(StoreUnavailable):
                await database.ping()
        await database.close()
