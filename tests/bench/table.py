"""The table: what each row measures and its goal. The document, the chart and the run all read it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
MIB = 2**20
MB = 1_000_000
SLOW_UPLOADS = 500
HELPER_MAX_BYTES = 4096

Values = Mapping[str, Any]
"""What a row found: figures by name, and lists of what each single run gave."""


@dataclass(frozen=True)
class Size:
    """How much is measured. ``rounds`` is how often; of rates and CPU the best counts."""

    name: str
    large_bytes: int
    uploads: int
    rounds: int
    single_uploads: int
    requests: int
    rate_seconds: float
    starts: int
    limit_seconds: int
    """After this many seconds the run is given up."""

    @property
    def words(self) -> dict[str, str]:
        """What the names of the rows say of it."""
        return {"large": f"{self.large_bytes // MIB} MiB", "uploads": f"{self.uploads:,}"}


# 512 MiB is the largest file that Coze, and so the broker, takes.
FULL = Size("full", 512 * MIB, 1000, 5, 1000, 3000, 3.0, 5, 900)
QUICK = Size("quick", 256 * MIB, 300, 2, 150, 500, 1.0, 3, 180)


@dataclass(frozen=True)
class Bound:
    """One condition of a goal: the value of this name is to be at most, or at least, ``limit``."""

    value: str
    limit: float
    words: str = "{sign} {limit:,}"
    at_least: bool = False

    @property
    def text(self) -> str:
        """As it stands in the table: ``≤ 2.0``."""
        return self.words.format(sign="≥" if self.at_least else "≤", limit=self.limit)

    def share(self, values: Values) -> float:
        """How much of what is allowed was needed: 1 is just reached, 2 is twice too much."""
        value, limit = (self.limit, values[self.value]) if self.at_least else (values[self.value], self.limit)
        return float(value / limit) if limit else float(value + 1 if value else 0)


@dataclass(frozen=True)
class Line:
    """One row: its number, what it measures, how its values read, and its goal, if it has one.

    ``short`` and ``brief`` are its figure and its values for the chart.
    """

    number: str
    figure: str
    short: str
    shows: str
    brief: str
    bounds: tuple[Bound, ...] = ()

    @property
    def goal(self) -> str:
        return ", ".join(bound.text for bound in self.bounds)

    def share(self, values: Values) -> float:
        """That of the bound that fares worst."""
        return max(bound.share(values) for bound in self.bounds)


CPU = "{ratio:.2f} ({broker:.2f} s/GiB against {other:.2f})"
RATIO = "{ratio:.2f}"

LINES = (
    Line(
        "P1",
        "CPU per GiB through `/proxy/upload`, against nginx",
        "CPU per GiB, against nginx",
        CPU,
        RATIO,
        (Bound("ratio", 2.0),),
    ),
    Line(
        "P1b",
        "the same without sha256: what the relay itself costs (for information)",
        "the same without sha256",
        CPU,
        RATIO,
    ),
    Line(
        "P2",
        "CPU per GiB, against `UploadFile` + httpx",
        "CPU per GiB, against UploadFile + httpx",
        CPU,
        RATIO,
        (Bound("ratio", 0.2),),
    ),
    Line(
        "P3",
        "memory over idle: one upload of {large}; {uploads} uploads of 1 MiB at once",
        "memory over idle, one / many uploads",
        "{one_mb:.1f} MB; {many_mb:.0f} MB",
        "{one_mb:.1f} MB; {many_mb:.0f} MB",
        (Bound("one_mb", 8, "{sign} {limit} MB"), Bound("many_mb", 128, "{sign} {limit} MB")),
    ),
    Line(
        "P4",
        "throughput of {uploads} uploads of 1 MiB at once, against nginx",
        "throughput of many uploads, against nginx",
        "{ratio:.2f} ({broker:,.0f} MiB/s against {nginx:,.0f}), {failed} failed",
        RATIO,
        (Bound("ratio", 0.5, at_least=True), Bound("failed", 0, "none failed")),
    ),
    Line(
        "P5",
        "`POST /token` with an API key, limits and audit on, requests per second, against a bare JSON route",
        "POST /token a second, against bare JSON",
        "{ratio:.2f} ({broker:,.0f}/s against {bare:,.0f}; CPU {cpu_us:,.0f} µs against {bare_cpu_us:,.0f})",
        RATIO,
        (Bound("ratio", 0.2, at_least=True),),
    ),
    Line(
        "P5b",
        "the same with PostgreSQL and Redis in place of SQLite",
        "the same with PostgreSQL and Redis",
        "{ratio:.2f} ({broker:,.0f}/s against {bare:,.0f}; CPU {cpu_us:,.0f} µs against {bare_cpu_us:,.0f})",
        RATIO,
        (Bound("ratio", 0.2, at_least=True),),
    ),
    Line(
        "P6",
        "added time from last byte to answer, against the same upload straight to the upstream",
        "added from last byte to answer",
        "p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms",
        "{p50_ms:.1f} ms; {p99_ms:.1f} ms",
        (Bound("p50_ms", 3, "p50 {sign} {limit} ms"), Bound("p99_ms", 15, "p99 {sign} {limit} ms")),
    ),
    Line(
        "P7",
        f"p99 of `POST /token` while {SLOW_UPLOADS} slow uploads (50 KB/s) run",
        f"p99 of POST /token beside {SLOW_UPLOADS} slow uploads",
        "{busy_ms:.1f} ms ({ratio:.1f} × idle)",
        "{busy_ms:.1f} ms; {ratio:.1f} × idle",
        (Bound("busy_ms", 50, "{sign} {limit} ms"), Bound("ratio", 3, "{sign} {limit} × idle")),
    ),
    Line(
        "P8",
        "`broker serve` from start to ready",
        "broker serve, from start to ready",
        "{seconds:.2f} s",
        "{seconds:.2f} s",
        (Bound("seconds", 1, "{sign} {limit} s"),),
    ),
    Line(
        "P9",
        "the browser helper, gzipped",
        "the browser helper, gzipped",
        "{bytes:,} bytes",
        "{bytes:,} bytes",
        (Bound("bytes", HELPER_MAX_BYTES, "{sign} {limit:,} bytes"),),
    ),
    Line(
        "P10",
        "wall-clock time of one upload of {large}, sha256 on over off",
        "time of one upload, sha256 on over off",
        "{ratio:.2f} ({on:.2f} s against {off:.2f} s; CPU {cpu_on:.2f} s/GiB against {cpu_off:.2f})",
        RATIO,
        (Bound("ratio", 1.3),),
    ),
)


def rows(found: Mapping[str, Values], size: Size) -> list[dict[str, Any]]:
    """Every line with what was found for it, ready to be written as JSON.

    Raises :class:`KeyError` for a line that nothing was found for: no row is left out.
    """
    return [_row(line, found[line.number], size) for line in LINES]


def _row(line: Line, values: Values, size: Size) -> dict[str, Any]:
    share = line.share(values) if line.bounds else None
    return {
        "number": line.number,
        "figure": line.figure.format(**size.words),
        "short": line.short,
        "measured": line.shows.format(**values),
        "brief": line.brief.format(**values),
        "goal": line.goal,
        "share_of_goal": share,
        "reached": None if share is None else share <= 1,
        "values": dict(values),
    }


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as they stand in the document."""
    lines = ["| # | figure | measured | goal | reached |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row["number"], row["figure"], row["measured"], row["goal"], verdict(row))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(row: dict[str, Any]) -> str:
    """Whether its goal was reached; nothing where there is none."""
    return {True: "yes", False: "**no**", None: ""}[row["reached"]]
