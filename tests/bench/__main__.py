"""The broker beside nginx and what one writes first: every row of docs/performance.md, in one run.

Ends with 0 when everything ran, whether or not the goals were reached.
"""

from __future__ import annotations

import argparse
import datetime
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from tests.bench import chart, report, rows, servers, table
from tests.bench.load import LoadError
from tests.bench.report import CHART, DOCUMENT, Report
from tests.bench.table import FULL, QUICK, Size

OPEN_FILES = 8192
"""A thousand uploads at once are several thousand sockets in one process."""

ENDING = (signal.SIGALRM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def main() -> None:
    arguments = _arguments()
    if arguments.from_file:
        made = report.read(arguments.from_file)
    else:
        with _bounded(size := QUICK if arguments.quick else FULL):
            made = _run(size)
        report.write(arguments.json, report.as_json(made))
    _print(made)
    report.write(arguments.svg, chart.draw(made))
    if arguments.publish:
        _publish(made)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer requests; under a minute")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="[%(default)s]")
    parser.add_argument("--svg", type=Path, default=Path("build/bench.svg"), help="[%(default)s]")
    parser.add_argument("--publish", action="store_true", help="also put the table and the chart into docs/")
    parser.add_argument(
        "--from", dest="from_file", type=Path, metavar="JSON", help="measure nothing, show an earlier run"
    )
    return parser.parse_args()


def _run(size: Size) -> Report:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            found = rows.measure(Path(folder), size, lambda step: print(f"- {step}", flush=True))
        except (LoadError, OSError, AssertionError) as error:
            sys.exit(f"The benchmark failed: {type(error).__name__}: {error}")
    return {
        "size": size.name,
        "uploads": size.uploads,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.monotonic() - begun, 1),
        "machine": servers.machine(),
        "rows": table.rows(found, size),
    }


@contextmanager
def _bounded(size: Size) -> Iterator[None]:
    """Give up, and end every process, when it takes too long or is told to stop."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= most < OPEN_FILES:
        sys.exit(f"The benchmark needs {OPEN_FILES} open files; the limit is {most} (ulimit -Hn).")
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, most))

    def stop(number: int, _: FrameType | None) -> NoReturn:
        for again in ENDING:
            signal.signal(again, signal.SIG_IGN)  # what was started is being ended now
        too_long = f"The benchmark took longer than {size.limit_seconds} seconds."
        sys.exit(too_long if number == signal.SIGALRM else "The benchmark was stopped.")

    for number in ENDING:
        signal.signal(number, stop)
    signal.alarm(size.limit_seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _print(made: Report) -> None:
    shown = Table("#", "figure", "measured", "goal", "reached", header_style="bold")
    for row in made["rows"]:
        verdict = {True: "yes", False: "[red]no[/red]", None: ""}[row["reached"]]
        shown.add_row(row["number"], row["figure"], row["measured"], row["goal"], verdict)
    console = Console(width=150, highlight=False)
    console.print(shown)
    console.print(_summary(made["rows"]))
    console.print(f"{report.origin(made)} A {made['size']} run of {made['seconds']:.0f} s.", style="dim")


def _summary(rows: list[dict[str, Any]]) -> str:
    missed = [row["number"] for row in rows if row["reached"] is False]
    return f"[red]Goals missed: {', '.join(missed)}.[/red]" if missed else "All goals were reached."


def _publish(made: Report) -> None:
    """Only a full run is what the document says that it is."""
    if made["size"] != FULL.name:
        sys.exit("Only a full run can be published, without --quick.")
    text = f"{report.origin(made)}\n\n{table.as_markdown(made['rows'])}"
    report.write(DOCUMENT, report.with_table(DOCUMENT.read_text(encoding="utf-8"), text))
    report.write(CHART, chart.draw(made))


if __name__ == "__main__":
    main()
