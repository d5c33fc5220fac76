"""``RateLimit`` and ``RateLimit-Policy``: how much a caller has left, in the words of the IETF's draft
(draft-ietf-httpapi-ratelimit-headers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from broker.state.limits import Limit, Verdict


def rate_headers(verdict: Verdict, limits: Sequence[Limit]) -> dict[str, str]:
    """The headers for a request that was held against ``limits``; they tell of the tightest one."""
    if verdict.limit is None:
        return {}
    policies = ", ".join(f'"{limit.name}";q={limit.quota};w={limit.window_seconds}' for limit in limits)
    left = f'"{verdict.limit.name}";r={verdict.remaining};t={math.ceil(verdict.reset_seconds)}'
    return {"RateLimit-Policy": policies, "RateLimit": left}
