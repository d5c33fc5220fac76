"""What a process uses: its CPU clock, and the most memory it held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

SAMPLE_SECONDS = 0.01


@dataclass
class Used:
    """CPU and wall-clock time of a block, in seconds; known at its end."""

    cpu_seconds: float = 0.0
    seconds: float = 0.0


@contextmanager
def measured(pid: int) -> Iterator[Used]:
    """What a process and its children use while the block runs."""
    pids, used = _with_children(pid), Used()
    cpu, start = _cpu_seconds(pids), time.perf_counter()
    yield used
    used.seconds, used.cpu_seconds = time.perf_counter() - start, _cpu_seconds(pids) - cpu


@dataclass
class Held:
    """Resident memory in bytes: before a block, and the most while it ran."""

    idle_bytes: int
    peak_bytes: int

    @property
    def over_idle_bytes(self) -> int:
        return self.peak_bytes - self.idle_bytes


@contextmanager
def memory_of(pid: int) -> Iterator[Held]:
    """Looks at a process every few milliseconds while the block runs, from a thread of its own."""
    memory = psutil.Process(pid).memory_info
    held, ended = Held(memory().rss, 0), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            held.peak_bytes = max(held.peak_bytes, memory().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield held
    finally:
        ended.set()
        watcher.join()
        held.peak_bytes = max(held.peak_bytes, memory().rss)


def _with_children(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _cpu_seconds(pids: list[int]) -> float:
    """From each process's CPU clock (clock_getcpuclockid(3)); /proc counts in hundredths of a second."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)
