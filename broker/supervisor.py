"""Several workers on one listening socket, and the process that looks after them.

A worker is a fork of a process that has loaded everything and opened nothing: it is there in milliseconds
and shares the memory of what was loaded. uvicorn's own supervisor spawns its workers. Each would import all
of it again, and the application would have to be pickled; one that dies at its start is started again twice
a second for ever, and all of them stay behind when their supervisor is killed.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess

from uvicorn.config import STARTUP_FAILURE

from broker.observe import logs

SETTLED_SECONDS = 5.0
"""A worker that dies sooner may die at its start each time."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
PASSED_ON = frozenset({signal.SIGUSR1})
_HANDLED = STOPPING | PASSED_ON


class Supervisor:
    """Keeps ``workers`` processes at ``work``, until it is told to stop or the first of them can't start.

    ``work`` gets a descriptor that can be read once the supervisor is gone, and stops on SIGTERM. What still
    runs ``stop_seconds`` after that is killed. ``listener`` is what all of them listen on.
    """

    def __init__(
        self, work: Callable[[int], None], listener: socket.socket, *, workers: int, stop_seconds: float
    ) -> None:
        self._work = work
        self._listener = listener
        self._wanted = workers
        self._stop_seconds = stop_seconds
        self._workers: dict[ForkProcess, float] = {}
        """And when each was started, by the monotonic clock."""
        self._has_settled = False
        self._early_deaths = 0
        self._start_again_at = 0.0
        self._kill_at: float | None = None
        """When the time to stop is over; None as long as nobody is to stop."""
        self._exit_code = 0
        self._lifeline, self._life = os.pipe()

    def run(self) -> int:
        """The exit code: 0 when it was told to stop, else that of the worker that could not start."""
        with _arriving_signals() as signals:
            while self._kill_at is None or self._workers:
                self._start_what_is_missing()
                sentinels = [worker.sentinel for worker in self._workers]
                wait([signals, *sentinels], self._patience_seconds())
                for number in _read(signals):
                    self._take(number)
                self._bury_the_dead()
                self._kill_the_late()
        return self._exit_code

    def _start_what_is_missing(self) -> None:
        if self._kill_at is not None or time.monotonic() < self._start_again_at:
            return
        while len(self._workers) < self._wanted:
            worker = multiprocessing.get_context("fork").Process(target=self._be_a_worker)
            try:
                with _no_signals():  # it has its parent's handlers until it has taken them off
                    worker.start()
            except OSError as error:  # no memory, or as many processes as there may be
                pause_seconds = self._pause_seconds_after(0.0)
                logs.warning("a worker can't be made", reason=error.strerror, next_in_seconds=pause_seconds)
                return
            self._workers[worker] = time.monotonic()
            logs.info("worker started", worker=worker.pid)

    def _be_a_worker(self) -> None:
        _forget_handlers()
        os.close(self._life)
        try:
            self._work(self._lifeline)
        except Exception as error:
            logs.unexpected(error)
            raise SystemExit(1) from None

    def _patience_seconds(self) -> float | None:
        """How long there is nothing to do unless something happens; None for ever."""
        due = self._kill_at
        if due is None:
            due = self._start_again_at if len(self._workers) < self._wanted else math.inf
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _take(self, number: int) -> None:
        if number in PASSED_ON:
            self._tell_all(number)
        elif self._kill_at is None:
            logs.info("stopping", signal=signal.Signals(number).name)
            self._stop()
        elif number == signal.SIGINT:  # once more: whoever asks again does not want to wait
            self._kill_at = time.monotonic()

    def _stop(self) -> None:
        self._kill_at = time.monotonic() + self._stop_seconds
        self._listener.close()  # or callers would queue up for nobody
        self._tell_all(signal.SIGTERM)

    def _tell_all(self, number: int) -> None:
        for worker in self._workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, number)

    def _bury_the_dead(self) -> None:
        for worker, started_at in list(self._workers.items()):
            if worker.exitcode is not None:
                del self._workers[worker]
                self._take_note(worker, time.monotonic() - started_at)
                worker.close()

    def _take_note(self, worker: ForkProcess, lived_seconds: float) -> None:
        if self._kill_at is not None:
            logs.info("worker stopped", worker=worker.pid, exit_code=worker.exitcode)
            return
        self._has_settled |= lived_seconds >= SETTLED_SECONDS
        if worker.exitcode == STARTUP_FAILURE and not self._has_settled:
            logs.warning("a worker can't start, so none is started again", worker=worker.pid)
            self._exit_code = STARTUP_FAILURE
            self._stop()
            return
        pause_seconds = self._pause_seconds_after(lived_seconds)
        logs.warning(
            "worker died",
            worker=worker.pid,
            exit_code=worker.exitcode,
            next_in_seconds=round(pause_seconds, 1),
        )

    def _pause_seconds_after(self, lived_seconds: float) -> float:
        """One that worked is replaced at once, and so is the first that did not; after that it takes longer
        each time. Those that die during a pause count once.
        """
        now = time.monotonic()
        if now >= self._start_again_at:
            self._early_deaths = self._early_deaths + 1 if lived_seconds < SETTLED_SECONDS else 0
            doublings = self._early_deaths - 2
            pause_seconds = FIRST_PAUSE_SECONDS * 2**doublings if doublings >= 0 else 0.0
            self._start_again_at = now + min(pause_seconds, MAX_PAUSE_SECONDS)
        return max(0.0, self._start_again_at - now)

    def _kill_the_late(self) -> None:
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            for worker in self._workers:
                logs.warning("worker killed, its time to stop is over", worker=worker.pid)
                worker.kill()
            self._kill_at = math.inf


@contextmanager
def _arriving_signals() -> Iterator[socket.socket]:
    """Gives a byte for each of our signals that comes: its number."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in _HANDLED}
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


def _read(signals: socket.socket) -> bytes:
    try:
        return signals.recv(256)
    except BlockingIOError:
        return b""


@contextmanager
def _no_signals() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget_handlers() -> None:
    """A worker hears SIGTERM, and what the server will listen to. A terminal sends SIGINT and SIGHUP to all
    its processes, and those are for the supervisor to take.
    """
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
