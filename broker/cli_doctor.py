"""``broker doctor``: why can't my server reach Coze?"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended."""


def doctor(
    *,
    upload: Annotated[
        bool, typer.Option("--upload", help="Upload one byte with each credential, and print its file_id.")
    ] = False,
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
    13 proxy, 14 tls, 15 http, 16 region, 17 credential, 18 cors, 19 upload; 130 after Ctrl-C.
    """
    if problems := list(settings.doh_problems(doh, "--doh")):
        stop(problems)
    report = Report(_passed_over if as_json else _show)
    try:
        _examine(report, doh, timeout, upload=upload)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # once more ends it without these last words
        report.is_interrupted = True
    if as_json:
        print_line(report.as_json())
    else:
        _show_end(report)
    _leave(report.exit_code, at_once=report.is_interrupted)


@dataclass
class Report:
    """What was found so far; each result is told to ``show`` as it comes."""

    show: Callable[[Result], None]
    results: list[Result] = field(default_factory=list)
    upstream: str | None = None
    is_interrupted: bool = False
    began: float = field(default_factory=time.monotonic)

    def add(self, result: Result) -> None:
        """One more step."""
        self.show(result)
        self.results.append(result)

    @property
    def exit_code(self) -> int:
        from broker.doctor.examination import exit_code

        return INTERRUPTED if self.is_interrupted else exit_code(self.results)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def as_json(self) -> dict[str, Any]:
        from broker.doctor.examination import first_failed

        return {
            "ok": self.exit_code == 0,
            "exit_code": self.exit_code,
            "failed_step": first_failed(self.results),
            "interrupted": self.is_interrupted,
            "upstream": self.upstream,
            "steps": [result.as_json() for result in self.results],
            "seconds": round(self.seconds, 3),
        }


def _leave(code: int, *, at_once: bool) -> NoReturn:
    """A thread that still asks the system's resolver would keep the process for half a minute."""
    if sys.stdout is not None:
        sys.stdout.flush()
    others = [each for each in threading.enumerate() if each is not threading.main_thread()]
    if at_once or any(not each.daemon for each in others):
        os._exit(code)
    raise typer.Exit(code)


def _examine(report: Report, doh: str, timeout: float, *, upload: bool) -> None:
    from broker.doctor.examination import STEPS, UPLOAD
    from broker.doctor.way import Way

    steps = (*STEPS, UPLOAD) if upload else STEPS
    try:
        way = Way(settings.read(), doh_url=doh, wait_seconds=timeout)
    except settings.SettingsError as error:
        for result in _unreadable(error.problems, steps):
            report.add(result)
        return
    report.upstream = _origin(way)
    _run(_walk(way, steps, report))


def _run(walk: Coroutine[Any, Any, None]) -> None:
    """Until it is over. Raises ``KeyboardInterrupt`` after Ctrl-C, which is heard between two steps of the
    loop's: raised wherever the program happens to be, it could get lost there.
    """
    loop = asyncio.new_event_loop()  # asyncio.run would wait for threads that ask the system's resolver
    task = loop.create_task(walk)
    task.add_done_callback(lambda _: loop.stop())
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, loop.stop)
    try:
        loop.run_forever()
        if not task.done():
            loop.set_exception_handler(lambda *_: None)  # what is under way ends with the process
            raise KeyboardInterrupt
        task.result()
    finally:
        loop.close()


async def _walk(way: Way, steps: tuple[Step, ...], report: Report) -> None:
    from broker.doctor.examination import examined

    async with aclosing(examined(way, steps)) as results:
        async for result in results:
            report.add(result)


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


def _show_end(report: Report) -> None:
    out.print(f"\n{_last_words(report)} {_how_long(report)}.", highlight=False)


def _last_words(report: Report) -> str:
    if report.is_interrupted:
        return "[yellow]Interrupted[/yellow]: the steps that are missing were not looked at"
    if report.exit_code:
        name = next(each.step.name for each in report.results if each.step.exit_code == report.exit_code)
        return f"[red]The way to Coze ends at {name}[/red]"
    warned = sum(each.finding.status == "warning" for each in report.results)
    more = f", with {warned} warning{'s' if warned > 1 else ''}" if warned else ""
    return f"[green]The way to Coze is open[/green]{more}"


def _how_long(report: Report) -> str:
    code = f"exit code {report.exit_code}, " if report.exit_code else ""
    return f"({code}{report.seconds:.1f} s)"
