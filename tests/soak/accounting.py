"""The account: what was asked, what became of it, and whether client, log and Coze tell the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from broker.errors import Refusal, tree
from tests.soak.clients import Answer, Result
from tests.soak.gauges import Level
from tests.soak.plan import FIRST_OUT_OF_RAIN, MANNERS, UPSTREAM_CODES

MIB = 1024 * 1024
MAX_GROWTH_BYTES = 16 * MIB
"""What the allocator keeps differs by some MiB from one quiet moment to the next, and no more with time; a
leak of 2 KB an upload exceeds this in ten minutes, one of a file's bytes at once.
"""
MAX_DATABASE_FILES = 2 * 15 + 1
"""A file and a log for each connection of the pool, five and ten more at need, and what they share. SQLite
keeps a file open that its connection gave back as long as another has a lock on it, for the next one: so as
many stay as were ever needed at once, which a moment with many mints may raise at any time.
"""
MAX_RECOVERY_SECONDS = 15.0
"""How soon after an outage uploads must be stored again: a breaker that a late failure opened once more, and
a pause that Coze asked for, may come together.
"""
UNSURE = frozenset({"outcome_unknown", "upstream_bad_answer"})
"""Codes of uploads that Coze may have stored all the same."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One figure of the account, and what is wrong with it."""

    figure: str
    value: str
    breaches: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Books:
    """All that is known at the end, from each side."""

    asked: int
    results: list[Result]
    records: list[Record]
    """The broker's log, parsed."""
    stored: list[Record]
    """The sandbox's records of files that it stored."""
    before: Level
    after: Level
    recoveries: list[float | None]
    """Of each outage of Coze's, how many seconds after its end the first upload was stored; None: never."""


def account(books: Books) -> list[Line]:
    """Every figure, with its breaches."""
    return [
        _sum(books),
        Line("ended as their manner allows", f"{len(books.results)}", [*_outcomes(books)]),
        Line("stored as they were sent", f"{len(books.stored)}", [*_contents(books)]),
        Line("stored once, and nothing unaccounted for", f"{len(books.stored)}", [*_strays(books)]),
        Line("records in the log", f"{len(_requests(books))}", [*_records(books)]),
        _outages(books),
        *_levels(books.before, books.after),
    ]


def codes(books: Books) -> Counter[str]:
    """How often each refusal, as the log tells."""
    return Counter(record["code"] for record in _requests(books) if "code" in record)


def _sum(books: Books) -> Line:
    kinds = Counter(result.kind for result in books.results)
    stored, refused, failed = (kinds[kind] for kind in ("stored", "refused", "failed"))
    told = f"{books.asked:,} = {stored:,} stored + {refused:,} refused + {failed:,} failed"
    return Line("asked", told, [] if books.asked == stored + refused + failed else ["the sum is wrong"])


def _outcomes(books: Books) -> Iterator[str]:
    uploads, mints = _by_upload(books), _by_subject(books)
    for result in books.results:
        name = result.upload.name
        code = next((record.get("code") for record in uploads[name] or mints[name]), None)
        if not _is_allowed(result, code):
            yield f"{_told(result)}, code {code}"


def _is_allowed(result: Result, code: str | None) -> bool:
    """Where Coze had no faults only what a client asks for; elsewhere a fault may come before it."""
    manner = MANNERS[result.upload.manner]
    if result.kind == "stored":
        return result.upload.can_be_stored
    if result.upload.number >= FIRST_OUT_OF_RAIN:
        return False
    if result.kind == "failed":
        return manner.leaves
    return code == manner.refusal or code in UPSTREAM_CODES or _is_of_the_next(result)


def _is_of_the_next(result: Result) -> bool:
    """Who promises less has its last bytes taken for a request of their own, and that is answered."""
    code = result.answer.body.get("code") if result.answer else None
    return result.upload.manner == "promises less" and code in ("malformed_request", 4000)


def _contents(books: Books) -> Iterator[str]:
    at_coze = {record["file_id"]: record for record in books.stored}
    for result in books.results:
        if result.kind != "stored" or result.answer is None:
            continue
        upload, there = result.upload, at_coze.get(result.file_id, {})
        expected = (upload.file_name, upload.size, upload.sha256)
        if (there.get("file_name"), there.get("file_bytes"), there.get("sha256")) != expected:
            yield f"{_told(result)}: Coze has {there}"
        if result.answer.body.get("sha256", upload.sha256) != upload.sha256:
            yield f"{_told(result)}: the answer's digest is another"
    for record in _requests(books):
        if "file_id" in record and record["file_id"] not in at_coze:
            yield f"the log has the file {record['file_id']}, but Coze has not"


def _strays(books: Books) -> Iterator[str]:
    """Files at Coze of which nobody was told, though all could have been; and files that are there twice."""
    results = {result.upload.file_name: result for result in books.results}
    codes_of = {name: {each.get("code") for each in found} for name, found in _by_upload(books).items()}
    copies = Counter(record["file_name"] for record in books.stored)
    yield from (f"{name} is stored {count} times" for name, count in copies.items() if count > 1)
    for name in copies:
        result = results.get(name)
        if result is None:
            yield f"{name} was never asked for"
        elif not _may_be_at_coze(result, codes := codes_of.get(result.upload.name, set())):
            yield f"{_told(result)}, but Coze has it; codes {codes}"


def _may_be_at_coze(result: Result, codes: set[str | None]) -> bool:
    """It is stored; or nobody knows; or its client would have been told, had it stayed."""
    if not result.upload.can_be_stored:
        return False
    return result.kind in ("stored", "failed") or bool(codes & UNSURE)


def _records(books: Books) -> Iterator[str]:
    """One record for each request, which says what its client was told; and none of an error of ours."""
    uploads, mints = _by_upload(books), _by_subject(books)
    for result in books.results:
        own, name = uploads[result.upload.name], result.upload.name
        was_sent = result.minted is None or result.minted.status == 200
        if len(own) != was_sent:
            yield f"{_told(result)}: {len(own)} records"
        if len(mints[name]) != result.upload.by_token:
            yield f"{_told(result)}: {len(mints[name])} records of its token"
        if was_sent and not _is_of_the_next(result):
            yield from (f"{_told(result)}: {what}" for what in _differences(result.answer, own))
    known = len(books.results) + sum(result.upload.by_token for result in books.results)
    known += sum(result.upload.manner == "promises less" for result in books.results)
    if len(_requests(books)) > known:
        yield f"{len(_requests(books))} records of {known} requests at most"
    yield from (f"an error of ours: {line}" for line in books.records if _is_our_error(line))


def _differences(answer: Answer | None, records: list[Record]) -> Iterator[str]:
    if answer is None or not records:
        return
    said = answer.body.get("file_id") or (answer.body.get("data") or {}).get("id")
    told = (answer.request_id, answer.status, said)
    written = tuple(records[0].get(name) for name in ("request_id", "status", "file_id"))
    if told != written:
        yield f"the client was told {told}, the log {written}"
    if isinstance(answer.body.get("code"), str) and answer.body["code"] != records[0].get("code"):
        yield f"the client was told {answer.body['code']}, the log {records[0].get('code')}"


def _is_our_error(line: Record) -> bool:
    known = {refusal.code for refusal in tree()} - {Refusal.code, "internal_error"}
    return "exception" in line or line.get("code", "not_found") not in known


def _outages(books: Books) -> Line:
    """Coze was gone now and then: that was noticed, and so was that it came back."""
    changes = [line["event"] for line in books.records if line["event"].startswith("coze is ")]
    seconds = [each for each in books.recoveries if each is not None]
    told = f"{len(books.recoveries)}, stored again within {max(seconds, default=0):.1f} s"
    breaches = [
        f"an outage after which nothing was stored for {each} s"
        for each in books.recoveries
        if each is None or each > MAX_RECOVERY_SECONDS
    ]
    downs = changes.count("coze is down")
    if downs < len(books.recoveries):
        breaches.append(f"{len(books.recoveries)} outages, but the breaker opened {downs} times")
    if changes and changes[-1] != "coze is back":
        breaches.append(f"at the end: {changes[-1]}")
    return Line("outages of Coze's", f"{told}; the breaker opened {downs} times", breaches)


def _levels(before: Level, after: Level) -> Iterable[Line]:
    grown = after.memory_bytes - before.memory_bytes
    yield _line(
        "memory, grown by",
        f"{grown / MIB:+.1f} MiB, from {before.memory_bytes / MIB:.1f}; {MAX_GROWTH_BYTES // MIB} may be",
        is_sound=grown <= MAX_GROWTH_BYTES,
    )
    connections = after.client_connections + after.upstream_connections
    yield _line("connections left", f"{connections}", is_sound=connections == 0)
    yield _line(
        "files of the database open",
        f"{after.database_files}; {MAX_DATABASE_FILES} may be",
        is_sound=after.database_files <= MAX_DATABASE_FILES,
    )
    yield _line(
        "other open files, before and after",
        f"{before.other_files}, {after.other_files}",
        is_sound=after.other_files <= before.other_files,
    )


def _line(figure: str, value: str, *, is_sound: bool) -> Line:
    return Line(figure, value, [] if is_sound else [value])


def _requests(books: Books) -> list[Record]:
    """The records of all that was asked of the broker; not of whether it is ready."""
    return [line for line in books.records if line["event"] == "request" and line.get("path") != "/ready"]


def _by_upload(books: Books) -> dict[str, list[Record]]:
    """Records of uploads, by who they say they are."""
    found = defaultdict(list)
    for record in _requests(books):
        if "origin" in record:
            found[record["origin"].removeprefix("http://").removesuffix(".example")].append(record)
    return found


def _by_subject(books: Books) -> dict[str, list[Record]]:
    found = defaultdict(list)
    for record in _requests(books):
        if record.get("path") == "/token" and "subject" in record:
            found[record["subject"]].append(record)
    return found


def _told(result: Result) -> str:
    upload = result.upload
    return f"{upload.name} ({upload.manner}, {upload.size:,} bytes) is {result.kind}"
