"""The date of HTTP's headers."""

from __future__ import annotations

import email.utils
from datetime import UTC


def unix_seconds(http_date: str) -> float | None:
    """A date in any of its three forms (RFC 9110 §5.6.7). None for what is no date."""
    try:
        date = email.utils.parsedate_to_datetime(http_date)
        if date.tzinfo is None:  # asctime's form, which is in GMT like the others
            date = date.replace(tzinfo=UTC)
        return date.timestamp()
    except (ValueError, OverflowError):  # a year, or a zone, of twenty digits
        return None
