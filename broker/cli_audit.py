"""``broker audit``: what was done, and whether the record of it is whole."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from broker import settings
from broker.cli_store import with_ready_database
from broker.terminal import OutputError, end_output, err, print_line, print_table, stop

if TYPE_CHECKING:
    from broker.state.database import Database

audit = typer.Typer(no_args_is_help=True, help="Who did what, and whether the record of it is whole.")

Result = TypeVar("Result")
Row = Mapping[str, Any]
BROKEN = 1
MAX_LIMIT = 1_000_000_000
TABLE = ("seq", "at", "action", "result", "key_id", "subject", "client_ip", "bytes", "file_id", "request_id")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What makes a spreadsheet take a text for a formula."""

Time = Annotated[
    str | None, typer.Option(help="A time, as 2026-01-31T12:00Z or in Unix seconds; UTC if not said.")
]
Text = Annotated[str | None, typer.Option()]


@audit.command("list")
def audit_list(
    *,
    since: Time = None,
    until: Time = None,
    action: Annotated[str | None, typer.Option(help="token.mint, upload, refusal, key.revoke, …")] = None,
    result: Annotated[str | None, typer.Option(help="ok, or a refusal's code.")] = None,
    key: Annotated[str | None, typer.Option(help="An API key's id.")] = None,
    subject: Annotated[str | None, typer.Option(help="Whom a token was for.")] = None,
    token: Annotated[str | None, typer.Option(help="A token's jti, or its hash as it is listed.")] = None,
    file_id: Text = None,
    request_id: Text = None,
    ip: Annotated[str | None, typer.Option(help="The caller's address.")] = None,
    limit: Annotated[
        int, typer.Option(min=0, max=MAX_LIMIT, help="How many of the newest; 0 for all.")
    ] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, safe to open in a spreadsheet.")] = False,
) -> None:
    """List what was done, the newest last."""
    if as_json and as_csv:
        stop(["--json and --csv: one of them."])
    asked = {
        "action": action,
        "result": result,
        "key_id": key,
        "subject": subject,
        "token": token,
        "file_id": file_id,
        "request_id": request_id,
        "client_ip": ip,
    }
    for name, value in asked.items():
        _check_text(name, value)
    times = {"since": _time("--since", since), "until": _time("--until", until)}
    show = _print_json if as_json else _print_csv if as_csv else _print_rows
    _with_log(lambda log: show(_rows(log, times, asked, limit)))


@audit.command("verify")
def audit_verify(
    head: Annotated[
        str | None, typer.Option(help="SEQ:HASH as it was once logged or printed; it must still be there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that no row was changed, added or taken away. The exit code is 1 when one was."""
    from broker.state.audit.chain import parse_head

    try:
        known = None if head is None else parse_head(head)
    except ValueError as error:
        stop([f"--head: {error}."])
    found = _with_log(lambda log: _verified(log, known))
    print_line(_as_json(found)) if as_json else _print_findings(found)
    raise typer.Exit(0 if found.is_whole else BROKEN)


# --- what is asked of the log ---------------------------------------------------------------------------


def _with_log(work: Callable[[Any], Awaitable[Result]]) -> Result:
    """Open the audit's log, do one thing with it, close it."""
    from broker import opening

    async def read(given: settings.Settings, database: Database) -> Result:
        with _reader_may_leave():
            return await work(opening.audit_log(given, database))

    return with_ready_database(read)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """As ``head`` does, or its disk may be full, which is no trouble with the database."""
    try:
        yield
        sys.stdout.flush()
    except OutputError as error:
        raise typer.Exit(end_output(error)) from None


async def _rows(
    log: Any, times: dict[str, float | None], asked: dict[str, str | None], limit: int
) -> AsyncIterator[Row]:
    from broker.state.audit.log import Filter

    which = Filter(**times, equal={name: value for name, value in asked.items() if value is not None})
    if "token" in which.equal:
        which.equal["token"] = _token_hash(which.equal["token"])
    if limit:
        for row in await log.newest(which, limit):
            yield row
        return
    async for row in log.matching(which):
        yield row


async def _verified(log: Any, known: Any) -> Any:
    from broker.state.audit.verification import Verification

    found = await log.found()
    verification = Verification(log.chain, found.head, found.seal, known)
    async for row in log.every_row(found.last_seq):
        verification.row(row)
    verification.end()
    return verification


def _check_text(name: str, value: str | None) -> None:
    """Bytes that are no text come from the terminal as half characters, which no database takes."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        stop([f"--{_OPTIONS.get(name, name)}: this is no UTF-8 text."])


_OPTIONS = {"key_id": "key", "client_ip": "ip", "file_id": "file-id", "request_id": "request-id"}


def _token_hash(text: str) -> str:
    from broker.state.audit.row import TOKEN_HASH_LENGTH, token_hash

    return text if re.fullmatch(f"[0-9a-f]{{{TOKEN_HASH_LENGTH}}}", text) else token_hash(text)


def _time(option: str, text: str | None) -> float | None:
    """Unix seconds."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = _iso(option, text)
    if not math.isfinite(seconds):
        stop([f"{option}: {text!r} is no time."])
    return seconds


def _iso(option: str, text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        stop([f"{option}: {text!r} is no time like 2026-01-31T12:00Z or 1790000000."])
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


# --- how it is shown ------------------------------------------------------------------------------------


async def _print_json(rows: AsyncIterator[Row]) -> None:
    """One array, a row on each line, printed as they come."""
    before = "["
    async for row in rows:
        detail = row["detail"]
        shown = {**row, "time": _shown_time(row["at"]), "detail": None if detail is None else _parsed(detail)}
        typer.echo(before + json.dumps(shown))
        before = ","
    typer.echo("]" if before == "," else "[]")


async def _print_csv(rows: AsyncIterator[Row]) -> None:
    from broker.state.database import audit as table

    names = [column.name for column in table.columns]
    typer.echo(_csv_line(["time", *names]))
    async for row in rows:
        typer.echo(_csv_line([_shown_time(row["at"]), *(_cell(row[name]) for name in names)]))


async def _print_rows(rows: AsyncIterator[Row]) -> None:
    lines = []
    async for row in rows:
        shown = {**row, "at": _shown_time(row["at"])}
        lines.append(tuple(_printable(shown[name]) for name in TABLE))
    print_table(TABLE, lines)


def _csv_line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _printable(value: Any) -> str:
    """Rows are written without control characters, but whoever can write the database may put some there."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def _shown_time(at: float) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError, TypeError):
        return str(at)


def _parsed(detail: str) -> Any:
    try:
        return json.loads(detail)
    except ValueError:
        return detail


def _as_json(found: Any) -> dict[str, Any]:
    return {
        "whole": found.is_whole,
        "rows": found.rows,
        "head": str(found.last),
        "findings": [{**vars(finding), "says": str(finding)} for finding in found.findings],
        "more_findings": found.more_findings,
    }


def _print_findings(found: Any) -> None:
    for finding in found.findings:
        typer.echo(_printable(finding))
    if found.more_findings:
        typer.echo(f"and {found.more_findings} more")
    typer.echo(f"{found.rows} rows, {'whole' if found.is_whole else 'NOT whole'}. Head: {found.last}")
    if found.fits_nowhere:
        err.print(
            "No row fits. Is the pepper (BROKER_KEY_PEPPER, or key-pepper in BROKER_DATA_DIR) another one?",
            highlight=False,
        )
