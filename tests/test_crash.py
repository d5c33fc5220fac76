"""The process is killed, the disk is full, the clock jumps: nothing is half done, all is well afterwards."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support import needs
from tests.support.broker_process import Broker, running_broker
from tests.support.bystander import bystander
from tests.support.raw_http import Connection, head
from tests.support.refusals import PROXY
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for

CSV = b"a,b\n1,2\n"
DATA = {
    *("broker.db", "broker.db-shm", "broker.db-wal", "broker.db-generation"),
    *("key-pepper", "signing-keys.pem"),
}
"""All that may lie in the data folder."""


LENGTH = 1_000_000
"""Of an upload that is too large to be read whole before Coze hears of it."""


def upload(broker: Broker, credential: str, content: bytes = CSV) -> httpx.Response:
    return httpx.post(
        broker.url + PROXY,
        files={"file": ("a.csv", content)},
        headers={"Authorization": f"Bearer {credential}"},
        timeout=30,
    )


def mint(broker: Broker, size: int = LENGTH) -> str:
    return str(broker.mint(size=size, route="proxy")["access_token"])


def begin_upload(broker: Broker, credential: str) -> Connection:
    """An upload with a body that does not come to its end."""
    connection = Connection(broker.url)
    headers = {
        "Authorization": f"Bearer {credential}",
        "Content-Type": "text/csv",
        "Content-Disposition": 'attachment; filename="a.csv"',
        "Content-Length": str(LENGTH),
    }
    connection.send(head(PROXY, [*headers.items()]) + CSV * 1024)
    return connection


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, str(response.json().get("code", "ok"))


# --- killed ---------------------------------------------------------------------------------------


def test_a_broker_that_was_killed_midway_starts_again(folder: Path, sandbox: SandboxControl) -> None:
    """SIGKILL leaves it no last word: no file at Coze, none on disk, and the next token is as good as any."""
    temporary = folder / "tmp"
    temporary.mkdir()
    settings = {"TMPDIR": str(temporary), "BROKER_PUBLIC_URL": "https://uploads.example"}
    with running_broker(folder, sandbox.environment, **settings) as broker:
        spent, unspent = mint(broker), mint(broker)
        connections = [begin_upload(broker, credential) for credential in (spent, broker.secret_key)]
        sandbox.wait_for(lambda: sum(event["body_bytes"] > 0 for event in sandbox.events(kind="upload")) == 2)
        broker.process.kill()
        broker.process.wait(10)
        for connection in connections:
            with connection, pytest.raises((ConnectionError, IndexError)):
                connection.answer()
    sandbox.wait_for(lambda: len(sandbox.events(kind="upload", outcome="aborted")) == 2)
    assert sandbox.events(kind="upload", outcome="stored") == []
    with running_broker(folder, sandbox.environment, **settings) as again:
        assert code(upload(again, unspent)) == (200, "ok")
        assert code(upload(again, mint(again))) == (200, "ok")
        assert code(upload(again, broker.secret_key)) == (200, "ok")
        # It was spent before Coze heard of the file; what became of that, nobody is left to tell.
        assert code(upload(again, spent)) == (401, "token_used")
    assert list(temporary.iterdir()) == []
    assert {file.name for file in (folder / "data").iterdir()} <= DATA


# --- the disk -------------------------------------------------------------------------------------


def test_a_large_upload_never_touches_the_disk(folder: Path, sandbox: SandboxControl) -> None:
    temporary = folder / "tmp"
    temporary.mkdir()
    with running_broker(folder, sandbox.environment, TMPDIR=str(temporary)) as broker:
        process, data = psutil.Process(broker.process.pid), folder / "data"
        size = sum(file.stat().st_size for file in data.iterdir())
        written = process.io_counters().write_bytes
        seen: set[str] = set()
        with bystander(broker, sandbox), watching(lambda: seen.update(open_files(process))):
            content = b"x" * 100_000_000
            assert upload(broker, broker.secret_key, content).status_code == 200
        assert {name for name in seen if not name.startswith(str(data / "broker.db"))} <= {str(broker.log)}
        assert list(temporary.iterdir()) == []
        assert {file.name for file in data.iterdir()} <= DATA
        assert sum(file.stat().st_size for file in data.iterdir()) - size < 1_000_000
        assert process.io_counters().write_bytes - written < 1_000_000


def open_files(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error, FileNotFoundError):
        return [file.path for file in process.open_files()]
    return []


@contextmanager
def watching(look: Callable[[], object]) -> Iterator[None]:
    """Looks again and again, from before to after."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


Full = Callable[[Broker], contextlib.AbstractContextManager[None]]


@pytest.fixture
def full_disk(folder: Path) -> Iterator[Full]:
    """Fills the disk that ``folder``'s data lies on: a small one of its own where it may be mounted,
    otherwise by the limit that the system sets to the files of a process.
    """
    data = folder / "data"
    data.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(data)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield (lambda _: ballast_in(data)) if mounted else (lambda broker: no_larger_files(broker, data))
    if mounted:
        subprocess.run(["umount", str(data)], check=True)


@contextmanager
def ballast_in(data: Path) -> Iterator[None]:
    ballast = data / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def no_larger_files(broker: Broker, data: Path) -> Iterator[None]:
    process = psutil.Process(broker.process.pid)
    _, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, ((data / "broker.db-wal").stat().st_size, hard))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_shuts_and_opens_again(folder: Path, sandbox: SandboxControl, full_disk: Full) -> None:
    """Who can't be shown to come for the first time is not let in, and has lost nothing by it."""
    with running_broker(folder, sandbox.environment) as broker:
        token = mint(broker)
        with full_disk(broker):
            for _ in range(3):
                assert code(upload(broker, token)) == (503, "store_unavailable")
            assert sandbox.events(kind="upload") == []
            assert httpx.get(f"{broker.url}/health").status_code == 200
            ready = httpx.get(f"{broker.url}/ready")
            assert (ready.status_code, ready.json()["checks"]["store"]) == (503, "store_unavailable")
            assert code(upload(broker, broker.secret_key)) == (200, "ok"), "no claim, no write"
        wait_for(lambda: httpx.get(f"{broker.url}/ready").status_code == 200)
        assert code(upload(broker, token)) == (200, "ok")
        assert code(upload(broker, token)) == (401, "token_used")


# --- the clock ------------------------------------------------------------------------------------


class Clock:
    """The wall clock of one process and its children; the time that goes by is left as it is."""

    def __init__(self, file: Path) -> None:
        needs.executable("faketime")
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": needs.executable("/usr/lib/*/faketime/libfaketimeMT.so.1"),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_seconds: int) -> None:
        """From now on it is so much later than it is; swapped in whole, for it is read all the time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_seconds:+d}")
        new.replace(self._file)


@pytest.fixture
def clock(folder: Path) -> Clock:
    return Clock(folder / "clock")


HOUR = 3600


@pytest.fixture
def broker_by_clock(folder: Path, clock: Clock, sandbox: SandboxControl) -> Iterator[Broker]:
    """A broker that takes its time from ``clock``; Coze has the real one."""
    settings = {name: sandbox.environment[name] for name in ("COZE_API_BASE", "COZE_API_TOKEN")}
    with running_broker(folder, settings, **clock.environment) as broker:
        yield broker


@pytest.mark.parametrize("jump_seconds", [HOUR, -HOUR])
def test_a_jump_of_the_clock_does_not_hurt_what_runs(
    broker_by_clock: Broker, clock: Clock, sandbox: SandboxControl, jump_seconds: int
) -> None:
    """Whoever was let in may finish; how long it took is not asked of the wall clock."""
    with bystander(broker_by_clock, sandbox), begin_upload(broker_by_clock, mint(broker_by_clock)) as mine:
        sandbox.wait_for(lambda: [event["body_bytes"] > 0 for event in sandbox.events()] == [True, True])
        clock.set(jump_seconds)
        assert httpx.get(f"{broker_by_clock.url}/ready").status_code == 200
        mine.send(b"x" * (LENGTH - len(CSV * 1024)))
        answer = mine.answer()
    assert answer.status_code == 200, answer.text
    for record in (line for line in broker_by_clock.log_lines() if line.get("path") == PROXY):
        assert (record["status"], 0 <= record["seconds"] < 60) == (200, True), record


def test_a_token_s_life_is_told_by_the_clock(broker_by_clock: Broker, clock: Clock) -> None:
    token = mint(broker_by_clock)
    clock.set(HOUR)
    assert code(upload(broker_by_clock, token)) == (401, "expired_credential")
    clock.set(-HOUR)
    assert code(upload(broker_by_clock, token)) == (401, "invalid_credential"), "it is not born yet"
    clock.set(0)
    assert code(upload(broker_by_clock, token)) == (200, "ok")


def test_a_clock_that_jumps_ahead_and_back_makes_no_token_fresh(
    broker_by_clock: Broker, clock: Clock
) -> None:
    used = mint(broker_by_clock)
    assert code(upload(broker_by_clock, used)) == (200, "ok")
    clock.set(HOUR)
    assert code(upload(broker_by_clock, mint(broker_by_clock))) == (200, "ok"), "old claims are swept here"
    clock.set(0)
    assert code(upload(broker_by_clock, used)) == (401, "token_used")
