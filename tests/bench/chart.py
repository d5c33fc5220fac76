"""A run as one picture: SVG by hand, for light and dark, with no script and no font of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from tests.bench.report import Report, origin

WIDTH, PAD = 880, 24
LINE, BAR = 26, 14
PANEL_TOP, PANEL_NAMES = 56, 150
# Where the columns of the lower part begin: number, name, bar, mark, measured, goal.
NUMBER, NAME, BARS, MARK, MEASURED, GOAL = PAD, PAD + 34, 372, 500, 520, 690
BARS_WIDTH = 120
MOST_SHARES = 2.0
"""A bar ends here, however much more than its goal was needed; the figure stands beside it."""

STYLE = """
    .bg { fill: #f6f8fa } .track { fill: #e4e8ec } .rule { stroke: #57606a; stroke-dasharray: 3 3 }
    .title { font-weight: 600; fill: #1f2328; font-size: 15px }
    .name { fill: #1f2328 } .small { fill: #57606a }
    .ours { fill: #8250df } .other { fill: #8c959f } .yes { fill: #1a7f37 } .no { fill: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117 } .track { fill: #21262d } .rule { stroke: #9da7b3 }
      .title, .name { fill: #e6edf3 } .small { fill: #9da7b3 }
      .ours { fill: #bc8cff } .other { fill: #6e7681 } .yes { fill: #3fb950 } .no { fill: #f0883e }
    }
"""


@dataclass(frozen=True)
class Bar:
    """A name, a length and how it is written."""

    name: str
    value: float
    text: str
    kind: str


def draw(report: Report) -> str:
    """The report as SVG: CPU and throughput as they are, then each row against its goal."""
    rows = [row for row in report["rows"] if row["reached"] is not None]
    goals_top = PANEL_TOP + LINE * 5 + 10
    height = goals_top + LINE * (len(rows) + 1) + 40
    parts = [
        f'<rect class="bg" width="{WIDTH}" height="{height}" rx="10"/>',
        *_panel(PAD, "CPU seconds per GiB, less is better", _cpu(report)),
        *_panel(
            WIDTH // 2 + PAD // 2,
            f"MiB/s of {report['uploads']:,} uploads at once, more is better",
            _throughput(report),
        ),
        *_goals(goals_top, rows),
        _text(PAD, height - 16, origin(report), "small", size=11),
    ]
    return _document(height, parts)


def _document(height: int, parts: list[str]) -> str:
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="t d" font-family="system-ui, sans-serif" font-size="13">\n'
        '  <title id="t">The broker, measured</title>\n'
        '  <desc id="d">CPU and throughput beside nginx and a naive relay, and each figure against its goal; '
        "the table in docs/performance.md has the same figures.</desc>\n"
        f"  <style>{STYLE}  </style>\n  {body}\n</svg>\n"
    )


def _cpu(report: Report) -> list[Bar]:
    values = {row["number"]: row["values"] for row in report["rows"]}
    found = (
        ("nginx", values["P1"]["other"], "other"),
        ("broker, no sha256", values["P1b"]["broker"], "ours"),
        ("broker", values["P1"]["broker"], "ours"),
        ("UploadFile + httpx", values["P2"]["other"], "other"),
    )
    return [Bar(name, value, f"{value:.2f}", kind) for name, value, kind in found]


def _throughput(report: Report) -> list[Bar]:
    values = next(row["values"] for row in report["rows"] if row["number"] == "P4")
    sides = (("nginx", "other"), ("broker", "ours"))
    return [Bar(name, values[name], f"{values[name]:,.0f}", kind) for name, kind in sides]


def _panel(left: int, title: str, bars: list[Bar]) -> Iterator[str]:
    """Half of the picture's width: a title, and bars on a scale of their own."""
    room = WIDTH // 2 - PAD - PAD // 2 - PANEL_NAMES - 60
    longest = max(bar.value for bar in bars)
    yield _text(left, 36, title, "title", size=15)
    for index, bar in enumerate(bars):
        top = PANEL_TOP + index * LINE
        width = room * bar.value / longest
        yield _text(left, top + 12, bar.name, "name")
        yield _rect(left + PANEL_NAMES, top, width, bar.kind)
        yield _text(left + PANEL_NAMES + width + 8, top + 12, bar.text, "small")


def _goals(top: int, rows: list[dict[str, Any]]) -> Iterator[str]:
    """One bar for each row: how much of what its goal allows was needed; the goal is the dashed line."""
    line = BARS + BARS_WIDTH / MOST_SHARES
    first = top + LINE
    yield _text(PAD, top, "Measured against the goals", "title", size=15)
    yield _text(line, top + 10, "goal", "small", size=12, anchor="middle")
    yield _text(MEASURED, top + 10, "measured", "small", size=12)
    yield _text(GOAL, top + 10, "goal", "small", size=12)
    for index, row in enumerate(rows):
        yield from _goal(first + index * LINE, row)
    bottom = first + len(rows) * LINE - LINE + BAR + 4
    yield f'<line class="rule" x1="{line:.0f}" y1="{first - 6}" x2="{line:.0f}" y2="{bottom}"/>'


def _goal(top: int, row: dict[str, Any]) -> Iterator[str]:
    needed = min(row["share_of_goal"], MOST_SHARES) * BARS_WIDTH / MOST_SHARES
    kind, mark = ("yes", "✓") if row["reached"] else ("no", "✗")
    yield _text(NUMBER, top + 12, row["number"], "small", size=12)
    yield _text(NAME, top + 12, row["short"], "name", size=12)
    yield _rect(BARS, top, BARS_WIDTH, "track")
    yield _rect(BARS, top, max(2.0, needed), kind)
    yield _text(MARK, top + 12, mark, kind)
    yield _text(MEASURED, top + 12, row["brief"], "name", size=12)
    yield _text(GOAL, top + 12, row["goal"], "small", size=12)


def _text(x: float, y: float, text: str, kind: str, *, size: int = 13, anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def _rect(x: float, y: float, width: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{width:.1f}" height="{BAR}" rx="3"/>'
