"""Several workers on one socket: each serves, one that dies is replaced, all stop when they are told to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.broker_process import Broker, clean_environment, run_command
from tests.support.raw_http import Connection, head
from tests.support.sandbox_control import SandboxControl
from tests.support.waiting import wait_for
from tests.support.workers import running_workers, served_by, worker_pids

LENGTH = 1_000_000
START = b"a,b\n" * 1024
SMALL = {"file": ("a.csv", b"1")}


@pytest.fixture
def two_workers(folder: Path, sandbox: SandboxControl) -> Iterator[Broker]:
    """A broker to be hurt."""
    with running_workers(folder, sandbox.environment) as broker:
        wait_for(lambda: len(started(broker)) == 2)
        yield broker


@pytest.fixture(scope="module")
def peaceful_workers(
    session_sandbox: SandboxControl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Broker]:
    """A broker that none of the tests hurts."""
    with running_workers(tmp_path_factory.mktemp("workers"), session_sandbox.environment) as broker:
        wait_for(lambda: len(started(broker)) == 2)
        yield broker


def started(broker: Broker) -> list[dict[str, Any]]:
    return logged(broker, "Application startup complete.")


def logged(broker: Broker, event: str) -> list[dict[str, Any]]:
    return [line for line in broker.log_lines() if line["event"] == event]


def begin_upload(broker: Broker) -> Connection:
    connection = Connection(broker.url)
    headers = {
        **broker.auth(),
        "Content-Type": "text/csv",
        "Content-Disposition": 'attachment; filename="a.csv"',
        "Content-Length": str(LENGTH),
    }
    connection.send(head("/proxy/upload", [*headers.items()]) + START)
    return connection


def begin_uploads(broker: Broker, sandbox: SandboxControl, number: int) -> list[Connection]:
    """So many uploads, each of which has reached Coze."""
    begun = [begin_upload(broker) for _ in range(number)]
    open_ones = {"kind": "upload", "outcome": "open"}
    wait_for(lambda: sum(event["body_bytes"] > 0 for event in sandbox.events(**open_ones)) == number)
    return begun


def finish(upload: Connection) -> httpx.Response | None:
    """Send the rest; None when whoever served it is gone."""
    with contextlib.suppress(ConnectionError, IndexError), upload:
        upload.send(b"x" * (LENGTH - len(START)))
        return upload.answer()
    return None


def uploads_of(broker: Broker, pid: int) -> int:
    """How many callers' connections a worker holds."""
    port = int(broker.url.rpartition(":")[2])
    connections = psutil.Process(pid).net_connections("tcp")
    return sum(bool(each.raddr) and each.laddr.port == port for each in connections)


# --- serving ----------------------------------------------------------------------------------------------


def test_each_worker_serves(peaceful_workers: Broker) -> None:
    """And a line of the log says which of them wrote it."""
    pids = worker_pids(peaceful_workers)
    assert len(pids) == 2
    for pid in pids:
        with served_by(peaceful_workers, pid) as client:
            answer = client.post("/proxy/upload", files=SMALL)
            assert answer.status_code == 200, answer.text
            assert peaceful_workers.record(answer.json()["request_id"])["pid"] == pid
    assert all(line["pid"] in (*pids, peaceful_workers.process.pid) for line in peaceful_workers.log_lines())


def test_a_burst_is_shared_out(peaceful_workers: Broker) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"{peaceful_workers.url}/health"), range(64)))
    assert {answer.status_code for answer in answers} == {200}
    peaceful_workers.record(answers[-1].headers["x-request-id"])
    assert {line["pid"] for line in logged(peaceful_workers, "request")} == set(worker_pids(peaceful_workers))


def test_a_token_is_good_once_whichever_worker_it_comes_to(peaceful_workers: Broker) -> None:
    first, second = worker_pids(peaceful_workers)
    token = peaceful_workers.mint(size=1, route="proxy")["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    with served_by(peaceful_workers, first) as one, served_by(peaceful_workers, second) as other:
        assert one.post("/proxy/upload", files=SMALL, headers=headers).status_code == 200
        assert other.post("/proxy/upload", files=SMALL, headers=headers).json()["code"] == "token_used"


# --- one dies ---------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(
    two_workers: Broker, sandbox: SandboxControl
) -> None:
    uploads = begin_uploads(two_workers, sandbox, 8)
    victim, survivor = worker_pids(two_workers)
    kept = uploads_of(two_workers, survivor)
    os.kill(victim, signal.SIGKILL)
    died = wait_for(lambda: logged(two_workers, "worker died"))
    assert (died[0]["worker"], died[0]["exit_code"]) == (victim, -signal.SIGKILL)
    wait_for(lambda: len(started(two_workers)) == 3)
    assert len(worker_pids(two_workers)) == 2
    assert victim not in worker_pids(two_workers)
    answers = [finish(upload) for upload in uploads]
    stored = [answer for answer in answers if answer is not None]
    assert [answer.status_code for answer in stored] == [200] * kept
    digest = hashlib.sha256(START + b"x" * (LENGTH - len(START))).hexdigest()
    assert {answer.json()["sha256"] for answer in stored} <= {digest}
    wait_for(lambda: len(sandbox.events(kind="upload", outcome="aborted")) == 8 - kept)
    assert len(sandbox.events(kind="upload", outcome="stored")) == kept
    with served_by(two_workers, worker_pids(two_workers)[-1]) as client:
        assert client.post("/proxy/upload", files=SMALL).status_code == 200


def test_uploads_of_the_other_worker_are_stored_when_one_is_killed(
    two_workers: Broker, sandbox: SandboxControl
) -> None:
    """Each of the two holds one for certain."""
    victim, survivor = worker_pids(two_workers)
    with served_by(two_workers, victim) as lost, served_by(two_workers, survivor) as kept:
        sandbox.fail(path="/v1/files/upload", delay_seconds=2, times=2)
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(each.post, "/proxy/upload", files=SMALL) for each in (lost, kept)]
            wait_for(lambda: len(sandbox.events(kind="upload")) == 2)
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(httpx.TransportError):
                answers[0].result()
            assert answers[1].result().status_code == 200


def test_a_worker_that_is_told_to_stop_finishes_and_is_replaced(
    two_workers: Broker, sandbox: SandboxControl
) -> None:
    upload = begin_uploads(two_workers, sandbox, 1)[0]
    pids = worker_pids(two_workers)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    answer = finish(upload)
    assert answer is not None
    assert answer.status_code == 200
    wait_for(lambda: len(worker_pids(two_workers)) == 2 and not {*worker_pids(two_workers)} & {*pids})
    assert httpx.get(f"{two_workers.url}/health").status_code == 200


# --- all stop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("to", ["the first process", "all of them"])
def test_what_runs_may_finish_when_the_broker_is_told_to_stop(
    two_workers: Broker, sandbox: SandboxControl, number: signal.Signals, to: str
) -> None:
    """A terminal tells all of its processes."""
    uploads = begin_uploads(two_workers, sandbox, 4)
    pids = worker_pids(two_workers)
    for pid in (two_workers.process.pid, *(pids if to == "all of them" else [])):
        os.kill(pid, number)
    wait_for(lambda: refuses_connections(two_workers))
    answers = [finish(upload) for upload in uploads]
    assert [answer and answer.status_code for answer in answers] == [200] * 4
    assert two_workers.process.wait(10) == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    said = two_workers.log.read_text()
    assert '"level": "error"' not in said
    assert "Traceback" not in said


def refuses_connections(broker: Broker) -> bool:
    try:
        httpx.get(f"{broker.url}/health")
    except httpx.TransportError:
        return True
    return False


def test_a_second_ctrl_c_ends_all_at_once(two_workers: Broker, sandbox: SandboxControl) -> None:
    uploads = begin_uploads(two_workers, sandbox, 4)
    pids = worker_pids(two_workers)
    two_workers.process.send_signal(signal.SIGINT)
    wait_for(lambda: refuses_connections(two_workers))
    two_workers.process.send_signal(signal.SIGINT)
    assert two_workers.process.wait(5) == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [finish(upload) for upload in uploads] == [None] * 4


def test_what_runs_beyond_its_grace_is_told_so(folder: Path, sandbox: SandboxControl) -> None:
    with running_workers(folder, sandbox.environment, BROKER_SHUTDOWN_GRACE_SECONDS="1") as broker:
        uploads = begin_uploads(broker, sandbox, 4)
        broker.process.terminate()
        with ExitStack() as stack:
            answers = [stack.enter_context(upload).answer() for upload in uploads]
        assert broker.process.wait(15) == 0
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "shutting_down")}


def test_a_worker_that_hangs_does_not_hold_the_others_up(folder: Path, sandbox: SandboxControl) -> None:
    """It can't stop by itself; it is killed when its time is over."""
    with running_workers(folder, sandbox.environment, BROKER_SHUTDOWN_GRACE_SECONDS="0") as broker:
        hanging, _ = worker_pids(broker)
        os.kill(hanging, signal.SIGSTOP)
        broker.process.terminate()
        assert broker.process.wait(30) == 0
        (line,) = logged(broker, "worker killed, its time to stop is over")
        assert line["worker"] == hanging
        assert not psutil.pid_exists(hanging)


def test_workers_whose_supervisor_is_gone_finish_and_stop(
    two_workers: Broker, sandbox: SandboxControl
) -> None:
    uploads = begin_uploads(two_workers, sandbox, 4)
    pids = worker_pids(two_workers)
    two_workers.process.kill()
    two_workers.process.wait(10)
    wait_for(lambda: refuses_connections(two_workers))
    answers = [finish(upload) for upload in uploads]
    assert [answer and answer.status_code for answer in answers] == [200] * 4
    wait_for(lambda: not any(is_running(pid) for pid in pids))
    assert len(logged(two_workers, "the supervisor is gone, so this worker stops")) == 2


def is_running(pid: int) -> bool:
    """A process that ended is a zombie until its new parent asks after it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


# --- the rest ---------------------------------------------------------------------------------------------


def test_a_snapshot_comes_from_each_worker(peaceful_workers: Broker) -> None:
    peaceful_workers.process.send_signal(signal.SIGUSR1)
    wait_for(lambda: len(logged(peaceful_workers, "snapshot")) == 2)
    assert {line["pid"] for line in logged(peaceful_workers, "snapshot")} == set(
        worker_pids(peaceful_workers)
    )


def test_workers_share_the_memory_of_what_was_loaded(peaceful_workers: Broker) -> None:
    """A fork of its supervisor has about a fifth of it to itself; one that was spawned would have all."""
    for pid in worker_pids(peaceful_workers):
        memory = psutil.Process(pid).memory_full_info()
        assert memory.uss < memory.rss / 2, memory


def test_the_supervisor_has_no_thread_when_it_forks(peaceful_workers: Broker) -> None:
    """A fork copies the one thread that calls it, and every lock that another holds."""
    assert psutil.Process(peaceful_workers.process.pid).num_threads() == 1


SUPERVISED = """
import os, socket, sys
from broker.observe import logs
from broker.supervisor import Supervisor

logs.configure("json")
listener = socket.create_server(("127.0.0.1", 0))
work = lambda lifeline: sys.exit(int(sys.argv[1]))
sys.exit(Supervisor(work, listener, workers=int(sys.argv[2]), stop_seconds=5).run())
"""


def supervised(exit_code: int, workers: int) -> subprocess.Popen[str]:
    """A supervisor of workers that end at once."""
    command = [sys.executable, "-c", SUPERVISED, str(exit_code), str(workers)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_when_the_first_workers_cannot_start_the_broker_ends() -> None:
    """Another start would fail in the same way; whoever started the broker is told by its exit code."""
    process = supervised(exit_code=3, workers=3)  # as uvicorn ends when the application can't start
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3, said
    assert said.count('"event": "a worker can\'t start, so none is started again"') == 1
    assert said.count('"event": "worker started"') == 3


def test_one_that_dies_at_its_start_each_time_is_started_ever_more_slowly() -> None:
    process = supervised(exit_code=1, workers=1)
    assert process.stderr is not None
    pauses: list[float] = []
    try:
        while len(pauses) < 4:
            line = json.loads(process.stderr.readline())
            pauses += [line["next_in_seconds"]] if line["event"] == "worker died" else []
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert pauses == [0.0, 0.5, 1.0, 2.0]
    assert process.returncode == 0, "it stops though it waits"


@pytest.mark.parametrize("way", ["option", "setting"])
def test_more_than_one_worker_without_redis_is_refused(folder: Path, way: str) -> None:
    environment = {
        **clean_environment(),
        "COZE_API_BASE": "https://api.coze.cn",
        "COZE_API_TOKEN": "sat_1",
        "BROKER_DATA_DIR": str(folder / "data"),
        **({"BROKER_WORKERS": "2"} if way == "setting" else {}),
    }
    arguments = ["--workers", "2"] if way == "option" else []
    done = run_command("serve", *arguments, environment=environment, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error BROKER_WORKERS (--workers): more than one worker needs REDIS_URL. "
        "Without Redis each would keep limits and slots of its own.\n"
    )
