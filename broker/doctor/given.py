"""Step ``settings``: would the broker start with them, and do they say where Coze is?"""

from __future__ import annotations

from dataclasses import replace

from broker import settings
from broker.doctor.finding import Finding, failed, ok, warning
from broker.doctor.http import path_of
from broker.doctor.way import Way


async def examine(way: Way) -> Finding:
    """All problems at once; the way is walked all the same when only its beginning is known, and safe."""
    problems = settings.problems(way.settings)
    unwise = settings.env_file_troubles() if problems else settings.warnings(way.settings)
    way.settings = settings.without_refused(way.settings)
    return judged(way, problems, unwise)


def judged(way: Way, problems: list[str], unwise: list[str]) -> Finding:
    """Without I/O: what the problems mean for the way."""
    facts = {"source": settings.source_of("coze_api_base"), "problems": problems, "warnings": unwise}
    try:
        found = f"COZE_API_BASE is {way.target.origin}{path_of(way.settings)} (from {facts['source']})"
    except ValueError:
        found, usable = "COZE_API_BASE does not say where Coze is", False
    else:
        # Else the steps behind would send in the clear what the broker would not: it does not start so.
        usable = way.target.is_tls or settings.is_this_machine(way.target.host)
    if problems:
        means = "The broker does not start with these settings."
        finding = failed(
            "; ".join([*problems, *unwise]), means, "Mend them. `broker config` shows them all.", **facts
        )
        return replace(finding, stops=not usable)
    if unwise:
        return warning(found, " ".join(unwise), "See `broker config`.", **facts)
    return ok(found, **facts)


def unreadable(problems: list[str]) -> Finding:
    """For settings that can't even be read."""
    means = "The broker does not start with these settings, and nothing else can be looked at."
    return failed("; ".join(problems), means, "Mend them first.", problems=problems)
