"""Files of rows that wait for the database: bounded, synced, replayed once.

Each line is one batch, to be written whole. A process writes files of its own and holds a lock on each. A
file that nobody holds was left by a process that died; whoever gets its lock takes it over. All of this
blocks, and belongs in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.state.audit.chain import Head, parse_head
from broker.state.audit.row import COLUMNS, AuditRow, Values

PREFIX, SUFFIX = "audit-spool-", ".jsonl"


@dataclass(frozen=True)
class SpooledBatch:
    """Line ``number`` of a file, counted from 0. ``rows`` is None when the line can't be read."""

    number: int
    rows: list[Values] | None
    unless: Head | None = None
    """A row that is in the audit if, against the odds, these are."""


class Spool:
    """One file; whoever has this object has its lock."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self.size = os.fstat(descriptor).st_size
        """In bytes."""

    @property
    def name(self) -> str:
        """What it is called in the database."""
        return self.path.name

    @classmethod
    def make(cls, folder: Path) -> Spool:
        """A fresh file, its owner's alone. Raises ``OSError``."""
        path = folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}{SUFFIX}"
        spool = cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        fcntl.flock(spool._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return spool

    @classmethod
    def adopt_all(cls, folder: Path) -> list[Spool]:
        """The files in the folder that nobody holds, the oldest first."""
        paths = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"), key=_last_change)
        return [spool for path in paths if (spool := cls._adopted(path))]

    @classmethod
    def _adopted(cls, path: Path) -> Spool | None:
        """None when somebody else holds it, or was quicker."""
        with contextlib.suppress(OSError):
            spool = cls(path, os.open(path, os.O_RDWR | os.O_NOFOLLOW))
            if spool._take():
                return spool
            spool.close()
        return None

    def _take(self) -> bool:
        """Whether the file is ours now, and still the one that has this name."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours, named = os.fstat(self._file.fileno()), self.path.stat()
        except OSError:
            return False
        return stat.S_ISREG(ours.st_mode) and (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)

    def add(self, rows: Sequence[Values], *, max_bytes: int, unless: Head | None = None) -> int:
        """Put as many of the rows at the end as fit, synced; how many that were.

        Raises ``OSError``; the file is as before then.
        """
        texts, size = [], self.size + len(_line([], unless))
        for values in rows:
            text = _encode(_named(values))
            size += len(text) + 1
            if size > max_bytes:
                break
            texts.append(text)
        if texts:
            self._append(_line(texts, unless))
        return len(texts)

    def _append(self, line: bytes) -> None:
        try:
            self._file.seek(self.size)
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
            raise
        self.size += len(line)

    def batches(self, after: int) -> Iterator[SpooledBatch]:
        """What is in the file, from line ``after`` on."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if number >= after:
                    yield _batch(number, line)

    def remove(self) -> None:
        """All of it is in the database."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _last_change(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _named(values: Values) -> dict[str, Any]:
    """By name and not by place: a version that knows one column more must still read it."""
    return {name: value for name, value in zip(COLUMNS, values, strict=True) if value is not None}


def _line(texts: list[str], unless: Head | None) -> bytes:
    before = "" if unless is None else f'"unless":"{unless}",'
    return f'{{{before}"rows":[{",".join(texts)}]}}\n'.encode("ascii")


def _batch(number: int, line: bytes) -> SpooledBatch:
    try:
        found = json.loads(line)
        unless = found.get("unless")
        rows = [_values(row) for row in found["rows"]]
        return SpooledBatch(number, rows, None if unless is None else parse_head(unless))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return SpooledBatch(number, None)


def _values(row: dict[str, Any]) -> Values:
    """Cleaned once more: what a damaged line says must not keep the database from taking the rest."""
    detail = row.pop("detail", None)
    known = {name: value for name, value in row.items() if name in COLUMNS}
    return AuditRow(**known, detail=None if detail is None else json.loads(detail)).values()


_encode = json.JSONEncoder(separators=(",", ":")).encode
