"""Whether a bucket has enough, decided without I/O: GCRA, a token bucket that remembers one moment.

A bucket holds ``quota`` and fills up again evenly, ``quota`` in ``window_seconds``: a caller that was quiet
may have all of it at once, and in t seconds nobody has more than ``quota × (1 + t / window_seconds)``. What
is remembered of a bucket is when it will be full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.state.redis import Shared

SLACK = 1e-3
"""Of one unit: what the rounding of times may add up to."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What one caller may have in a window, and how much of it this call costs.

    ``name`` is the policy's, as headers tell it ("key", "subject", "ip"); ``bucket`` says whose it is, and
    under another name it is another one. Quota and window may differ from call to call.
    """

    name: str
    bucket: str
    quota: int
    window_seconds: float
    cost: int = 1

    def __post_init__(self) -> None:
        if self.quota < 1 or self.window_seconds <= 0 or self.cost < 0:
            raise ValueError(f"a limit of {self.cost} of {self.quota} in {self.window_seconds} seconds")

    @property
    def unit_seconds(self) -> float:
        """How long one unit takes to come back."""
        return self.window_seconds / self.quota


class Verdict(NamedTuple):
    """Whether a call may pass, and how its tightest limit stands.

    Of limits that refuse, ``limit`` is the one that does so for longest. ``retry_after_seconds`` is 0 for
    what is allowed, and None for what never will be: it costs more than the quota. After ``reset_seconds``
    all of the quota is there again. ``shared`` is None when it is not known what other processes know.
    """

    allowed: bool
    limit: Limit | None = None
    remaining: int = 0
    reset_seconds: float = 0.0
    retry_after_seconds: float | None = 0.0
    shared: Shared | None = None


class Bucket(NamedTuple):
    """How a limit's bucket would stand after its cost was taken.

    It is full in ``debt_seconds``. There is enough in it in ``wait_seconds``: 0 or less, when there is now.
    """

    limit: Limit
    debt_seconds: float
    wait_seconds: float


def charge(limit: Limit, full_at: float, now: float) -> Bucket:
    """Take the cost of ``limit`` from a bucket that would be full at ``full_at``.

    Under a window that was made shorter, a bucket is empty at worst.
    """
    debt = min(max(full_at - now, 0.0), limit.window_seconds)
    after = debt + limit.cost * limit.unit_seconds
    if limit.cost > limit.quota:
        return Bucket(limit, after, math.inf)
    return Bucket(limit, after, after - limit.window_seconds - limit.unit_seconds * SLACK)


def judge(buckets: Sequence[Bucket]) -> Verdict:
    """What comes of all buckets together: if one of them has not enough, nothing is taken from any."""
    if not buckets:
        return Verdict(allowed=True)
    worst = max(buckets, key=lambda bucket: bucket.wait_seconds)
    if worst.wait_seconds > 0:
        return _refusal(worst)
    tightest = min(buckets, key=_share_left)
    remaining = _units(tightest.limit, tightest.debt_seconds)
    return Verdict(True, tightest.limit, remaining, tightest.debt_seconds)


def _refusal(bucket: Bucket) -> Verdict:
    limit = bucket.limit
    debt = bucket.debt_seconds - limit.cost * limit.unit_seconds
    retry_after = None if math.isinf(bucket.wait_seconds) else bucket.wait_seconds
    return Verdict(False, limit, _units(limit, debt), debt, retry_after)


def _share_left(bucket: Bucket) -> float:
    return 1 - bucket.debt_seconds / bucket.limit.window_seconds


def _units(limit: Limit, debt_seconds: float) -> int:
    """What is left to take."""
    return max(0, math.floor((limit.window_seconds - debt_seconds) / limit.unit_seconds + SLACK))


def turn(turns: Sequence[float], limit: Limit, now: float) -> float:
    """When the next one may pass, after ``turns`` that were given, the last of them last."""
    earliest = max(now, turns[-1]) if turns else now
    if len(turns) < limit.quota:
        return earliest
    return max(earliest, turns[-limit.quota] + limit.window_seconds)
