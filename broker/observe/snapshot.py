"""What the process holds right now, as one log line on SIGUSR1: ``kill -USR1`` before and after tells a leak.

A signal is the process's, so the list of what is counted is too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from broker.observe import logs

Count = Callable[[], int]

_counts: dict[str, Count] = {}


def count(name: str, how_many: Count) -> None:
    """Have ``how_many()`` in every snapshot as ``name``. A name that is there already is replaced."""
    _counts[name] = how_many


def take() -> dict[str, int]:
    """Everything that is counted, and the process's tasks, open files and resident memory in bytes."""
    known = {"tasks": len(asyncio.all_tasks()), **_of_process()}
    return known | {name: how_many() for name, how_many in _counts.items()}


def on_signal(loop: asyncio.AbstractEventLoop) -> None:
    """Log a snapshot whenever SIGUSR1 comes; does nothing where there is no such signal."""
    if hasattr(signal, "SIGUSR1"):
        loop.add_signal_handler(signal.SIGUSR1, lambda: logs.info("snapshot", **take()))


def _of_process() -> dict[str, int]:
    """What Linux tells of the process; nothing elsewhere."""
    files, memory = Path("/proc/self/fd"), Path("/proc/self/statm")
    if not memory.exists():
        return {}
    pages = int(memory.read_text().split()[1])
    return {
        "open_files": sum(1 for _ in files.iterdir()),
        "memory_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }
