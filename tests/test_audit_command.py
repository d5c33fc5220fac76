"""``broker audit``: rows for a person, a program or a spreadsheet, and a verdict that is an exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from broker import opening, settings
from broker.settings import Settings
from broker.state.audit.row import AuditRow, token_hash
from broker.state.database import Database
from tests.support.broker_process import COMMAND, clean_environment, run_command

JANUARY, FEBRUARY = 1_798_761_600.0, 1_801_440_000.0
"""2027-01-01 and 2027-02-01, UTC."""
ROWS = (
    AuditRow(
        action="token.mint",
        at=JANUARY,
        caller="secret_key",
        key_id="key_1",
        subject="=HYPERLINK(1)",
        token=token_hash("jti-1"),
        client_ip="203.0.113.7",
        bytes=7,
        request_id="r1",
        detail={"reason": "sensitive"},
    ),
    AuditRow(
        action="upload", at=JANUARY + 60.5, key_id="key_1", token=token_hash("jti-1"), file_id="77", bytes=7
    ),
    AuditRow(action="refusal", at=FEBRUARY, result="token_used", client_ip="203.0.113.8", request_id="r3"),
    AuditRow(action="key.revoke", at=FEBRUARY + 1, key_id="key_2", subject='a "quoted", 标题\nname'),
)


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """Of an operator on a broker's machine."""
    return clean_environment() | {"BROKER_DATA_DIR": str(folder / "data"), "BROKER_LOG_FORMAT": "json"}


@pytest.fixture
async def written(environment: dict[str, str], folder: Path) -> Settings:
    """A broker's data folder, and four rows in its audit."""
    given = settings.Settings(broker_data_dir=folder / "data", _env_file=None)
    database = Database(given.resolved_database_url)
    await database.migrate()
    await opening.audit_log(given, database).write(*ROWS)
    await database.close()
    return given


def listed(environment: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    done = run_command("audit", "list", "--json", *arguments, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [1, 2, 3, 4]),
        (("--limit", "2"), [3, 4]),
        (("--limit", "0"), [1, 2, 3, 4]),
        (("--action", "upload"), [2]),
        (("--result", "token_used"), [3]),
        (("--key", "key_1"), [1, 2]),
        (("--key", "key_1", "--limit", "1"), [2]),
        (("--subject", "=HYPERLINK(1)"), [1]),
        (("--token", "jti-1"), [1, 2]),
        (("--token", token_hash("jti-1")), [1, 2]),
        (("--file-id", "77"), [2]),
        (("--request-id", "r3"), [3]),
        (("--ip", "203.0.113.8"), [3]),
        (("--since", "2027-02-01"), [3, 4]),
        (("--since", "2027-02-01T00:00:01Z"), [4]),
        (("--until", "2027-02-01T01:00:00+01:00"), [1, 2]),
        (("--since", "1798761600.5", "--until", "1801440000.5"), [2, 3]),
        (("--since", "2027-02-01", "--limit", "1"), [4]),
        (("--since", "2028-01-01"), []),
        (("--action", "nothing"), []),
    ],
)
def test_a_list_has_the_rows_that_were_asked_for_the_newest_last(
    environment: dict[str, str], written: Settings, arguments: tuple[str, ...], expected: list[int]
) -> None:
    assert [row["seq"] for row in listed(environment, *arguments)] == expected


def test_json_has_everything(environment: dict[str, str], written: Settings) -> None:
    first, *_, last = listed(environment)
    assert first["time"] == "2027-01-01T00:00:00.000Z"
    assert (first["at"], first["detail"], first["file_id"]) == (JANUARY, {"reason": "sensitive"}, None)
    assert last["subject"] == 'a "quoted", 标题\\nname'
    assert last["previous_hash"] != last["hash"]


def test_csv_opens_in_a_spreadsheet_and_runs_nothing(environment: dict[str, str], written: Settings) -> None:
    """A subject that looks like a formula gets an apostrophe before it (CSV injection)."""
    done = run_command("audit", "list", "--csv", environment=environment)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["seq"] for row in rows] == ["1", "2", "3", "4"]
    assert rows[0]["subject"] == "'=HYPERLINK(1)"
    assert rows[0]["detail"] == '{"reason":"sensitive"}'
    assert rows[3]["subject"] == 'a "quoted", 标题\\nname'


def test_a_table_shows_ids_whole(environment: dict[str, str], written: Settings) -> None:
    done = run_command("audit", "list", environment=environment | {"COLUMNS": "40"})
    heading, *lines = done.stdout.splitlines()
    assert heading.split()[:3] == ["seq", "at", "action"]
    assert len(lines) == len(ROWS)
    assert re.search(r"^2 +2027-01-01T00:01:00.500Z +upload +ok +key_1 +7 +77$", lines[1])


def test_a_row_that_was_forged_can_do_nothing_to_a_terminal(
    environment: dict[str, str], written: Settings
) -> None:
    with sqlite3.connect(written.broker_data_dir / "broker.db") as database:
        database.execute("DROP TRIGGER audit_no_update")
        database.execute("UPDATE audit SET subject = ? WHERE seq = 1", ("\x1b[2J",))
    database.close()
    done = run_command("audit", "list", environment=environment)
    assert "\x1b" not in done.stdout
    assert "\\x1b[2J" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("list", "--since", "yesterday"), "--since: 'yesterday' is no time like"),
        (("list", "--until", "nan"), "--until: 'nan' is no time"),
        (("list", "--json", "--csv"), "one of them"),
        (("list", "--limit", str(2**63)), "--limit"),
        (("list", "--subject", os.fsdecode(b"\xff")), "--subject: this is no UTF-8 text"),
        (("verify", "--head", "7"), "--head: '7' is not SEQ:HASH"),
    ],
)
def test_what_can_t_be_read_is_said(
    environment: dict[str, str], arguments: tuple[str, ...], sentence: str
) -> None:
    done = run_command("audit", *arguments, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


def test_a_whole_audit_is_called_so_and_its_head_can_be_kept(
    environment: dict[str, str], written: Settings
) -> None:
    done = run_command("audit", "verify", environment=environment)
    assert done.returncode == 0, done.stdout
    told = re.fullmatch(r"4 rows, whole\. Head: (4:[0-9a-f]{64})\n", done.stdout)
    assert told
    again = run_command("audit", "verify", "--json", "--head", told[1], environment=environment)
    assert again.returncode == 0
    assert json.loads(again.stdout) == {
        "whole": True,
        "rows": 4,
        "head": told[1],
        "findings": [],
        "more_findings": 0,
    }


def test_a_broken_audit_is_called_so(environment: dict[str, str], written: Settings) -> None:
    """By name of the row, and by the exit code."""
    with sqlite3.connect(written.broker_data_dir / "broker.db") as database:
        database.execute("DROP TRIGGER audit_no_update")
        database.execute("DROP TRIGGER audit_no_delete")
        database.execute("UPDATE audit SET subject = 'x' WHERE seq = 1")
        database.execute("DELETE FROM audit WHERE seq = 3")
    database.close()
    done = run_command("audit", "verify", environment=environment)
    assert done.returncode == 1
    first, second, verdict = done.stdout.splitlines()
    assert (first, second) == ("row 1: not as it was written", "row 3: missing")
    assert verdict.startswith("3 rows, NOT whole. Head: 4:")
    found = json.loads(run_command("audit", "verify", "--json", environment=environment).stdout)
    assert [(each["kind"], each["first"], each["last"]) for each in found["findings"]] == [
        ("changed", 1, 1),
        ("missing", 3, 3),
    ]


def test_another_pepper_is_guessed(environment: dict[str, str], written: Settings) -> None:
    other = {"BROKER_KEY_PEPPER": "74275882878888814873182214328435"}
    done = run_command("audit", "verify", environment=environment | other)
    assert done.returncode == 1
    assert "No row fits" in done.stderr


def test_an_audit_without_a_row_is_whole(environment: dict[str, str]) -> None:
    done = run_command("audit", "verify", environment=environment)
    assert (done.returncode, done.stdout.partition(".")[0]) == (0, "0 rows, whole")
    assert listed(environment) == []


async def test_whoever_has_seen_enough_of_a_long_list_may_leave(
    environment: dict[str, str], written: Settings
) -> None:
    """As ``head`` does: no trace, no complaint about the database."""
    database = Database(written.resolved_database_url)
    for _ in range(20):
        await opening.audit_log(written, database).write(*ROWS * 64)
    await database.close()
    for form in ("--csv", "--json"):
        process = subprocess.Popen(
            [*COMMAND, "audit", "list", "--limit", "0", form],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 1
