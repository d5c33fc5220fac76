"""``python -m tests.soak [--quick] [--seconds N] [--json FILE]``: uploads, faults at Coze, an account."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.soak.accounting import Books, Line, account, codes
from tests.soak.run import Soak, run

FULL_SECONDS, QUICK_SECONDS = 600, 60
SHOWN_BREACHES = 5


def main() -> int:
    """Run, print the account, and keep the logs when something is wrong with it; 1 then."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else FULL_SECONDS)
    print(f"{seconds:g} seconds, seed {arguments.seed}, log in {folder}", flush=True)
    books = run(Soak(seconds, arguments.seed, folder))
    lines = account(books)
    _print(lines, books)
    if arguments.json:
        _write(arguments.json, lines, books)
    if not any(line.breaches for line in lines):
        shutil.rmtree(folder)
        return 0
    _write(folder / "account.json", lines, books)
    print(f"Kept in {folder}: broker.log, account.json. For the same again: --seed {arguments.seed}")
    return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_SECONDS} seconds instead of {FULL_SECONDS}"
    )
    parser.add_argument("--seconds", type=float, help="so many")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="what is drawn from it; the time")
    parser.add_argument("--json", type=Path, help="write the account here, too")
    return parser.parse_args()


def _print(lines: list[Line], books: Books) -> None:
    table = Table("figure", "value", "holds", header_style="bold")
    for line in lines:
        table.add_row(line.figure, line.value, "[red]no[/red]" if line.breaches else "yes")
    console = Console(width=150)
    console.print(table)
    console.print("Refusals: " + ", ".join(f"{count} {code}" for code, count in codes(books).most_common()))
    for line in lines:
        for breach in line.breaches[:SHOWN_BREACHES]:
            console.print(f"[red]{line.figure}[/red]: {breach}", markup=True, highlight=False)


def _write(path: Path, lines: list[Line], books: Books) -> None:
    figures = {"lines": [vars(line) for line in lines], "codes": codes(books)}
    path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
