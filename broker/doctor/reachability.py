"""The short form, inside a running broker: can Coze be reached, and which step fails?

Nobody but the settings says where Coze is. What was found is kept for some seconds, and is found once however
many ask meanwhile, so that no number of probes becomes a load on Coze.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from broker.doctor.way import Way
from broker.settings import Settings

KEPT_SECONDS = 10.0
"""For callers with a key, who wait for the answer."""
GLANCE_SECONDS = 60.0
"""For those who don't wait, and whom nobody knows."""
FORGOTTEN_SECONDS = 600.0
"""What is older says nothing about now. Monitors ask more often."""
QUIET_SECONDS = 10.0
"""After a start: a broker that is restarted again and again leaves Coze alone."""
WAIT_SECONDS = 3.0
MAX_SECONDS = 15.0
"""For all steps together: somebody waits for the answer."""
NOT_ASKED = "unknown"


@dataclass(frozen=True)
class Reach:
    """What was found last. ``checked_at`` in Unix seconds; ``failed_step`` is None where Coze was reached."""

    failed_step: str | None
    sentence: str
    checked_at: float
    seconds: float
    steps: tuple[dict[str, str], ...] = field(default=())

    @property
    def reachable(self) -> bool:
        return self.failed_step is None

    def as_json(self, settings: Settings) -> dict[str, Any]:
        """For callers of the broker: no address, no certificate, no word of others."""
        return {
            "reachable": self.reachable,
            "failed_step": self.failed_step,
            "upstream": Way(settings).target.origin,
            "steps": list(self.steps),
            "checked_at": int(self.checked_at),
            "seconds": round(self.seconds, 3),
        }


class Reachability:
    """One process's knowledge of whether Coze can be reached."""

    def __init__(
        self, settings: Settings, client: httpx.AsyncClient, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._client = client
        self._now = now
        self._quiet_until = now() + QUIET_SECONDS
        self._found: Reach | None = None
        self._found_at = 0.0
        self._running: asyncio.Task[Reach] | None = None

    async def look(self) -> Reach:
        """What is known, if it is fresh; else what an examination finds, one for all who wait."""
        if self._found is not None and self._now() - self._found_at < KEPT_SECONDS:
            return self._found
        return await asyncio.shield(self._examination())

    def glance(self) -> str:
        """``ok``, the step that failed last, or ``unknown`` when that is long ago; never waits. An
        examination is begun when what is known is old, for those who ask next.
        """
        now = self._now()
        age_seconds = math.inf if self._found is None else now - self._found_at
        if age_seconds >= GLANCE_SECONDS and now >= self._quiet_until:
            self._examination()
        if self._found is None or age_seconds >= FORGOTTEN_SECONDS:
            return NOT_ASKED
        return self._found.failed_step or "ok"

    async def aclose(self) -> None:
        """Stop what runs."""
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    def _examination(self) -> asyncio.Task[Reach]:
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._examine())
        return self._running

    async def _examine(self) -> Reach:
        # Loaded when it is first wanted: a broker starts without it.
        from broker.doctor.examination import TO_COZE, all_of, first_failed

        started, at = self._now(), time.time()
        way = Way(self._settings, wait_seconds=WAIT_SECONDS, client=self._client, is_lent=True)
        results = await all_of(way, TO_COZE, MAX_SECONDS)
        failure = next((each.finding for each in results if each.finding.status == "failed"), None)
        steps = tuple({"step": each.step.name, "status": each.finding.status} for each in results)
        sentence = "Coze can be reached." if failure is None else f"Coze can't be reached. {failure.means}"
        found = Reach(first_failed(results), sentence, at, self._now() - started, steps)
        self._found, self._found_at = found, self._now()
        return found
