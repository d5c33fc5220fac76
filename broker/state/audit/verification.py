"""Whether an audit is whole: row after row is held against its own hash, the one before, and the head.

Pure: gets the rows handed in, so that millions need no memory.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from broker.state.audit.chain import START, Chain, Head
from broker.state.audit.row import COLUMNS

Kind = Literal["changed", "missing", "added", "moved", "unlinked", "head", "doubt"]
MAX_FINDINGS = 1000

SENTENCES: dict[Kind, str] = {
    "changed": "not as it was written",
    "missing": "missing",
    "added": "not written by the broker",
    "moved": "renumbered",
    "unlinked": "whole, but does not follow on the row before it",
    "head": "the record of the last row is wrong",
    "doubt": "the writer found something wrong",
}


@dataclass(frozen=True)
class Finding:
    """What is wrong with rows ``first`` to ``last``."""

    kind: Kind
    first: int
    last: int
    detail: str = ""

    def __str__(self) -> str:
        rows = f"row {self.first}" if self.first == self.last else f"rows {self.first} to {self.last}"
        return ": ".join(filter(None, (rows, SENTENCES[self.kind], self.detail)))


class Verification:
    """Takes all rows by their numbers, then tells what it found.

    ``head`` is the head in the database with its seal; ``known`` one that was noted elsewhere before.
    """

    def __init__(self, chain: Chain, head: Head | None, seal: str, known: Head | None = None) -> None:
        self.findings: list[Finding] = []
        self.more_findings = 0
        """How many there are that are not told."""
        self.rows = 0
        self.last = START
        """The last row that was looked at."""
        self._chain = chain
        self._head = head
        self._known = known
        self._sound = 0
        self._in_doubt = 0
        """How many rows in turn, up to the last one, nobody knows where from."""
        self._shift = 0
        self._check_seal(seal)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def fits_nowhere(self) -> bool:
        """Whether there are rows and not one is sound: the key is the wrong one, more likely than not."""
        return self.rows > 0 and self._sound == 0

    def row(self, row: Mapping[str, Any]) -> None:
        """Look at the next row."""
        self.rows += 1
        seq, expected = row["seq"], self.last.seq + 1
        if seq < 1:
            self._find("added", seq)
            return
        if seq > expected:
            self._find("missing", expected, seq - 1)
        is_sound = self._fits(row, seq)
        if is_sound:
            self._check_sound(row, follows=seq == expected and not self._in_doubt)
        known_place = is_sound or self._find_out(row)
        if self._known is not None and seq == self._known.seq and row["hash"] != self._known.hash:
            self._find("changed", seq, detail="another row was noted elsewhere")
        self.last = Head(seq, row["hash"])
        self._in_doubt = 0 if known_place else self._in_doubt + 1

    def end(self) -> None:
        """No row comes any more."""
        head, last = self._head, self.last
        if head is None:
            self._find("head", last.seq, detail="it is gone")
        elif head.seq > last.seq:
            self._find("missing", last.seq + 1, head.seq)
        elif head.seq == last.seq and head.hash != last.hash and not self._in_doubt:
            self._find("head", head.seq, detail="it names another hash")
        if self._known is not None and self._known.seq > max(last.seq, head.seq if head else 0):
            self._find("missing", last.seq + 1, self._known.seq, detail="noted elsewhere")

    def _check_seal(self, seal: str) -> None:
        if self._head is None or (self._head == START and not seal):
            return
        if not hmac.compare_digest(seal.encode(), self._chain.seal_of(self._head).encode()):
            self._find("head", self._head.seq, detail="its seal is not ours")

    def _check_sound(self, row: Mapping[str, Any], *, follows: bool) -> None:
        """A row that is as it was written: is it at its place, and what does it say?"""
        self._sound += 1
        if follows and row["previous_hash"] != self.last.hash:
            self._find("unlinked", row["seq"])
        if self._is_behind_head(row["seq"]):
            self._find("head", row["seq"], detail="it names an earlier row")
        if row["action"] == "audit.doubt":
            self._find("doubt", row["seq"], detail=f"{row['result']} {row['detail']}")

    def _find_out(self, row: Mapping[str, Any]) -> bool:
        """What was done to a row that is not as it was written; whether it was only moved."""
        seq = row["seq"]
        for shift in (self._shift, self._shift + self._in_doubt, self._shift - 1):
            # Rows that were renumbered, to make room or to close a gap, still fit their old numbers.
            if shift and self._fits(row, seq - shift):
                self._note_shift(seq, shift)
                self._find("moved", seq, detail=f"they were {_old_place(shift)}")
                return True
        self._find("added" if self._is_behind_head(seq) else "changed", seq)
        return False

    def _note_shift(self, seq: int, shift: int) -> None:
        before = self.findings[-1] if self.findings else None
        if shift < self._shift:
            self._find("missing", seq)
        elif shift > self._shift and before and (before.kind, before.last) == ("changed", seq - 1):
            self.findings[-1] = Finding("added", before.first, before.last)
        self._shift = shift

    def _is_behind_head(self, seq: int) -> bool:
        return self._head is not None and seq > self._head.seq

    def _fits(self, row: Mapping[str, Any], seq: int) -> bool:
        values = tuple(row[name] for name in COLUMNS)
        try:
            made = self._chain.hash_of(seq, row["previous_hash"], values)
        except (TypeError, ValueError):  # a value of a kind that the writer never writes
            return False
        return hmac.compare_digest(made.encode(), str(row["hash"]).encode())

    def _find(self, kind: Kind, first: int, last: int | None = None, *, detail: str = "") -> None:
        """Neighbours of one kind are one finding."""
        finding = Finding(kind, first, first if last is None else last, detail)
        before = self.findings[-1] if self.findings else None
        if before and (before.kind, before.detail, before.last + 1) == (kind, detail, first):
            self.findings[-1] = Finding(kind, before.first, finding.last, detail)
        elif len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)
        else:
            self.more_findings += 1


def _old_place(shift: int) -> str:
    return f"{abs(shift)} further {'up' if shift > 0 else 'down'}"
