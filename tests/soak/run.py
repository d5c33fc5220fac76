"""A soak: warm up, let it rain, see whether the sun comes out, and close the books."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.sandbox.launch import in_subprocess
from broker.settings import Settings
from tests.soak.accounting import Books
from tests.soak.clients import Clients, Kind, Result
from tests.soak.gauges import settled
from tests.soak.plan import FIRST_OUT_OF_RAIN, Upload, sound_uploads, uploads
from tests.soak.weather import Outage, Weather
from tests.support.broker_process import Broker, running_broker
from tests.support.sandbox_control import SandboxControl

AT_ONCE = 24
STARTS_PER_SECOND = 40
"""Bounds what the run takes of the machine; the broker could do more."""
COLLECT_SECONDS = 10.0
SOUND_UPLOADS = 96
"""Before the rain and after it: all of these must be stored."""
LONG_SECONDS = 60
CLEARING_SECONDS = 30.0
"""How long after the rain to wait for the first upload that is stored."""


def default(name: str) -> str:
    """What a broker has that is not told otherwise."""
    return str(Settings.model_fields[name.lower()].default)


SETTINGS = {
    "BROKER_CLIENT_IDLE_SECONDS": "5",
    "BROKER_READ_TIMEOUT_SECONDS": "4",
    "BROKER_CONNECT_TIMEOUT_SECONDS": "5",
    "BROKER_POOL_WAIT_SECONDS": "10",
    "BROKER_MAX_UPSTREAM_CONNECTIONS": "12",
    "ENABLE_RATE_LIMIT": "false",
    # The tests' brokers have neither; this one is to live with both.
    **{name: default(name) for name in ("BROKER_BREAKER_FAILURES", "BROKER_UPSTREAM_PAUSE_SECONDS")},
    # With ten seconds, the default, most uploads of a run would be refused, and little be told by the others.
    "BROKER_BREAKER_OPEN_SECONDS": "2",
    # The faults ask for pauses of one or two seconds, and some uploads are to find one too long.
    "BROKER_UPSTREAM_WAIT_SECONDS": "1",
}


@dataclass(frozen=True)
class Soak:
    """One run's measures. The first part of a long one belongs to the warm-up: each kind of fault brings
    code and buffers with it that stay.
    """

    seconds: float
    seed: int
    folder: Path

    @property
    def warm_up_seconds(self) -> float:
        return self.seconds / 4 if self.seconds >= LONG_SECONDS else 0.0


def run(soak: Soak) -> Books:
    """Run it to its end; the broker's log and data are in the run's folder."""
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(in_subprocess())
        sandbox = SandboxControl(process.base_url, dict(process.environment))
        with running_broker(soak.folder, sandbox.environment, **SETTINGS) as broker:
            return asyncio.run(_run(soak, broker, sandbox, stack))


async def _run(
    soak: Soak, broker: Broker, sandbox: SandboxControl, sandbox_process: contextlib.ExitStack
) -> Books:
    pid, port = broker.process.pid, int(broker.url.rpartition(":")[2])
    load, some = _Load(Clients(broker), sandbox), uploads(soak.seed)
    await load.all_of(sound_uploads(soak.seed, FIRST_OUT_OF_RAIN, SOUND_UPLOADS))
    await load.in_the_rain(some, soak.warm_up_seconds, soak.seed)
    before = await settled(pid, port)
    await load.in_the_rain(some, soak.seconds - soak.warm_up_seconds, soak.seed + 1)
    await load.all_of(sound_uploads(soak.seed + 1, FIRST_OUT_OF_RAIN + SOUND_UPLOADS, SOUND_UPLOADS))
    await settled(pid, port)
    stored = await load.stored()
    await asyncio.to_thread(sandbox_process.close)  # so that no connection to it is kept for later
    after = await settled(pid, port, upstream_is_gone=True)
    recoveries = [load.recovery_seconds(outage) for outage in load.outages]
    return Books(load.asked, load.results, broker.log_lines(), stored, before, after, recoveries)


class _Load:
    """Uploads, so many at once and so many a second, and what is known of them."""

    def __init__(self, clients: Clients, sandbox: SandboxControl) -> None:
        self.asked = 0
        self.results: list[Result] = []
        self.outages: list[Outage] = []
        self._stored_times: list[tuple[float, float]] = []
        """From when to when each upload took that was stored."""
        self._clients = clients
        self._sandbox = sandbox
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._seen: dict[str, dict[str, Any]] = {}

    async def all_of(self, some: Iterable[Upload]) -> None:
        """Each of these; all of them are sound, and no fault is ordered."""
        await asyncio.gather(*(self._upload(each) for each in some))

    async def in_the_rain(self, some: Iterator[Upload], seconds: float, seed: int) -> None:
        """Uploads of all manners under faults, until the time is up and all of them have ended.

        Then one after another until it has cleared up: a breaker may be open still.
        """
        weather = Weather(self._sandbox.url, seed)
        faults = asyncio.create_task(weather.changing())
        collecting = asyncio.create_task(self._collecting())
        ends_at = time.monotonic() + seconds
        try:
            async with asyncio.TaskGroup() as group:
                while time.monotonic() < ends_at:
                    group.create_task(self._upload(next(some)))
                    await asyncio.sleep(1 / STARTS_PER_SECOND)
                    async with self._gate:
                        pass  # there is a place for the next
        finally:
            await _ended(faults, collecting)
        await weather.cleared()
        self.outages += weather.outages
        await self._until_one_is_stored(each for each in some if each.manner == "sound")

    async def stored(self) -> list[dict[str, Any]]:
        """Every file that the sandbox stored, as it recorded it."""
        await self._collect()
        return [event for event in self._seen.values() if event["outcome"] == "stored"]

    def recovery_seconds(self, outage: Outage) -> float | None:
        """From its end to that of the first upload that began after it and was stored; None without one."""
        ends = [ended for began, ended in self._stored_times if began >= outage.ended_at]
        return min(ends) - outage.ended_at if ends else None

    async def _until_one_is_stored(self, some: Iterator[Upload]) -> None:
        give_up = time.monotonic() + CLEARING_SECONDS
        while await self._upload(next(some)) != "stored" and time.monotonic() < give_up:
            await asyncio.sleep(1 / STARTS_PER_SECOND)

    async def _upload(self, upload: Upload) -> Kind:
        async with self._gate:
            self.asked += 1
            began = time.monotonic()
            result = await self._clients.upload(upload)
            self.results.append(result)
            if result.kind == "stored":
                self._stored_times.append((began, time.monotonic()))
            return result.kind

    async def _collecting(self) -> None:
        """The sandbox remembers so much and no more."""
        while True:
            await asyncio.sleep(COLLECT_SECONDS)
            await self._collect()

    async def _collect(self) -> None:
        for event in await asyncio.to_thread(self._sandbox.events, kind="upload"):
            self._seen[event["logid"]] = event


async def _ended(*tasks: asyncio.Task[None]) -> None:
    """Cancel what runs beside the uploads. Raises what one of them failed with before."""
    for task in tasks:
        task.cancel()
    for error in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(error, Exception):
            raise error
