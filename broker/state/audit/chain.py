"""The chain: each row's hash covers the whole row and the hash before it.

The hash is an HMAC-SHA-256 under a key that is not in the database, so that who can write the database can
change rows, but can't make the chain fit them. Pure: knows no database and no clock.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from broker.state.audit.row import COLUMNS, Value, Values


@dataclass(frozen=True)
class Head:
    """The last row of a chain, written ``SEQ:HASH``."""

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


Link = tuple[Value, ...]
"""A row of the chain, in the order of ``LINK_COLUMNS``."""
LINK_COLUMNS = ("seq", *COLUMNS, "previous_hash", "hash")
START = Head(0, "0" * 64)
"""The head of a chain without a row."""
_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


def named(links: Iterable[Link]) -> list[dict[str, Value]]:
    """The same, column by column."""
    return [dict(zip(LINK_COLUMNS, link, strict=True)) for link in links]


def parse_head(text: str) -> Head:
    """A head from ``SEQ:HASH``. Raises ``ValueError``."""
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not SEQ:HASH")
    return Head(int(match[1]), match[2])


class Chain:
    """Makes and checks hashes with one key (32 bytes)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def extended(self, head: Head, rows: Iterable[Values]) -> tuple[list[Link], Head]:
        """The rows as they follow on ``head``, and the head after them."""
        links: list[Link] = []
        for values in rows:
            seq, previous_hash = head.seq + 1, head.hash
            head = Head(seq, self.hash_of(seq, previous_hash, values))
            links.append((seq, *values, previous_hash, head.hash))
        return links, head

    def hash_of(self, seq: int, previous_hash: str, values: Values) -> str:
        """The hash of row ``seq`` that follows on ``previous_hash``."""
        return self._mac("row", [seq, previous_hash, *values])

    def seal_of(self, head: Head) -> str:
        """What says that ``head`` was the last row once: no row's hash says that of itself."""
        return self._mac("head", [head.seq, head.hash])

    def _mac(self, what: str, values: list[Any]) -> str:
        # A JSON list of numbers, texts and nulls can be read in one way only.
        return hmac.digest(self._key, _encode([what, *values]).encode("ascii"), "sha256").hex()


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
