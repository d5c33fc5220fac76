"""Faults at Coze that come and go while uploads run."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx

STEP_SECONDS = 0.5
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


async def changing(sandbox_url: str, seed: int) -> None:
    """Order other faults twice a second, until cancelled; each is used up by a few requests."""
    draw = random.Random(seed)
    async with httpx.AsyncClient(base_url=sandbox_url, trust_env=False) as control:
        while True:
            (await control.put("/_sandbox/faults", json=_some(draw))).raise_for_status()
            await asyncio.sleep(STEP_SECONDS)


async def cleared(sandbox_url: str) -> None:
    """No more faults."""
    async with httpx.AsyncClient(base_url=sandbox_url, trust_env=False) as control:
        (await control.delete("/_sandbox/faults")).raise_for_status()


def _some(draw: random.Random) -> list[dict[str, Any]]:
    """At most three kinds, so that most uploads meet none."""
    faults = [{"path": UPLOADS, **fault} for fault in draw.sample(FAULTS, draw.randint(0, 3))]
    if draw.random() < 0.1:
        faults.append({"path": TOKENS, **draw.choice(FAULTS_OF_TOKENS)})
    return [fault | {"times": draw.randint(1, 2)} for fault in faults]
