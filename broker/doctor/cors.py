"""Step ``cors``: would a browser be let through to Coze? A preflight as it would send it (Fetch §4.8)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from broker.doctor.calling import CallFailedError, Reply, ask
from broker.doctor.finding import Finding, failed, ok, warning
from broker.doctor.way import Way
from broker.upstream.coze import UPLOAD_PATH

MAX_ORIGINS = 10
ROUTE = "Files go by way of the broker then; the direct route does not work"


@dataclass(frozen=True)
class Preflight:
    """For pages of one origin: empty ``trouble`` where Coze lets them."""

    origin: str
    trouble: str = ""


async def examine(way: Way) -> Finding:
    """For each origin that the settings allow, the broker's own page included."""
    origins = way.settings.allowed_origins
    done = await asyncio.gather(*(_preflight(way, origin) for origin in origins[:MAX_ORIGINS]))
    left = len(origins) - len(done)
    return judged(done, left=left, has_direct_route=way.goes_direct)


def judged(done: list[Preflight], *, left: int = 0, has_direct_route: bool) -> Finding:
    """A failure only where files are meant to go direct."""
    facts: dict[str, Any] = {
        "origins": {each.origin: each.trouble or "ok" for each in done},
        "not_tried": left,
    }
    bad = [each for each in done if each.trouble]
    more = f" ({left} more origins were not tried)" if left else ""
    if not bad:
        direct = "" if has_direct_route else "; by the settings nothing goes direct"
        return ok(f"pages of {', '.join(each.origin for each in done)} may upload{direct}{more}", **facts)
    found = "; ".join(f"{each.origin}: {each.trouble}" for each in bad) + more
    if not has_direct_route:
        return warning(
            found, "Browsers can't go straight to Coze; by the settings none is meant to.", **facts
        )
    return failed(
        found,
        f"{ROUTE} for pages of {'this origin' if len(bad) == 1 else 'these origins'}.",
        "Set BROKER_DIRECT_MAX_BYTES=0, or no COZE_BROWSER_OAUTH_* settings, so that no page tries.",
        **facts,
    )


def trouble_in(reply: Reply, origin: str) -> str:
    """What keeps a browser from sending the upload behind this preflight; empty for nothing."""
    if not 200 <= reply.status < 300:  # noqa: PLR2004 - Fetch asks for an ok status
        return f"the preflight is answered with {reply.status}"
    allowed = reply.headers.get("access-control-allow-origin", "").strip()
    if not allowed:
        return "no Access-Control-Allow-Origin"
    if allowed not in ("*", origin):
        return "Access-Control-Allow-Origin names another origin"
    names = reply.headers.get("access-control-allow-headers", "").lower().split(",")
    if "authorization" not in (name.strip() for name in names):  # which a * does not cover
        return "Access-Control-Allow-Headers does not name Authorization"
    return ""


async def _preflight(way: Way, origin: str) -> Preflight:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
        "Accept": "*/*",
    }
    try:
        reply = await ask(way, "OPTIONS", UPLOAD_PATH, headers=headers)
    except CallFailedError as error:
        return Preflight(origin, f"no answer ({error.code})")
    return Preflight(origin, trouble_in(reply, origin))
