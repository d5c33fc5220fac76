"""What is left of a run: the JSON file, and the table between two markers of the document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
CHART = DOCUMENT.with_suffix(".svg")
START, END = "<!-- bench: written by make bench ARGS=--publish -->", "<!-- /bench -->"

Report = dict[str, Any]
"""``size``, ``uploads``, ``date``, ``seconds`` it took, ``machine``, and ``rows`` as of ``table.rows``."""


def write(path: Path, text: str) -> None:
    """Write a file, and the folder that it is to be in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def as_json(report: Report) -> str:
    """So that a diff of two runs can be read."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> Report:
    """The report of an earlier run."""
    return cast(Report, json.loads(path.read_text(encoding="utf-8")))


def with_table(document: str, table: str) -> str:
    """The document with this table in the place of the one that it has.

    Raises :class:`ValueError` when it has no place for one.
    """
    pattern = re.compile(f"(?<={re.escape(START)}\n).*?(?={re.escape(END)})", re.DOTALL)
    if not pattern.search(document):
        raise ValueError(f"The document lacks the lines {START} and {END}.")
    return pattern.sub(lambda _: f"\n{table}\n\n", document)


def published(document: str) -> str:
    """The table that stands in the document now."""
    return document.partition(START)[2].partition(END)[0].strip()


def origin(report: Report) -> str:
    """On what and when the figures were measured, in a sentence."""
    machine = report["machine"]
    return (
        f"Measured on {report['date']} with {machine['cores']} cores ({machine['processor']}), "
        f"{machine['system']}, Python {machine['python']}, {machine['nginx']}."
    )
