"""The benchmark itself: that its table, its document and its chart say the same. Nothing is timed here."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.bench import chart, report, table, unhashed
from tests.bench.table import FULL, LINES, QUICK, Bound, Line, Values

ROOT = Path(__file__).parent.parent
DOCUMENT = report.DOCUMENT.read_text(encoding="utf-8")
SVG = "{http://www.w3.org/2000/svg}"
EM_WIDTH = 0.6
"""More than what a letter takes on average in the fonts that a browser may choose."""

GOOD: dict[str, Values] = {
    "P1": {"ratio": 1.4, "broker": 0.7, "other": 0.5},
    "P1b": {"ratio": 1.0, "broker": 0.5, "other": 0.5},
    "P2": {"ratio": 0.14, "broker": 0.7, "other": 5.0},
    "P3": {"one_mb": 0.5, "many_mb": 127.9},
    "P4": {"ratio": 0.51, "broker": 510.0, "nginx": 1000.0, "failed": 0},
    "P5": {"ratio": 0.2, "broker": 2000.0, "bare": 10_000.0, "cpu_us": 500.0, "bare_cpu_us": 100.0},
    "P5b": {"ratio": 0.2, "broker": 2000.0, "bare": 10_000.0, "cpu_us": 500.0, "bare_cpu_us": 100.0},
    "P6": {"p50_ms": 2.9, "p99_ms": 14.9},
    "P7": {"busy_ms": 49.0, "ratio": 2.9},
    "P8": {"seconds": 0.9},
    "P9": {"bytes": 4096},
    "P10": {"ratio": 1.3, "on": 1.3, "off": 1.0, "cpu_on": 1.0, "cpu_off": 0.5},
}
BAD: dict[str, Values] = GOOD | {
    "P1": {"ratio": 33.33, "broker": 16.66, "other": 0.5},
    "P3": {"one_mb": 512.1, "many_mb": 2048.0},
    "P4": {"ratio": 1.5, "broker": 1500.0, "nginx": 1000.0, "failed": 100},
    "P5": {"ratio": 0.01, "broker": 100.0, "bare": 10_000.0, "cpu_us": 10_000.0, "bare_cpu_us": 100.0},
    "P5b": {"ratio": 0.01, "broker": 100.0, "bare": 10_000.0, "cpu_us": 10_000.0, "bare_cpu_us": 100.0},
    "P6": {"p50_ms": 100.5, "p99_ms": 1000.5},
    "P7": {"busy_ms": 1000.5, "ratio": 100.5},
    "P9": {"bytes": 4097},
}
MACHINE = {
    "cores": 64,
    "processor": "AMD EPYC 9654 96-Core Processor",
    "system": "Linux",
    "python": "3.13.11",
}


def made(found: dict[str, Values]) -> dict[str, Any]:
    machine = MACHINE | {"nginx": "nginx/1.22.1"}
    rows = table.rows(found, FULL)
    return {"size": "full", "uploads": 1000, "date": "2026-01-31", "machine": machine, "rows": rows}


def cells(markdown: str) -> list[list[str]]:
    """The rows of a table, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()[2:]]


def test_the_document_has_the_rows_and_goals_that_are_measured() -> None:
    text = report.published(DOCUMENT)
    stand = [(number, figure, goal) for number, figure, _, goal, _ in cells(text[text.index("|") :])]
    assert stand == [(line.number, line.figure.format(**FULL.words), line.goal) for line in LINES]


def test_the_document_explains_every_row() -> None:
    explained = DOCUMENT.partition("<!-- /bench -->")[2]
    assert [line.number for line in LINES if f"**{line.number}**" not in explained] == []


def test_publishing_replaces_the_table_and_nothing_else() -> None:
    before, _, after = DOCUMENT.partition(report.published(DOCUMENT))
    assert report.with_table(DOCUMENT, "| new |") == before + "| new |" + after
    with pytest.raises(ValueError, match="lacks the lines"):
        report.with_table("# no place for a table", "| new |")


def test_a_full_run_really_sends_a_thousand_uploads_at_once() -> None:
    assert FULL.uploads == 1000
    assert "1,000 uploads" in next(line for line in LINES if line.number == "P4").figure.format(**FULL.words)


def test_a_line_without_figures_is_not_left_out_in_silence() -> None:
    with pytest.raises(KeyError, match="P5"):
        table.rows({number: values for number, values in GOOD.items() if number != "P5"}, QUICK)


@pytest.mark.parametrize(
    ("bound", "value", "share"),
    [
        (Bound("x", 2.0), 1.0, 0.5),
        (Bound("x", 2.0), 2.0, 1.0),
        (Bound("x", 2.0), 4.0, 2.0),
        (Bound("x", 0.5, at_least=True), 1.0, 0.5),
        (Bound("x", 0.5, at_least=True), 0.25, 2.0),
        (Bound("x", 0), 0, 0.0),
        (Bound("x", 0), 1, 2.0),
    ],
)
def test_a_share_above_one_misses_its_goal(bound: Bound, value: float, share: float) -> None:
    assert bound.share({"x": value}) == share


@pytest.mark.parametrize(
    ("found", "missed"), [(GOOD, set()), (BAD, {"P1", "P3", "P4", "P5", "P5b", "P6", "P7", "P9"})]
)
def test_goals_are_reached_or_missed_and_said_to_be(found: dict[str, Values], missed: set[str]) -> None:
    rows = table.rows(found, FULL)
    assert {row["number"] for row in rows if row["reached"] is False} == missed
    said = cells(table.as_markdown(rows))
    assert {number for number, *_, verdict in said if verdict == "**no**"} == missed
    assert [number for number, *_, verdict in said if not verdict] == ["P1b"]


@pytest.mark.parametrize("found", [GOOD, BAD])
def test_the_chart_shows_every_row_with_a_goal(found: dict[str, Values]) -> None:
    texts = [text for text, *_ in texts_of(chart.draw(made(found)))]
    for row in made(found)["rows"]:
        if row["goal"]:
            assert {row["number"], row["short"], row["brief"], row["goal"]} <= set(texts)


@pytest.mark.parametrize("found", [GOOD, BAD])
def test_nothing_in_the_chart_overlaps_or_leaves_it(found: dict[str, Values]) -> None:
    svg = chart.draw(made(found))
    width, height = (float(side) for side in ElementTree.fromstring(svg).attrib["viewBox"].split()[2:])
    boxes = texts_of(svg) + bars_of(svg)
    assert [box for box in boxes if box[1] < 0 or box[2] < 0 or box[3] > width or box[4] > height] == []
    assert [pair for pair in combinations(boxes, 2) if overlap(*pair)] == []


def test_the_chart_needs_nothing_from_elsewhere() -> None:
    svg = chart.draw(made(GOOD))
    assert not re.search(r"<script|<image|<foreignObject|@import|@font-face|href|url\(", svg)
    assert "prefers-color-scheme: dark" in svg


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.svg")), ids=lambda path: path.name)
def test_the_pictures_of_the_documents_are_well_formed(path: Path) -> None:
    assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"


def test_there_is_a_hash_to_replace_where_its_cost_is_measured() -> None:
    assert [module.__name__ for module in unhashed.modules_that_hash()] != []


def test_the_benchmark_explains_itself() -> None:
    command = [sys.executable, "-m", "tests.bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"--quick", "--json", "--svg", "--publish", "--from"} <= set(re.findall(r"--[a-z]+", done.stdout))


def test_an_earlier_run_is_shown_again_and_a_quick_one_not_published(folder: Path) -> None:
    earlier, picture = folder / "bench.json", folder / "new" / "bench.svg"
    report.write(earlier, report.as_json(made(BAD) | {"size": "quick", "seconds": 1.0}))
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "--from",
        str(earlier),
        "--svg",
        str(picture),
        "--publish",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert "Only a full run can be published" in done.stderr
    assert "Goals missed: P1, P3, P4, P5, P5b, P6, P7, P9." in done.stdout
    assert ElementTree.parse(picture).getroot().tag == f"{SVG}svg"
    assert report.DOCUMENT.read_text(encoding="utf-8") == DOCUMENT


Box = tuple[str, float, float, float, float]
"""What it is; left, top, right, bottom."""


def texts_of(svg: str) -> list[Box]:
    return [_text_box(element) for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars_of(svg: str) -> list[Box]:
    """The bars; a track lies under each of the lower ones, and the background under all."""
    bars = [bar.attrib for bar in ElementTree.fromstring(svg).iter(f"{SVG}rect")]
    return [_bar_box(bar) for bar in bars if bar["class"] not in ("bg", "track")]


def _text_box(element: ElementTree.Element) -> Box:
    at, text = element.attrib, element.text or ""
    size, x, y = float(at["font-size"]), float(at["x"]), float(at["y"])
    width = len(text) * size * EM_WIDTH
    left = x - width / 2 if at["text-anchor"] == "middle" else x
    return text, left, y - size * 0.8, left + width, y + size * 0.2


def _bar_box(at: dict[str, str]) -> Box:
    left, top = float(at["x"]), float(at["y"])
    return at["class"], left, top, left + float(at["width"]), top + float(at["height"])


def overlap(one: Box, other: Box) -> bool:
    return one[1] < other[3] and other[1] < one[3] and one[2] < other[4] and other[2] < one[4]


def test_every_line_has_a_goal_or_says_that_it_is_for_information() -> None:
    def is_plain(line: Line) -> bool:
        return bool(line.bounds) != ("for information" in line.figure)

    assert all(is_plain(line) for line in LINES)
