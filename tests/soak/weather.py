"""Faults at Coze that come and go while uploads run."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass
from typing import Any

import httpx

STEP_SECONDS = 0.5
FAIR_STEPS = (3, 24)
"""How many steps it is fair before the first outage, and before each other one."""
UPLOADS, TOKENS = "/v1/files/upload", "/api/permission/oauth2/token"

FAULTS: tuple[dict[str, Any], ...] = (
    {"status": 500, "code": 5000},
    {"status": 503},
    {"status": 429, "headers": {"Retry-After": "1"}},
    {"code": 4013},
    {"code": 4011},
    {"status": 401, "code": 700012006},
    {"html": True},
    {"html": True, "before_body": True},
    {"status": 500, "before_body": True},
    {"redirect": "http://elsewhere.example/"},
    {"abort_after_bytes": 0},
    {"abort_after_bytes": 100_000},
    {"abort_answer": True},
    {"never_answer": True},
    {"never_answer": True, "before_body": True},
    {"delay_seconds": 0.5},
    {"half_json": True},
    {"truncate": True},
    {"oversize_bytes": 1_000_000},
    {"cors": False},
)
FAULTS_OF_TOKENS: tuple[dict[str, Any], ...] = (
    {"status": 500, "code": "internal_error"},
    {"html": True},
    {"abort_answer": True},
    {"never_answer": True},
)


OUTAGES: tuple[tuple[float, dict[str, Any]], ...] = (
    (2.0, {"abort_after_bytes": 0}),
    (2.0, {"status": 502, "html": True, "before_body": True}),
    (6.0, {"never_answer": True, "before_body": True}),
)
"""Coze is gone: for how many seconds, and what becomes of every call meanwhile. Whoever waits for an answer
in vain must have had the time to notice.
"""


@dataclass(frozen=True)
class Outage:
    """From when to when nothing got through to Coze, on the monotonic clock."""

    began_at: float
    ended_at: float


class Weather:
    """The weather at one sandbox, drawn from a seed."""

    def __init__(self, sandbox_url: str, seed: int) -> None:
        self.outages: list[Outage] = []
        self._url = sandbox_url
        self._draw = random.Random(seed)

    async def changing(self) -> None:
        """Order other faults twice a second, and now and then an outage, until cancelled."""
        async with httpx.AsyncClient(base_url=self._url, trust_env=False) as control:
            for number, (seconds, fault) in enumerate(itertools.cycle(OUTAGES)):
                for _ in range(FAIR_STEPS[number > 0]):
                    await _order(control, _some(self._draw))
                    await asyncio.sleep(STEP_SECONDS)
                await self._outage(control, seconds, fault)

    async def _outage(self, control: httpx.AsyncClient, seconds: float, fault: dict[str, Any]) -> None:
        await _order(control, [fault])
        began_at = time.monotonic()
        try:
            await asyncio.sleep(seconds)
        finally:
            await _order(control, [])
            self.outages.append(Outage(began_at, time.monotonic()))

    async def cleared(self) -> None:
        """No more faults."""
        async with httpx.AsyncClient(base_url=self._url, trust_env=False) as control:
            await _order(control, [])


async def _order(control: httpx.AsyncClient, faults: list[dict[str, Any]]) -> None:
    """These instead of those that were ordered before; each is used up by as many requests as it says."""
    (await control.put("/_sandbox/faults", json=faults)).raise_for_status()


def _some(draw: random.Random) -> list[dict[str, Any]]:
    """At most three kinds, so that most uploads meet none."""
    faults = [{"path": UPLOADS, **fault} for fault in draw.sample(FAULTS, draw.randint(0, 3))]
    if draw.random() < 0.1:
        faults.append({"path": TOKENS, **draw.choice(FAULTS_OF_TOKENS)})
    return [fault | {"times": draw.randint(1, 2)} for fault in faults]
