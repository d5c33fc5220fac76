"""``broker doctor``: why can't my server reach Coze?"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.padding import Padding

from broker import settings
from broker.terminal import AsJson, out, print_line, stop

if TYPE_CHECKING:
    from broker.doctor.examination import Result, Step
    from broker.doctor.way import Way

STYLES = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
WORDS = {"ok": "ok", "warning": "warn", "failed": "FAIL", "skipped": "skip"}
INDENT = 18


def doctor(
    *,
    upload: Annotated[bool, typer.Option("--upload", help="Upload one byte, and print its file_id.")] = False,
    doh: Annotated[
        str, typer.Option("--doh", help="Hold the system's DNS against this DNS-over-HTTPS server.")
    ] = "",
    timeout: Annotated[
        float, typer.Option(min=0.1, max=30.0, help="Seconds that any one connection or answer may take.")
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Why can't my server reach Coze? Walks the way step by step, says what it found and what to do.

    The exit code is 0 when all is well, else that of the first step that failed: 10 settings, 11 dns, 12 tcp,
    13 proxy, 14 tls, 15 http, 16 region, 17 credential, 18 cors, 19 upload.
    """
    # Nothing here needs to be put in order first, and a thread that asks DNS can't be told to stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if doh and not _is_https(doh):
        stop(["--doh: not an address like https://host/dns-query."])
    from broker.doctor.examination import exit_code

    started = time.monotonic()
    show = _passed_over if as_json else _show
    results, upstream = _examined(doh, timeout, show, upload=upload)
    code = exit_code(results)
    if as_json:
        print_line(_report(results, upstream, code, time.monotonic() - started))
    else:
        _show_end(results, code, time.monotonic() - started)
    _leave(code)


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname)


def _leave(code: int) -> NoReturn:
    """A thread that still asks the system's resolver would keep the process for half a minute."""
    sys.stdout.flush()
    if any(not each.daemon for each in threading.enumerate() if each is not threading.main_thread()):
        os._exit(code)
    raise typer.Exit(code)


def _examined(doh: str, timeout: float, show: Any, *, upload: bool) -> tuple[list[Result], str | None]:
    from broker.doctor.examination import STEPS, UPLOAD
    from broker.doctor.way import Way

    steps = (*STEPS, UPLOAD) if upload else STEPS
    try:
        way = Way(settings.read(), doh_url=doh, wait_seconds=timeout)
    except settings.SettingsError as error:
        results = _unreadable(error.problems, steps)
        for result in results:
            show(result)
        return results, None
    loop = asyncio.new_event_loop()  # asyncio.run would wait for such threads, too
    try:
        return loop.run_until_complete(_walk(way, steps, show)), _origin(way)
    finally:
        loop.close()


async def _walk(way: Way, steps: tuple[Step, ...], show: Any) -> list[Result]:
    from broker.doctor.examination import examined

    results = []
    async for result in examined(way, steps):
        show(result)
        results.append(result)
    return results


def _unreadable(problems: list[str], steps: tuple[Step, ...]) -> list[Result]:
    from broker.doctor import given
    from broker.doctor.examination import Result
    from broker.doctor.finding import skipped
    from broker.doctor.scrubbing import scrubbed

    first = Result(steps[0], scrubbed(given.unreadable(problems), None), 0.0)
    return [first, *(Result(step, skipped("needs settings, which failed"), 0.0) for step in steps[1:])]


def _origin(way: Way) -> str | None:
    try:
        return way.target.origin
    except ValueError:
        return None


def _report(results: list[Result], upstream: str | None, code: int, seconds: float) -> dict[str, Any]:
    from broker.doctor.examination import first_failed

    return {
        "ok": code == 0,
        "exit_code": code,
        "failed_step": first_failed(results),
        "upstream": upstream,
        "steps": [result.as_json() for result in results],
        "seconds": round(seconds, 3),
    }


def _passed_over(_: Result) -> None:
    """JSON is printed once all is known."""


def _show(result: Result) -> None:
    finding = result.finding
    style, word = STYLES[finding.status], WORDS[finding.status]
    head = f"[{style}]{word:<5}[/{style}] [bold]{result.step.name:<11}[/bold] "
    is_bad = finding.status in ("warning", "failed")
    _line(head, finding.found)
    for name, sentence in (("means", finding.means), ("do", finding.do)) if is_bad else ():
        if sentence:
            _line(f"{'':6}[dim]{name:>11}[/dim] ", sentence)


def _line(head: str, sentence: str) -> None:
    """On a terminal a long sentence goes on under its beginning; in a pipe it stays one line."""
    if not out.is_terminal:
        out.print(head + escape(sentence), highlight=False, soft_wrap=True)
        return
    from rich.table import Table

    row = Table.grid(padding=0)
    row.add_column(width=INDENT, no_wrap=True)
    row.add_column()
    row.add_row(head, escape(sentence))
    out.print(Padding(row, 0), highlight=False)


def _show_end(results: list[Result], code: int, seconds: float) -> None:
    if code:
        name = next(each.step.name for each in results if each.step.exit_code == code)
        out.print(
            f"\n[red]The way to Coze ends at {name}[/red] (exit code {code}, {seconds:.1f} s).",
            highlight=False,
        )
        return
    warned = sum(each.finding.status == "warning" for each in results)
    more = f", with {warned} warning{'s' if warned > 1 else ''}" if warned else ""
    out.print(f"\n[green]The way to Coze is open[/green]{more} ({seconds:.1f} s).", highlight=False)
