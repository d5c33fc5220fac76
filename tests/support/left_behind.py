"""What a request leaves behind in a broker: nothing, but for an idle connection to Coze.

The broker counts what it holds when it is asked to by SIGUSR1; the system tells of its open files.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.broker_process import Broker, running

SECONDS = 5.0
MUST_BE_NONE = (
    "requests",
    "uploads_in_flight",
    "uploads_running",
    "uploads_waiting",
    "coze_connections_in_use",
    "database_connections_in_use",
)
"""Zero whenever nobody calls, whatever was before."""


@dataclass(frozen=True)
class Inside:
    """What a broker holds; ``sockets`` and ``files`` beyond what its counts and its database explain."""

    counts: dict[str, int]
    sockets: int
    files: tuple[str, ...]

    def busy(self) -> dict[str, int]:
        """What is not zero though nobody calls."""
        return {name: self.counts[name] for name in MUST_BE_NONE if self.counts[name]}

    def more_than(self, before: Inside) -> dict[str, object]:
        """What is here and was not there."""
        more: dict[str, object] = dict(self.busy())
        for name in ("tasks", "client_connections"):
            if self.counts[name] > before.counts[name]:
                more[name] = self.counts[name] - before.counts[name]
        if self.sockets > before.sockets:
            more["sockets"] = self.sockets - before.sockets
        if files := [file for file in self.files if file not in before.files]:
            more["files"] = files
        return more


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Every broker that runs now holds no more at the end than at the beginning."""
    before = [(broker, at_rest(broker)) for broker in running()]
    yield
    for broker, inside in before:
        if broker.process.poll() is None:
            assert_no_more(broker, inside)


def at_rest(broker: Broker) -> Inside:
    """What a broker holds once it is done with all that was asked of it."""
    give_up = time.monotonic() + SECONDS
    inside = look_inside(broker)
    while inside.busy() and time.monotonic() < give_up:
        inside = look_inside(broker)
    assert not inside.busy(), f"busy before the test began: {inside.busy()}"
    return inside


def assert_no_more(broker: Broker, before: Inside, seconds: float = SECONDS) -> None:
    """It holds no more than before, at once or within ``seconds``."""
    give_up = time.monotonic() + seconds
    more = look_inside(broker).more_than(before)
    while more and time.monotonic() < give_up:
        time.sleep(0.02)
        more = look_inside(broker).more_than(before)
    assert not more, f"left behind: {more}"


def look_inside(broker: Broker) -> Inside:
    """A snapshot, and the process's open files."""
    counts = snapshot(broker)
    names = _open_files(broker.process.pid)
    known = ("client_connections", "coze_connections_in_use", "coze_connections_idle")
    sockets = sum(name.startswith("socket:") for name in names) - sum(counts[name] for name in known)
    database = broker.environment["BROKER_DATA_DIR"] + "/broker.db"
    files = sorted(name for name in names if name.startswith("/") and not name.startswith(database))
    return Inside(counts, sockets, tuple(files))


def snapshot(broker: Broker) -> dict[str, int]:
    """What the broker says that it holds."""
    start = broker.log.stat().st_size
    os.kill(broker.process.pid, signal.SIGUSR1)
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        with broker.log.open("rb") as log:
            log.seek(start)
            for line in log:
                if line.endswith(b"\n") and b'"event": "snapshot"' in line:
                    return {name: n for name, n in json.loads(line).items() if isinstance(n, int)}
        time.sleep(0.002)
    raise AssertionError("no snapshot")


def _open_files(pid: int) -> list[str]:
    names = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.append(str(file.readlink()))
    return names
