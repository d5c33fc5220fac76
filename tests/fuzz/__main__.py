"""``python -m tests.fuzz [--seconds N] [--target NAME]…``: each target in turn, for so many seconds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.fuzz import CORPUS, TARGETS
from tests.fuzz.run import Result, fuzz

FOLDER = Path("build/fuzz")


def main() -> int:
    """Run the targets and say what was found; 1 when there is something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target; 60 when not given")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"for what is found; {FOLDER}")
    arguments = parser.parse_args()
    results = [
        fuzz(TARGETS[name], seconds=arguments.seconds, folder=arguments.folder)
        for name in arguments.target or TARGETS
    ]
    _print(results)
    return 1 if any(result.found for result in results) else 0


def _print(results: list[Result]) -> None:
    table = Table("target", "inputs", "a second", "peak memory", "broken by", header_style="bold")
    for each in results:
        found = f"[red]{each.found}[/red]" if each.found else "nothing"
        memory = f"{each.peak_memory_mb} MB"
        table.add_row(each.target, f"{each.inputs:,}", f"{each.inputs_per_second:,}", memory, found)
    console = Console(width=150)
    console.print(table)
    for each in results:
        if each.found:
            console.print(
                f"The trace is in {each.log}. Mend it, and put the input into {CORPUS / each.target}."
            )


if __name__ == "__main__":
    sys.exit(main())
