"""A few seconds of ``make soak``: the account balances, and one that does not says where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.soak.accounting import (
    MAX_DATABASE_FILES,
    MAX_GROWTH_BYTES,
    MAX_RECOVERY_SECONDS,
    Books,
    account,
)
from tests.soak.run import Soak, run

SECONDS = 5
SEED = 1
OUTAGES = "outages of Coze's"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    return run(Soak(SECONDS, SEED, tmp_path_factory.mktemp("soak")))


def breached(books: Books) -> dict[str, list[str]]:
    return {line.figure: line.breaches for line in account(books) if line.breaches}


def test_a_short_soak_balances(books: Books) -> None:
    assert breached(books) == {}
    assert {result.kind for result in books.results} == {"stored", "refused", "failed"}
    assert books.recoveries


def without_a_result(books: Books) -> Books:
    return replace(books, results=books.results[1:])


def with_an_internal_error(books: Books) -> Books:
    return replace(books, records=[*books.records, {"event": "request", "code": "internal_error"}])


def without_a_record(books: Books) -> Books:
    last = max(place for place, line in enumerate(books.records) if "origin" in line)
    return replace(books, records=books.records[:last] + books.records[last + 1 :])


def with_a_record_twice(books: Books) -> Books:
    return replace(books, records=[*books.records, next(line for line in books.records if "origin" in line)])


def with_another_file_id(books: Books) -> Books:
    records = [line | {"file_id": "7"} if "file_id" in line else line for line in books.records]
    return replace(books, records=records)


def with_another_digest(books: Books) -> Books:
    return replace(books, stored=[books.stored[0] | {"sha256": "0" * 64}, *books.stored[1:]])


def with_a_file_lost(books: Books) -> Books:
    return replace(books, stored=books.stored[1:])


def with_a_file_twice(books: Books) -> Books:
    return replace(books, stored=[*books.stored, books.stored[0] | {"file_id": "7"}])


def with_a_file_of_nobody(books: Books) -> Books:
    return replace(books, stored=[*books.stored, books.stored[0] | {"file_name": "x.csv", "file_id": "7"}])


def with_a_file_refused(books: Books) -> Books:
    refused = next(r for r in books.results if r.upload.manner == "brings nothing")
    stray = {"file_name": refused.upload.file_name, "file_id": "7"}
    return replace(books, stored=[*books.stored, stray])


def grown(books: Books) -> Books:
    memory_bytes = books.before.memory_bytes + MAX_GROWTH_BYTES + 1
    return replace(books, after=replace(books.after, memory_bytes=memory_bytes))


def with_a_connection_left(books: Books) -> Books:
    return replace(books, after=replace(books.after, upstream_connections=1))


def with_a_file_open(books: Books) -> Books:
    return replace(books, after=replace(books.after, other_files=books.before.other_files + 1))


def with_a_database_opened_again_and_again(books: Books) -> Books:
    return replace(books, after=replace(books.after, database_files=MAX_DATABASE_FILES + 1))


def without_what_the_breaker_said(books: Books) -> Books:
    return replace(books, records=[line for line in books.records if not line["event"].startswith("coze is")])


def with_an_outage_that_did_not_end(books: Books) -> Books:
    return replace(books, recoveries=[*books.recoveries, None])


def with_an_outage_that_lasted_on(books: Books) -> Books:
    return replace(books, recoveries=[*books.recoveries, MAX_RECOVERY_SECONDS + 0.1])


def with_a_breaker_left_open(books: Books) -> Books:
    return replace(books, records=[*books.records, {"event": "coze is down"}])


FALSE: dict[str, tuple[Callable[[Books], Books], str]] = {
    "an upload without a result": (without_a_result, "asked"),
    "an internal error": (with_an_internal_error, "records in the log"),
    "a request without a record": (without_a_record, "records in the log"),
    "a request with two records": (with_a_record_twice, "records in the log"),
    "a record of another file": (with_another_file_id, "records in the log"),
    "another digest": (with_another_digest, "stored as they were sent"),
    "a file lost": (with_a_file_lost, "stored as they were sent"),
    "a file twice": (with_a_file_twice, "stored once, and nothing unaccounted for"),
    "a file of nobody": (with_a_file_of_nobody, "stored once, and nothing unaccounted for"),
    "a file that was refused": (with_a_file_refused, "stored once, and nothing unaccounted for"),
    "more memory": (grown, "memory, grown by"),
    "a connection left": (with_a_connection_left, "connections left"),
    "too many files of the database": (
        with_a_database_opened_again_and_again,
        "files of the database open",
    ),
    "an outage that nobody noticed": (without_what_the_breaker_said, OUTAGES),
    "an outage without an end": (with_an_outage_that_did_not_end, OUTAGES),
    "an outage that lasted on": (with_an_outage_that_lasted_on, OUTAGES),
    "a breaker left open": (with_a_breaker_left_open, OUTAGES),
    "a file left open": (with_a_file_open, "other open files, before and after"),
}


@pytest.mark.parametrize(("falsify", "figure"), FALSE.values(), ids=FALSE)
def test_an_account_that_does_not_balance_says_where(
    books: Books, falsify: Callable[[Books], Books], figure: str
) -> None:
    assert figure in breached(falsify(books))
