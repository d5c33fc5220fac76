"""``python -m tests.bench [--quick] [--json FILE]``: the rows of the table, measured side by side."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench import rows, servers
from tests.bench.rows import Row, Size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller files, fewer requests; under a minute")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    arguments = parser.parse_args()
    size = Size.quick() if arguments.quick else Size.full()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        measured = rows.measure(Path(folder), size)
    _print(measured)
    if arguments.json:
        figures = {"machine": servers.machine(), "rows": [vars(row) for row in measured]}
        servers.write_json(arguments.json, figures)


def _print(measured: list[Row]) -> None:
    table = Table("#", "figure", "measured", "goal", "reached", header_style="bold")
    for row in measured:
        table.add_row(
            row.number, row.figure, row.measured, row.goal, "yes" if row.reached else "[red]no[/red]"
        )
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
