"""A real clamd, started by the tests with one signature of their own: nothing is fetched for it."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import needs

EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
"""The test string that every scanner knows, in two halves so that none takes this file for a virus."""
SIGNATURE = "Test.Eicar"
FILE_MAX_BYTES, STREAM_MAX_BYTES = 4_000_000, 5_000_000
"""Up to where it looks at a file; up to where it takes one."""
START_SECONDS = 20.0

CONFIGURATION = """\
Foreground yes
DatabaseDirectory {folder}/signatures
TemporaryDirectory {folder}
LogFile {folder}/clamd.log
LogClean yes
TCPAddr 127.0.0.1
TCPSocket {port}
LocalSocket {folder}/clamd.ctl
MaxFileSize {file_max_bytes}
AlertExceedsMax yes
StreamMaxLength {stream_max_bytes}
MaxThreads 4
"""


@dataclass
class Clamd:
    """A running clamd, at an address over TCP and at one on a Unix socket."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"clamd://127.0.0.1:{self.port}"

    @property
    def socket_url(self) -> str:
        return f"clamd://{self.folder}/clamd.ctl"

    @property
    def files_scanned(self) -> int:
        """How many files it came to the end of."""
        return (self.folder / "clamd.log").read_text().count("instream(")

    def connections(self) -> int:
        """How many connections it has over TCP."""
        open_ones = psutil.Process(self.process.pid).net_connections("tcp4")
        return sum(each.status in (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT) for each in open_ones)

    def pause(self) -> None:
        """From now on it takes connections, which its kernel does for it, and does nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as the kernel does when memory is short."""
        self.process.kill()
        self.process.wait()

    def heal(self) -> None:
        """Running, whatever a test did to it."""
        if self.process.poll() is None:
            self.resume()
        else:
            self.process = _start(self.folder)


@contextmanager
def running_clamd(folder: Path) -> Iterator[Clamd]:
    """A clamd on a free port, ended at the end; a test without one is skipped."""
    needs.executable("clamd", "/usr/sbin/clamd")
    (folder / "signatures").mkdir(parents=True)
    (folder / "signatures" / "tests.ndb").write_text(f"{SIGNATURE}:0:*:{EICAR.hex()}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "clamd.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            port=port,
            file_max_bytes=FILE_MAX_BYTES,
            stream_max_bytes=STREAM_MAX_BYTES,
        )
    )
    clamd = Clamd(folder, port, _start(folder))
    try:
        yield clamd
    finally:
        if clamd.process.poll() is None:
            clamd.kill()


def _start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "clamd.out").open("wb") as out:
        process = subprocess.Popen(
            [needs.executable("clamd", "/usr/sbin/clamd"), f"--config-file={folder}/clamd.conf"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        _wait_for(lambda: _answers(folder / "clamd.ctl"), process)
    except AssertionError:
        process.kill()
        process.wait()
        raise AssertionError(f"clamd did not start:\n{(folder / 'clamd.out').read_text()}") from None
    return process


def _answers(path: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        connection.connect(str(path))
        connection.sendall(b"zPING\0")
        return connection.recv(10) == b"PONG\0"
    return False


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError
