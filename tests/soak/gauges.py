"""What a process holds: memory, connections, and whatever else it has open."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import psutil

SETTLE_SECONDS = 15.0
LOOKS, LOOK_SECONDS = 20, 0.05
DATABASE = "broker.db"


@dataclass(frozen=True)
class Level:
    """One look at a process. ``other_files`` are all its file descriptors but these connections and the
    database's.
    """

    memory_bytes: int
    client_connections: int
    upstream_connections: int
    database_files: int
    other_files: int


def level(pid: int, port: int) -> Level:
    """What the process that listens on ``port`` holds now."""
    process = psutil.Process(pid)
    connections = [each for each in process.net_connections("tcp") if each.raddr]
    from_clients = sum(each.laddr.port == port for each in connections)
    files, database_files = _fewest(process)
    return Level(
        memory_bytes=process.memory_info().rss,
        client_connections=from_clients,
        upstream_connections=len(connections) - from_clients,
        database_files=database_files,
        other_files=files - database_files - len(connections),
    )


async def settled(pid: int, port: int, *, upstream_is_gone: bool = False) -> Level:
    """The level once nobody is connected any more, or when it was waited for long enough."""
    give_up = time.monotonic() + SETTLE_SECONDS
    while True:
        now = level(pid, port)
        is_quiet = now.client_connections == 0 and not (upstream_is_gone and now.upstream_connections)
        if is_quiet or time.monotonic() > give_up:
            return now
        await asyncio.sleep(0.1)


def _fewest(process: psutil.Process) -> tuple[int, int]:
    """All and the database's, of several looks: what works in the background opens a file of the database
    now and then.
    """
    looks = []
    for _ in range(LOOKS):
        looks.append((process.num_fds(), sum(DATABASE in file.path for file in process.open_files())))
        time.sleep(LOOK_SECONDS)
    return min(looks)
