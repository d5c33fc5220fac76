"""The audit: in it is what was done, it shows whatever was changed in it, and it holds up nobody."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from broker.errors import AuditUnavailable
from broker.observe.events import Event
from broker.state.audit.backlog import MAX_NOTES, MAX_REFUSALS
from broker.state.audit.chain import START, Chain, Head, Link, named, parse_head
from broker.state.audit.log import AuditLog, Filter
from broker.state.audit.row import COLUMNS, MAX_DETAIL_LENGTH, AuditRow, Values, of_event, token_hash
from broker.state.audit.spool import Spool
from broker.state.audit.verification import Verification
from broker.state.audit.writer import Audit
from broker.state.database import Database, audit_spools
from broker.state.database import audit as table
from tests.support.databases import psql
from tests.support.line import Line, line_to
from tests.support.waiting import until

KEY = b"k" * 32
SPOOL_BYTES = 1_000_000
PATIENT_SECONDS = 30.0
RECORD_SECONDS = 0.5
"""Shorter than a broker's own, so that troubles are seen soon."""
"""For a database that works, on a machine that has much to do."""


def row(number: int = 0, **values: Any) -> AuditRow:
    """A row that says which one it is."""
    return AuditRow(**{"action": "upload", "subject": f"user-{number}", "bytes": number, **values})


@pytest.fixture(scope="module")
def reused(postgresql: str) -> str:
    """A database that the tests of this file empty for each other: to make one takes a while."""
    return _fresh_database(postgresql)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where an empty database is."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{folder / 'data' / 'broker.db'}"
    address: str = request.getfixturevalue("reused")
    return address


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    await database.migrate()
    if not database.is_sqlite:
        with tampering(database) as run:
            run("TRUNCATE audit, audit_head, audit_spools")
            run(f"INSERT INTO audit_head VALUES (1, 0, '{START.hash}', '')")
    yield database
    await database.close()


def _fresh_database(server: str) -> str:
    name = f"test_{os.urandom(4).hex()}"
    subprocess.run([*psql(server), "-c", f"CREATE DATABASE {name}"], check=True, capture_output=True)
    return server.removesuffix("postgres") + name


@pytest.fixture
def log(database: Database) -> AuditLog:
    return AuditLog(database, Chain(KEY))


@asynccontextmanager
async def written_by(
    log: AuditLog, folder: Path, *, spool_bytes: int = SPOOL_BYTES, record_seconds: float = PATIENT_SECONDS
) -> AsyncIterator[Audit]:
    audit = Audit(log, folder, spool_bytes=spool_bytes, record_seconds=record_seconds)
    await audit.open()
    try:
        yield audit
    finally:
        await audit.close()


@pytest.fixture
async def audit(log: AuditLog, folder: Path) -> AsyncIterator[Audit]:
    async with written_by(log, folder) as audit:
        yield audit


async def verified(log: AuditLog, known: Head | None = None) -> Verification:
    found = await log.found()
    verification = Verification(log.chain, found.head, found.seal, known)
    async for each in log.every_row(found.last_seq):
        verification.row(each)
    verification.end()
    return verification


async def findings(log: AuditLog, known: Head | None = None) -> list[str]:
    return [f"{each.kind} {each.first}-{each.last}" for each in (await verified(log, known)).findings]


async def rows_of(log: AuditLog) -> list[Mapping[str, Any]]:
    return [each async for each in log.matching(Filter())]


async def numbers(log: AuditLog, action: str = "upload") -> list[int]:
    """Which rows there are, but for those below 0, whose writers do not care."""
    return [each["bytes"] for each in await rows_of(log) if each["action"] == action and each["bytes"] >= 0]


def spools(folder: Path) -> list[Path]:
    return sorted(folder.glob("audit-spool-*.jsonl"))


# --- what is in a row -----------------------------------------------------------------------------------


async def test_a_row_is_read_as_it_was_written(log: AuditLog) -> None:
    whole = AuditRow(
        action="token.mint",
        at=1_790_000_000.123456,
        result="ok",
        caller="secret_key",
        key_id="key_1",
        key_hint="cub_sk_abcd…wxyz",
        subject="用户 42",
        token=token_hash("the jti"),
        client_ip="2001:db8::1",
        origin="https://app.example.com",
        route="proxy",
        bytes=2**40,
        file_id="7",
        request_id="r",
        logid="l",
        status=200,
        method="POST",
        path="/token",
        detail={"reason": "sensitive", "uses": 1},
    )
    await log.write(whole, AuditRow(action="refusal", at=5, result="token_used"))
    first, second = await rows_of(log)
    assert [first[name] for name in COLUMNS] == [*whole.values()]
    assert first["detail"] == '{"reason":"sensitive","uses":1}'
    assert (second["seq"], second["at"], second["subject"], second["detail"]) == (2, 5.0, None, None)
    assert (await verified(log)).is_whole


SECRET = "cub_sk_" + "S3cr3t" * 8
STRANGE = [
    SECRET,
    f"before {SECRET} after",
    f"\x00{SECRET}",
    f"_{SECRET}",
    "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln",
    "pat_" + "x" * 60,
    "a\nb\r\x00\x1b[31m\x7f",
    "one\x7f",
    "\udc80half",
    "\u202eright to left",
    "x" * 100_000,
    "\x00" * 100_000,
    SECRET * 1000,
    "'; DROP TABLE audit; --",
    "",
]


async def test_no_secret_and_no_control_character_enters_a_row(log: AuditLog) -> None:
    """Whatever field it comes in; and the row can be written, and is found whole."""
    names = [name for name in COLUMNS if name not in ("action", "at", "bytes", "status", "detail")]
    for text in STRANGE:
        texts: dict[str, Any] = dict.fromkeys(names, text)
        await log.write(AuditRow(action="refusal", **texts, detail={"said": text, text: [text]}))
    found = await rows_of(log)
    assert len(found) == len(STRANGE)
    for name, value in ((name, value) for each in found for name, value in each.items()):
        if isinstance(value, str):
            assert value.isprintable(), name
            assert "S3cr3t" not in value, name
            assert "pat_x" not in value, name
            assert "c2ln" not in value, name
            assert len(value) <= (getattr(table.c[name].type, "length", None) or MAX_DETAIL_LENGTH)
    assert (await verified(log)).is_whole


async def test_a_number_that_is_too_large_is_written_as_large_as_can_be(log: AuditLog) -> None:
    given: list[dict[str, Any]] = [
        {"bytes": 2**70},
        {"bytes": -(2**70)},
        {"status": 2**40},
        {"at": 1e300},
        {"at": -0.1},
        {"at": 5},
    ]
    await log.write(*(row(**numbers) for numbers in given))
    assert (await verified(log)).is_whole


@pytest.mark.parametrize("values", [{"action": "joke"}, {"at": float("nan")}, {"at": float("inf")}], ids=str)
async def test_what_is_no_row_is_not_written(audit: Audit, log: AuditLog, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no "):
        await audit.record(row(**values))
    audit.note(row(**values))  # tells the log, and nobody else
    await audit.record(row())
    assert len(await rows_of(log)) == 1


EVENT = {
    "method": "POST",
    "path": "/proxy/upload",
    "client_ip": "203.0.113.7",
    "request_id": "r",
    "status": 200,
}


@pytest.mark.parametrize(
    ("known", "action", "expected"),
    [
        ({"path": "/"}, None, None),
        (
            {
                "caller": "upload_token",
                "token_id": "jti",
                "bytes_received": 7,
                "file_id": "1",
                "route": "proxy",
            },
            "upload",
            {"action": "upload", "result": "ok", "token": token_hash("jti"), "bytes": 7, "file_id": "1"},
        ),
        (
            {"code": "token_used", "status": 401, "token_id": "jti"},
            "upload",
            {
                "action": "refusal",
                "result": "token_used",
                "path": "/proxy/upload",
                "detail": {"asked": "upload"},
            },
        ),
        (
            {"code": "outcome_unknown", "status": 504, "sent": "all", "bytes_received": 7},
            "upload",
            {
                "action": "upload",
                "result": "outcome_unknown",
                "bytes": 7,
                "path": None,
                "detail": {"sent": "all"},
            },
        ),
        (
            {"code": "client_left", "status": None, "sent": "nothing", "bytes_received": 3},
            "upload",
            {"action": "refusal", "result": "client_left", "bytes": 3, "status": None},
        ),
        (
            {"code": "invalid_credential", "status": 401},
            None,
            {"action": "refusal", "result": "invalid_credential", "method": "POST", "detail": None},
        ),
        ({"status": 405}, None, {"action": "refusal", "result": "status_405"}),
        ({"bytes_declared": 5}, "token.mint", {"action": "token.mint", "bytes": 5, "method": None}),
    ],
)
def test_a_request_leaves_a_row(known: dict[str, Any], action: Any, expected: dict[str, Any] | None) -> None:
    made = of_event(Event(**{**EVENT, "key_hint": "hint", **known}), action)
    if expected is None:
        assert made is None
        return
    assert made is not None
    assert {name: getattr(made, name) for name in expected} == expected
    assert (made.key_hint, made.client_ip, made.request_id) == ("hint", "203.0.113.7", "r")


# --- the chain ------------------------------------------------------------------------------------------


def test_a_head_is_read_as_it_is_written() -> None:
    head = Head(7, "ab" * 32)
    assert parse_head(str(head)) == head
    for text in (
        "",
        "7",
        "7:",
        f"x:{'ab' * 32}",
        f"7:{'AB' * 32}",
        f"-7:{'ab' * 32}",
        f"{'7' * 30}:{'ab' * 32}",
    ):
        with pytest.raises(ValueError, match="SEQ:HASH"):
            parse_head(text)


async def test_rows_of_several_writers_make_one_chain(database: Database, log: AuditLog) -> None:
    other = AuditLog(database, Chain(KEY))
    for number in range(0, 20, 2):
        await log.write(row(number))
        await other.write(row(number + 1))
    found = await verified(log)
    assert (found.is_whole, found.rows) == (True, 20)
    assert str(found.last) == str(other.head)
    assert await numbers(log) == [*range(20)]


async def test_a_row_in_a_transaction_is_there_if_the_rest_is(database: Database, log: AuditLog) -> None:
    await log.write(row(0))
    async with database.transaction() as connection:
        await log.append_within(connection, row(1))

    async def fail() -> None:
        async with database.transaction() as connection:
            await log.append_within(connection, row(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await log.write(row(3))
    assert await numbers(log) == [0, 1, 3]
    assert (await verified(log)).is_whole


@contextmanager
def tampering(database: Database) -> Iterator[Callable[[str], Any]]:
    """Whoever owns the database can switch its triggers off."""
    url = database.url.set(drivername="sqlite" if database.is_sqlite else "postgresql+asyncpg")
    assert url.database
    if database.is_sqlite:
        connection = sqlite3.connect(url.database, isolation_level=None)
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        try:
            yield lambda statement: connection.execute(statement).fetchall()
        finally:
            connection.close()
        return

    def run(statement: str) -> None:
        command = [*psql(database.url.render_as_string(hide_password=False)), "-v", "ON_ERROR_STOP=1"]
        subprocess.run(
            [*command, "-c", "SET session_replication_role = replica", "-c", statement],
            check=True,
            capture_output=True,
        )

    yield run


COPIED = ", ".join(column.name for column in table.columns if column.name != "seq")
RENUMBERED_UP = [
    "UPDATE audit SET seq = -seq - 1 WHERE seq >= 5",
    "UPDATE audit SET seq = -seq WHERE seq < 0",
]
RENUMBERED_DOWN = [
    "UPDATE audit SET seq = -seq WHERE seq > 5",
    "UPDATE audit SET seq = -seq - 1 WHERE seq < 0",
]
TEN_ROWS = 10


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        pytest.param(["UPDATE audit SET subject = 'another' WHERE seq = 5"], ["changed 5-5"], id="changed"),
        pytest.param(
            ["UPDATE audit SET bytes = NULL WHERE seq IN (5, 6, 8)"],
            ["changed 5-6", "changed 8-8"],
            id="several",
        ),
        pytest.param(["UPDATE audit SET at = at + 0.001 WHERE seq = 1"], ["changed 1-1"], id="a-millisecond"),
        pytest.param(["UPDATE audit SET detail = '' WHERE seq = 10"], ["changed 10-10"], id="empty-for-none"),
        pytest.param(["DELETE FROM audit WHERE seq = 1"], ["missing 1-1"], id="first"),
        pytest.param(["DELETE FROM audit WHERE seq = 5"], ["missing 5-5"], id="middle"),
        pytest.param(["DELETE FROM audit WHERE seq = 10"], ["missing 10-10"], id="last"),
        pytest.param(["DELETE FROM audit WHERE seq > 3"], ["missing 4-10"], id="end"),
        pytest.param(["DELETE FROM audit"], ["missing 1-10"], id="all"),
        pytest.param(
            [
                "DELETE FROM audit WHERE seq = 10",
                "UPDATE audit_head SET seq = 9, hash = (SELECT hash FROM audit WHERE seq = 9)",
            ],
            ["head 9-9"],
            id="last-and-head-set-back",
        ),
        pytest.param(["DELETE FROM audit_head"], ["head 10-10"], id="head-gone"),
        pytest.param(["UPDATE audit_head SET seal = hash"], ["head 10-10"], id="wrong-seal"),
        pytest.param(["DELETE FROM audit", "DELETE FROM audit_head"], ["head 0-0"], id="all-and-head"),
        pytest.param(
            [
                "UPDATE audit SET seq = 99 WHERE seq = 3",
                "UPDATE audit SET seq = 3 WHERE seq = 7",
                "UPDATE audit SET seq = 7 WHERE seq = 99",
            ],
            ["changed 3-3", "changed 7-7"],
            id="swapped",
        ),
        pytest.param(
            [f"INSERT INTO audit (seq, {COPIED}) SELECT 11, {COPIED} FROM audit WHERE seq = 10"],
            ["added 11-11"],
            id="added-at-the-end",
        ),
        pytest.param(
            [f"INSERT INTO audit (seq, {COPIED}) SELECT 0, {COPIED} FROM audit WHERE seq = 1"],
            ["added 0-0"],
            id="added-before",
        ),
        pytest.param(
            [f"INSERT INTO audit (seq, {COPIED}) SELECT -7, {COPIED} FROM audit WHERE seq = 1"],
            ["added -7--7"],
            id="added-far-before",
        ),
        pytest.param(
            [
                *RENUMBERED_UP,
                f"INSERT INTO audit (seq, {COPIED}) SELECT 5, {COPIED} FROM audit WHERE seq = 4",
            ],
            ["added 5-5", "moved 6-11"],
            id="inserted",
        ),
        pytest.param(
            ["DELETE FROM audit WHERE seq = 5", *RENUMBERED_DOWN],
            ["missing 5-5", "moved 5-9", "missing 10-10"],
            id="taken-out",
        ),
        pytest.param(["UPDATE audit SET hash = previous_hash WHERE seq = 5"], ["changed 5-5"], id="hash"),
        pytest.param(
            ["UPDATE audit SET previous_hash = hash WHERE seq = 5"], ["changed 5-5"], id="previous-hash"
        ),
    ],
)
async def test_whatever_is_done_to_the_rows_is_found(
    database: Database, log: AuditLog, statements: list[str], expected: list[str]
) -> None:
    await log.write(*map(row, range(TEN_ROWS)))
    assert await findings(log) == []
    with tampering(database) as run:
        for statement in statements:
            run(statement)
    assert await findings(log) == expected


async def test_the_hash_covers_every_column(database: Database, log: AuditLog) -> None:
    names = [*COLUMNS, "previous_hash"]
    await log.write(*map(row, range(2 * len(names))))
    with tampering(database) as run:
        for place, name in enumerate(names, 1):
            value = "7" if name in ("at", "bytes", "status") else "'x'"
            run(f"UPDATE audit SET {name} = {value} WHERE seq = {2 * place}")
    assert await findings(log) == [f"changed {seq}-{seq}" for seq in range(2, 2 * len(names) + 1, 2)]


async def test_hashes_made_without_the_key_do_not_fit(database: Database, log: AuditLog) -> None:
    """Neither plain ones nor those of another key, though each follows on the one before."""
    await log.write(*map(row, range(TEN_ROWS)))
    records = [each for each in await rows_of(log) if each["seq"] >= 5]
    forger, head = Chain(b"another key".ljust(32)), Head(4, records[0]["previous_hash"])
    links, new = forger.extended(head, [tuple(each[name] for name in COLUMNS) for each in records])
    with tampering(database) as run:
        for each in named(links):
            hashes = f"hash = '{each['hash']}', previous_hash = '{each['previous_hash']}'"
            run(f"UPDATE audit SET {hashes} WHERE seq = {each['seq']}")
        run(f"UPDATE audit_head SET hash = '{new.hash}', seal = '{forger.seal_of(new)}'")
    assert await findings(log) == ["head 10-10", "changed 5-10"]
    found = await verified(AuditLog(database, Chain(b"lost".ljust(32))))
    assert found.fits_nowhere


async def test_rows_of_a_copy_do_not_follow_on_others(database: Database, log: AuditLog) -> None:
    """Each row fits its own hash; but the end of one history was put behind the beginning of another."""
    await log.write(*map(row, range(5)))
    other, _ = log.chain.extended(Head(4, "0" * 64), [row(9).values()])
    with tampering(database) as run:
        run("DELETE FROM audit WHERE seq = 5")
    async with database.engine.begin() as connection:
        await connection.execute(sa.insert(table), named(other))
    assert await findings(log) == ["unlinked 5-5", "head 5-5"]


async def test_a_copy_from_before_is_found_only_with_a_head_that_was_noted(
    database: Database, log: AuditLog
) -> None:
    """Of a database that is put back as it was, nothing inside tells."""
    await log.write(*map(row, range(5)))
    early = log.head
    with tampering(database) as run:
        run("CREATE TABLE copy AS SELECT * FROM audit_head")
        await log.write(*map(row, range(5, 8)))
        late = log.head
        assert await findings(log, early) == []
        assert await findings(log, late) == []
        run("DELETE FROM audit WHERE seq > 5")
        run("DELETE FROM audit_head")
        run("INSERT INTO audit_head SELECT * FROM copy")
        run("DROP TABLE copy")
    assert await findings(log) == []
    assert await findings(log, early) == []
    assert await findings(log, late) == ["missing 6-8"]
    assert await findings(log, Head(3, "ab" * 32)) == ["changed 3-3"]
    await log.write(row(8))  # the writer remembers how far it was, and says so once
    await log.write(row(9))
    await log.write(row(10))
    assert await findings(log) == ["doubt 6-6"]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE audit_head SET seq = 1"], ["doubt 6-6", "doubt 7-7", "doubt 8-8"]),
        (["DELETE FROM audit_head"], ["doubt 6-6"]),
        (["UPDATE audit_head SET seal = ''"], ["doubt 6-6"]),
        (["DELETE FROM audit WHERE seq > 3", "UPDATE audit_head SET seq = 3"], ["doubt 4-4", "doubt 5-5"]),
        (
            [f"INSERT INTO audit (seq, {COPIED}) SELECT 6, {COPIED} FROM audit WHERE seq = 5"],
            ["changed 6-6", "doubt 7-7"],
        ),
    ],
)
async def test_the_writer_goes_on_and_writes_down_what_it_doubts(
    database: Database, log: AuditLog, statements: list[str], expected: list[str]
) -> None:
    """By the time that somebody verifies, the head is right again."""
    await log.write(*map(row, range(5)))
    with tampering(database) as run:
        for statement in statements:
            run(statement)
    await log.write(row(5))
    await log.write(row(6))
    await AuditLog(database, Chain(KEY)).write(row(7))
    assert await findings(log) == expected
    assert (await numbers(log))[-3:] == [5, 6, 7]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET subject = 'x'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM audit_head",
        "UPDATE audit_head SET seq = 1",
        f"INSERT INTO audit (seq, {COPIED}) SELECT 2, {COPIED} FROM audit WHERE seq = 1",
    ],
)
async def test_the_database_itself_refuses_to_change_a_row(
    database: Database, log: AuditLog, statement: str
) -> None:
    await log.write(*map(row, range(3)))
    with pytest.raises(DBAPIError):
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql(statement)
    for only_there in (
        ("TRUNCATE audit",) if not database.is_sqlite else (statement.replace("INSERT", "INSERT OR REPLACE"),)
    ):
        with pytest.raises(DBAPIError):
            async with database.engine.begin() as connection:
                await connection.exec_driver_sql(only_there)
    assert (await verified(log)).rows == 3
    assert await findings(log) == []


WRITE_200_ROWS = """
import asyncio, sys
from pathlib import Path
from broker.observe import logs
from broker.state.audit.chain import Chain
from broker.state.audit.log import AuditLog
from broker.state.audit.row import AuditRow
from broker.state.audit.writer import Audit
from broker.state.database import Database

async def main():
    logs.configure("json", "warning")
    database = Database(sys.argv[1])
    log = AuditLog(database, Chain(b"k" * 32))
    audit = Audit(log, Path(sys.argv[2]), spool_bytes=1_000_000, record_seconds=30)
    await audit.open()
    print("ready", flush=True)
    sys.stdin.readline()
    async def work(number):
        for step in range(25):
            mine = AuditRow(action="upload", subject=f"{sys.argv[3]} {number}", bytes=step)
            if number % 2:
                audit.note(mine)
                await asyncio.sleep(0.005)
            else:
                await audit.record(mine)
    await asyncio.gather(*(work(number) for number in range(8)))
    await audit.close()
    await database.close()

asyncio.run(main())
"""


async def test_four_processes_that_write_at_once_make_one_chain(
    url: str, database: Database, log: AuditLog, folder: Path
) -> None:
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    arguments = (sys.executable, "-c", WRITE_200_ROWS, url, str(folder))
    processes = [await asyncio.create_subprocess_exec(*arguments, str(i), **pipes) for i in range(4)]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    for process, (_, told) in zip(
        processes, await asyncio.gather(*(each.communicate(b"go\n") for each in processes)), strict=True
    ):
        assert process.returncode == 0, told.decode()[-2000:]
    found = await verified(log)
    assert (found.findings, found.rows) == ([], 4 * 200)
    of_each: dict[str, list[int]] = {}
    for each in await rows_of(log):
        of_each.setdefault(each["subject"], []).append(each["bytes"])
    assert [*of_each.values()] == [[*range(25)]] * 32, "each row once, each writer's in their order"


# --- the writer -----------------------------------------------------------------------------------------


async def test_what_was_recorded_is_there_and_what_was_noted_will_be(audit: Audit, log: AuditLog) -> None:
    audit.note(row(0))
    await audit.record(row(1))
    assert 1 in await numbers(log)
    await asyncio.gather(*(audit.record(row(number)) for number in range(2, 300)))
    assert sorted(await numbers(log)) == [*range(300)]
    audit.note(row(300))
    await until(lambda: audit.waiting == 0)
    await audit.ping()
    assert (await verified(log)).is_whole


async def test_many_who_record_at_once_share_transactions(audit: Audit, database: Database) -> None:
    transactions = 0

    def count(_: Any) -> None:
        nonlocal transactions
        transactions += 1

    sa.event.listen(database.engine.sync_engine, "commit", count)
    await asyncio.gather(*(audit.record(row(number)) for number in range(256)))
    assert transactions < 16


async def test_whoever_leaves_while_a_row_is_written_is_in_nobody_s_way(audit: Audit, log: AuditLog) -> None:
    for wait in (0, 0, 0.001, 0.005):
        tasks = [asyncio.create_task(audit.record(row(number))) for number in range(20)]
        await asyncio.sleep(wait)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert {*range(1, 20, 2)} <= {*await numbers(log)}
    await audit.record(row(99))
    assert (await verified(log)).is_whole


async def test_the_event_loop_is_never_held_up(audit: Audit, log: AuditLog) -> None:
    """Nothing that the audit does takes longer at a stretch than a request may notice."""
    longest, is_over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not is_over:
            before = time.thread_time()  # what others do on this machine does not count
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    ticking = asyncio.create_task(tick())
    for number in range(3000):
        audit.note(row(number))
        if number % 100 == 0:
            await audit.record(row(number))
    await until(lambda: audit.waiting == 0)
    is_over = True
    await ticking
    assert longest < 0.05
    assert (await verified(log)).is_whole


# --- when the database takes no rows --------------------------------------------------------------------


class Troubles:
    """Ways in which a database takes no rows. ``direct`` is the same without the line."""

    def __init__(self, database: Database, direct: Database | None = None, line: Line | None = None) -> None:
        self.database = database
        self.direct = direct or database
        self.line = line
        self._end: Callable[[], Any] = lambda: None

    async def begin(self, kind: str) -> None:
        self._end = await getattr(self, f"_{kind.replace('-', '_')}")()

    async def end(self) -> None:
        ended = self._end()
        if asyncio.iscoroutine(ended):
            await ended

    async def _locked(self) -> Callable[[], Any]:
        if self.database.is_sqlite:
            lock = sqlite3.connect(str(self.database.url.database), isolation_level=None)
            lock.execute("BEGIN EXCLUSIVE")
            return lock.close
        connection = await self.direct.engine.connect()
        await connection.exec_driver_sql("LOCK TABLE audit_head IN ACCESS EXCLUSIVE MODE")
        return connection.close

    async def _renamed(self) -> Callable[[], Any]:
        await self._run("ALTER TABLE audit RENAME TO hidden")
        return lambda: self._run("ALTER TABLE hidden RENAME TO audit")

    async def _read_only(self) -> Callable[[], Any]:
        if self.database.is_sqlite:
            return self._with_pragma("query_only = ON", "query_only = OFF")
        name = self.direct.url.database
        with tampering(self.direct) as run:
            run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            run(LEAVE)

        def end() -> None:
            with tampering(self.direct) as run:
                run(f"SET transaction_read_only = off; ALTER DATABASE {name} RESET ALL")
                run(LEAVE)

        return end

    async def _full(self) -> Callable[[], Any]:
        lock = sqlite3.connect(str(self.database.url.database))
        (pages,) = lock.execute("PRAGMA page_count").fetchone()
        lock.close()
        return self._with_pragma(f"max_page_count = {pages}", "max_page_count = 1000000")

    async def _cut(self) -> Callable[[], Any]:
        assert self.line
        self.line.breaks("cut")
        return self.line.mend

    async def _mute(self) -> Callable[[], Any]:
        assert self.line
        self.line.breaks("mute")
        return self.line.mend

    async def _run(self, statement: str) -> None:
        async with self.direct.engine.begin() as connection:
            await connection.exec_driver_sql(statement)

    def _with_pragma(self, begin: str, end: str) -> Callable[[], Any]:
        """For every connection from its next use on."""
        pragma = begin

        def tune(connection: Any, *_: Any) -> None:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

        def mend() -> None:
            nonlocal pragma
            pragma = end

        sa.event.listen(self.database.engine.sync_engine, "checkout", tune)
        return mend


LEAVE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.fixture
async def troubles(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Troubles]:
    """A database of the kind that the test names, PostgreSQL behind a line of its own."""
    if request.param == "sqlite":
        database = Database(f"sqlite+aiosqlite:///{folder / 'data' / 'broker.db'}")
        await database.migrate()
        yield Troubles(database)
        await database.close()
        return
    direct = Database(_fresh_database(request.getfixturevalue("postgresql")))
    await direct.migrate()
    assert direct.url.port
    async with line_to(direct.url.port) as line:
        database = Database(direct.url.set(port=line.port).render_as_string(hide_password=False))
        yield Troubles(database, direct, line)
        line.breaks("cut")
        await database.close()
    await direct.close()


ALL_TROUBLES = [
    ("sqlite", "locked"),
    ("sqlite", "renamed"),
    ("sqlite", "read-only"),
    ("sqlite", "full"),
    ("postgresql", "locked"),
    ("postgresql", "renamed"),
    ("postgresql", "read-only"),
    ("postgresql", "cut"),
    ("postgresql", "mute"),
]


async def refused_within(seconds: float, audit: Audit) -> None:
    before = time.monotonic()
    with pytest.raises(AuditUnavailable):
        await audit.record(row(-1))
    assert time.monotonic() - before < seconds


@pytest.mark.parametrize(("troubles", "kind"), ALL_TROUBLES, indirect=["troubles"])
async def test_while_no_row_can_be_written_who_must_not_act_unseen_is_refused_and_the_rest_is_spooled(
    troubles: Troubles, kind: str, folder: Path
) -> None:
    """And once it can, what was spooled is written in its order, once."""
    log = AuditLog(troubles.database, Chain(KEY))
    async with written_by(log, folder, record_seconds=RECORD_SECONDS) as audit:
        audit.note(row(0))
        await until(lambda: audit.waiting == 0 and not spools(folder))
        await troubles.begin(kind)
        for number in range(1, 20):
            audit.note(row(number))
        while await took(audit):  # a full database may have room for a row yet
            pass
        await refused_within(0.1, audit)
        with pytest.raises(AuditUnavailable):
            await audit.ping()
        for number in range(20, 40):
            audit.note(row(number))
        await until(lambda: audit.waiting == 0)
        (file,) = spools(folder)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert audit.spooled_bytes == file.stat().st_size
        await troubles.end()
        await until(lambda: took(audit))
        await audit.ping()
        audit.note(row(40))
        await until(lambda: audit.waiting == 0 and not spools(folder))
        assert await numbers(log) == [*range(41)]
        assert await findings(log) == []


async def took(audit: Audit) -> bool:
    """Whether a row that somebody waits for was written; it is known within two seconds."""
    async with asyncio.timeout(2):
        try:
            await audit.record(row(-1, detail={"filling": "x" * 900}))
        except AuditUnavailable:
            return False
    return True


class ChainWithAWitness(Chain):
    """Tells when rows are about to be handed over, once."""

    tell: Callable[[], object] | None = None

    def extended(self, head: Head, rows: Iterable[Values]) -> tuple[list[Link], Head]:
        tell, self.tell = self.tell, None
        if tell is not None:
            tell()
        return super().extended(head, rows)


@pytest.mark.parametrize("troubles", ["postgresql"], indirect=True)
@pytest.mark.parametrize("weather", ["answers lost", "mute"])
async def test_rows_of_which_nobody_knows_whether_they_were_written_are_there_once(
    troubles: Troubles, weather: Any, folder: Path
) -> None:
    """The line breaks when they are handed over: one time they are written, the other time they are not."""
    chain, line = ChainWithAWitness(KEY), troubles.line
    log = AuditLog(troubles.database, chain)
    assert line
    async with written_by(log, folder, record_seconds=RECORD_SECONDS) as audit:
        audit.note(row(0))
        await until(lambda: audit.waiting == 0 and not spools(folder))

        chain.tell = functools.partial(line.breaks, weather)
        for number in range(1, 20):
            audit.note(row(number))
        await until(lambda: line.weather == weather)
        await until(lambda: audit.spooled_bytes > 0)
        for number in range(20, 40):
            audit.note(row(number))
        await until(lambda: audit.waiting == 0)
        (file,) = spools(folder)
        assert b'"unless"' in file.read_bytes().splitlines()[0]
        line.mend()
        await until(lambda: not spools(folder))
        assert await numbers(log) == [*range(40)]
        assert await findings(log) == []


async def test_a_broker_that_starts_without_its_audit_opens_when_it_comes_back(
    database: Database, log: AuditLog, folder: Path
) -> None:
    troubles = Troubles(database)
    await troubles.begin("renamed")
    async with written_by(log, folder, record_seconds=RECORD_SECONDS) as audit:
        await refused_within(0.1, audit)
        await troubles.end()
        await until(lambda: took(audit))


# --- the spool ------------------------------------------------------------------------------------------


async def test_a_spool_keeps_its_bound_and_what_is_lost_is_told(
    database: Database, log: AuditLog, folder: Path
) -> None:
    """What fits neither into the file nor into memory is counted."""
    troubles = Troubles(database)
    many = MAX_NOTES + 3000
    async with written_by(log, folder, spool_bytes=100_000, record_seconds=RECORD_SECONDS) as audit:
        await troubles.begin("locked")
        assert not await took(audit)
        for number in range(many):
            audit.note(row(number))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: audit.spooled_bytes > 90_000)
        assert audit.spooled_bytes < 105_000
        await troubles.end()
        await until(lambda: audit.waiting == 0 and not spools(folder), 60)
        kept = await numbers(log)
        gaps = [each for each in await rows_of(log) if each["action"] == "audit.gap"]
        lost = sum(json.loads(each["detail"])["rows"] for each in gaps if each["result"] == "rows_lost")
        assert len({*kept}) == len(kept) < many
        assert len(kept) + lost == many
        assert "spool_full" in {each["result"] for each in gaps}
        assert await findings(log) == []


async def test_a_flood_of_refusals_costs_no_memory_and_no_upload_its_row(
    database: Database, log: AuditLog, folder: Path
) -> None:
    troubles = Troubles(database)
    refusals, uploads = 20_000, 50
    async with written_by(log, folder, spool_bytes=50_000, record_seconds=RECORD_SECONDS) as audit:
        await troubles.begin("locked")
        assert not await took(audit)
        for number in range(refusals):
            audit.note(row(number, action="refusal", result="invalid_credential"))
            if number % (refusals // uploads) == 0:
                audit.note(row(number // (refusals // uploads)))
            if number % 1000 == 0:
                await asyncio.sleep(0)
        assert audit.waiting <= MAX_REFUSALS + uploads
        await troubles.end()
        await until(lambda: audit.waiting == 0 and not spools(folder), 60)
        assert await numbers(log) == [*range(uploads)]
        gaps = [json.loads(each["detail"]) for each in await rows_of(log) if each["result"] == "rows_lost"]
        assert len(await numbers(log, "refusal")) + sum(each["refusals"] for each in gaps) == refusals
        assert sum(each["rows"] for each in gaps) == 0


async def test_without_a_folder_to_spool_to_rows_wait_in_memory(
    database: Database, log: AuditLog, folder: Path
) -> None:
    troubles = Troubles(database)
    async with written_by(log, folder / "not there", record_seconds=RECORD_SECONDS) as audit:
        await troubles.begin("locked")
        assert not await took(audit)
        audit.note(row(1))
        await refused_within(0.1, audit)
        await troubles.end()
        await until(lambda: audit.waiting == 0)
        assert await numbers(log) == [1]


AN_AUDIT = """
import asyncio, sys
from pathlib import Path
from broker.observe import logs
from broker.state.audit.chain import Chain
from broker.state.audit.log import AuditLog
from broker.state.audit.row import AuditRow
from broker.state.audit.writer import Audit
from broker.state.database import Database

async def main():
    logs.configure("json", "error")
    audit = Audit(AuditLog(Database(sys.argv[1]), Chain(b"k" * 32)), Path(sys.argv[2]), spool_bytes=1_000_000)
    await audit.open()
    print("open", flush=True)
    await work(audit)
    await asyncio.sleep(60)

async def work(audit):
    pass
"""
REPLAY = AN_AUDIT + "asyncio.run(main())"
SPOOL_50_ROWS = (
    AN_AUDIT
    + """
async def work(audit):
    sys.stdin.readline()
    for number in range(50):
        audit.note(AuditRow(action="upload", bytes=number))
        await asyncio.sleep(0.01)
    while audit.waiting or not audit.spooled_bytes:
        await asyncio.sleep(0.01)
    print("spooled", flush=True)

asyncio.run(main())
"""
)


async def test_what_a_killed_process_spooled_is_replayed_by_the_next_once(
    url: str, database: Database, log: AuditLog, folder: Path
) -> None:
    """Also when several start at once."""
    troubles = Troubles(database)
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout"), asyncio.subprocess.PIPE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SPOOL_50_ROWS, url, str(folder), **pipes
    )
    assert process.stdin
    assert process.stdout
    assert await process.stdout.readline() == b"open\n"
    await troubles.begin("locked")
    process.stdin.write(b"go\n")
    assert await process.stdout.readline() == b"spooled\n"
    process.kill()
    await process.communicate()
    await troubles.end()
    assert spools(folder)
    others = [Audit(AuditLog(database, Chain(KEY)), folder, spool_bytes=SPOOL_BYTES) for _ in range(3)]
    await asyncio.gather(*(other.open() for other in others))
    await until(lambda: not spools(folder))
    assert await numbers(log) == [*range(50)]
    await asyncio.gather(*(other.close() for other in others))
    assert await findings(log) == []
    async with database.engine.connect() as connection:
        assert (await connection.execute(sa.select(audit_spools))).all() == []


async def test_a_replay_that_is_killed_again_and_again_writes_each_row_once(
    url: str, database: Database, log: AuditLog, folder: Path
) -> None:
    lines = 60
    spool = Spool.make(folder)
    for line in range(lines):
        assert spool.add([row(3 * line + each).values() for each in range(3)], max_bytes=SPOOL_BYTES) == 3
    spool.close()
    kills = 0
    while spools(folder):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", REPLAY, url, str(folder), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        assert await process.stdout.readline() == b"open\n"
        await until(functools.partial(is_further, log, len(await rows_of(log)), folder))
        process.kill()
        await process.communicate()
        kills += 1
    assert kills > 1
    assert await numbers(log) == [*range(3 * lines)]
    assert await findings(log) == []


async def is_further(log: AuditLog, rows: int, folder: Path) -> bool:
    return not spools(folder) or len(await rows_of(log)) > rows + 20


TORN = (
    b'{"rows":[{"at":1.0,"action":"upload","by',
    b"\x00\xff\n",
    b'{"rows":[{"at":1.0,"action":"joke"}]}\n',
    b'{"rows":[{"at":1.0,"action":"upload","subject":7}]}\n',
    b'{"rows":[{"at":"now","action":"upload"}]}\n',
    b'{"rows":7}\n',
    b"[]\n",
    b'{"rows":[],"unless":"joke"}\n',
    b"[" * 100_000 + b"\n",
)


async def test_a_line_that_can_t_be_read_is_told_and_keeps_nothing_back(log: AuditLog, folder: Path) -> None:
    for number, torn in enumerate(TORN):
        spool = Spool.make(folder)
        spool.add([row(number).values()], max_bytes=SPOOL_BYTES)
        spool.close()
        with spool.path.open("ab") as file:
            file.write(torn)
    async with written_by(log, folder):
        await until(lambda: not spools(folder))
    assert sorted(await numbers(log)) == [*range(len(TORN))]
    told = [each for each in await rows_of(log) if each["action"] == "audit.gap"]
    assert [each["result"] for each in told] == ["unreadable"] * len(TORN)


async def test_a_row_of_a_version_that_knows_more_is_read_as_far_as_it_is_known(
    log: AuditLog, folder: Path
) -> None:
    spool = Spool.make(folder)
    spool.add([row(1, detail={"a": [1]}).values()], max_bytes=SPOOL_BYTES)
    spool.close()
    text = spool.path.read_text()
    spool.path.write_text(text.replace('"action"', '"mood":"fair","action"'))
    async with written_by(log, folder):
        await until(lambda: not spools(folder))
        (found,) = await rows_of(log)
    assert (found["bytes"], found["detail"]) == (1, '{"a":[1]}')


async def test_a_file_that_is_no_spool_is_not_followed(log: AuditLog, folder: Path) -> None:
    """A link that somebody laid there."""
    precious = folder / "precious"
    precious.write_text("kept")
    link = folder / "audit-spool-1-0.jsonl"
    link.symlink_to(precious)
    async with written_by(log, folder) as audit:
        await audit.record(row(1))
    assert link.is_symlink()
    assert precious.read_text() == "kept"


# --- the end --------------------------------------------------------------------------------------------


async def test_at_the_end_everything_is_written(log: AuditLog, folder: Path) -> None:
    async with written_by(log, folder) as audit:
        for number in range(1000):
            audit.note(row(number))
    assert await numbers(log) == [*range(1000)]
    assert not spools(folder)


async def test_what_can_t_be_written_at_the_end_is_spooled_within_bounds_of_time(
    database: Database, log: AuditLog, folder: Path
) -> None:
    """So is the row of a request that ends when all is over."""
    troubles = Troubles(database)
    async with written_by(log, folder, record_seconds=RECORD_SECONDS) as audit:
        audit.note(row(0))
        await until(lambda: audit.waiting == 0 and not spools(folder))
        await troubles.begin("locked")
        for number in range(1, 300):
            audit.note(row(number))
        waiting = asyncio.create_task(audit.record(row(-1)))
        await asyncio.sleep(0)
        before = time.monotonic()
        await audit.close(1.0)
        assert time.monotonic() - before < 4
        with pytest.raises(AuditUnavailable):
            await waiting
        with pytest.raises(AuditUnavailable):
            await audit.record(row(-1))
    audit.note(row(300))
    await troubles.end()
    assert spools(folder)
    async with written_by(AuditLog(database, Chain(KEY)), folder):
        await until(lambda: not spools(folder))
    assert await numbers(log) == [*range(301)]


async def test_an_audit_that_was_never_opened_spools(log: AuditLog, folder: Path) -> None:
    audit = Audit(log, folder, spool_bytes=SPOOL_BYTES)
    audit.note(row(1))
    with pytest.raises(AuditUnavailable):
        await audit.record(row(2))
    await audit.close()
    async with written_by(log, folder):
        await until(lambda: not spools(folder))
    assert await numbers(log) == [1]
