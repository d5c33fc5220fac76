"""The steps in their order, each within its time; what stands on a failed one is skipped."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from broker.doctor import cors, credential, dns, given, http, proxies, region, tcp, tls, upload
from broker.doctor.finding import Finding, failed, skipped
from broker.doctor.scrubbing import scrubbed
from broker.doctor.way import Way

ALL_WELL = 0


@dataclass(frozen=True)
class Step:
    """One step: its name, the exit code of its failure, and the steps that it stands on."""

    name: str
    exit_code: int
    examine: Callable[[Way], Awaitable[Finding]]
    needs: tuple[str, ...] = ()
    waits: int = 2
    """How many waits of ``Way.wait_seconds`` it may take at most."""


STEPS = (
    Step("settings", 10, given.examine),
    Step("dns", 11, dns.examine, ("settings",)),
    Step("tcp", 12, tcp.examine, ("settings", "dns")),
    Step("proxy", 13, proxies.examine, ("settings",)),
    Step("tls", 14, tls.examine, ("tcp", "proxy"), waits=6),
    Step("http", 15, http.examine, ("tls",)),
    Step("region", 16, region.examine, ("http",), waits=4),
    Step("credential", 17, credential.examine, ("http", "region"), waits=8),
    Step("cors", 18, cors.examine, ("http",)),
)
UPLOAD = Step("upload", 19, upload.examine, ("http", "region", "credential"), waits=4)
TO_COZE = STEPS[1:6]
"""Whether Coze can be reached at all; shows no credential to anybody."""


@dataclass(frozen=True)
class Result:
    """What one step came to. ``seconds`` is how long it took."""

    step: Step
    finding: Finding
    seconds: float

    def as_json(self) -> dict[str, Any]:
        finding = self.finding
        return {
            "step": self.step.name,
            "status": finding.status,
            "found": finding.found,
            "means": finding.means or None,
            "do": finding.do or None,
            "facts": dict(finding.facts),
            "seconds": round(self.seconds, 3),
        }


async def examined(
    way: Way, steps: Sequence[Step] = STEPS, max_seconds: float = math.inf
) -> AsyncGenerator[Result, None]:
    """Walk the way; a result for each step as soon as there is one. Closes the client that it made.

    The step that is under way after ``max_seconds`` has failed, and those after it.
    """
    closed: set[str] = set()
    give_up_at = time.monotonic() + max_seconds
    try:
        for step in steps:
            result = await _result(step, way, closed, give_up_at)
            if result.finding.status == "failed" and result.finding.stops:
                closed.add(step.name)
            yield result
    finally:
        if way.client is not None and not way.is_lent:
            await way.client.aclose()
            way.client = None


async def _result(step: Step, way: Way, closed: set[str], give_up_at: float) -> Result:
    missing = next((name for name in step.needs if name in closed), None)
    if missing is not None:
        closed.add(step.name)  # what stands on this one stands on nothing, too
        return Result(step, skipped(f"needs {missing}, which failed"), 0.0)
    started = time.monotonic()
    finding = await _finding(step, way, give_up_at - started)
    return Result(step, scrubbed(finding, way), time.monotonic() - started)


async def _finding(step: Step, way: Way, seconds_left: float) -> Finding:
    limit = max(0.0, min(step.waits * way.wait_seconds + 1, seconds_left))
    try:
        async with asyncio.timeout(limit):
            return await step.examine(way)
    except TimeoutError:
        means = "Something on the way neither goes on nor fails."
        return failed(f"not over after {limit:.1f} s", means, "Try again with a longer --timeout.")
    except Exception as error:  # one step's fault is not the end of the examination
        means = "The doctor itself has a fault here."
        return failed(f"{type(error).__name__} in this step", means, "Report it, with this line.")


def exit_code(results: Sequence[Result]) -> int:
    """That of the first step that failed; 0 where none did."""
    return next((each.step.exit_code for each in results if each.finding.status == "failed"), ALL_WELL)


def first_failed(results: Sequence[Result]) -> str | None:
    """Its name."""
    return next((each.step.name for each in results if each.finding.status == "failed"), None)


async def all_of(way: Way, steps: Sequence[Step], max_seconds: float = math.inf) -> list[Result]:
    """Every result, for whoever has nothing to show meanwhile."""
    return [result async for result in examined(way, steps, max_seconds)]
