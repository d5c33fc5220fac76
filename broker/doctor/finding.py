"""What a step found: words for a person, facts for a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "failed", "skipped"]
BY_WEIGHT: tuple[Status, ...] = ("skipped", "ok", "warning", "failed")


@dataclass(frozen=True)
class Finding:
    """``found`` says what was seen, ``means`` what follows from it, ``do`` what helps."""

    status: Status
    found: str
    means: str = ""
    do: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    stops: bool = True
    """Of a failure: whether what depends on this step has nothing to stand on."""


def ok(found: str, **facts: Any) -> Finding:
    """All is well."""
    return Finding("ok", found, facts=facts)


def warning(found: str, means: str, do: str = "", **facts: Any) -> Finding:
    """Something is odd, and the way goes on."""
    return Finding("warning", found, means, do, facts)


def failed(found: str, means: str, do: str, **facts: Any) -> Finding:
    """The way ends here."""
    return Finding("failed", found, means, do, facts)


def skipped(why: str) -> Finding:
    """It was not looked at."""
    return Finding("skipped", why)


def joined(first: Finding, second: Finding, facts_prefix: str) -> Finding:
    """Both as one, as bad as the worse. The names of the second one's facts get the prefix."""
    worse = max(first, second, key=lambda each: BY_WEIGHT.index(each.status))
    return Finding(
        worse.status,
        f"{first.found}. {second.found}",
        _both(first.means, second.means),
        _both(first.do, second.do),
        {**first.facts, **{facts_prefix + name: value for name, value in second.facts.items()}},
    )


def _both(one: str, other: str) -> str:
    return one if one == other else " ".join(filter(None, (one, other)))
