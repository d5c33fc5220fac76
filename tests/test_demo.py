"""``broker demo``: needs no set-up, minds nobody else's, and leaves nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.broker_process import COMMAND, clean_environment, run_command


def remains() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("broker-demo-*")}


def test_check_uploads_a_file_by_each_route(folder: Path) -> None:
    """Nothing of an operator's is used: not the environment, not the ``.env`` where it is called."""
    before = remains()
    foreign = {
        "COZE_API_BASE": "http://192.0.2.1",
        "DATABASE_URL": "postgresql://user:password@127.0.0.1:1/db",
        "BROKER_PUBLIC_URL": "https://upload.example.com",
        "BROKER_DIRECT_MAX_BYTES": "0",
    }
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in foreign.items()))
    done = run_command("demo", "--check", environment=clean_environment() | foreign, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ *direct +small\.png \(70 bytes\) +file_id \d{19}$", done.stdout, re.MULTILINE)
    assert re.search(r"^ *proxy +large\.csv \(12,\S+ bytes\) +file_id \d{19}$", done.stdout, re.MULTILINE)
    assert [path.name for path in folder.iterdir()] == [".env"]
    assert remains() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_page_until_it_is_stopped(folder: Path, number: signal.Signals) -> None:
    before = remains()
    with running_demo(folder) as (process, said):
        url = re.search(r"^Open (\S+) and drop", said, re.MULTILINE)
        assert url, said
        page = httpx.get(url[1], headers={"Accept": "application/json"})
        assert page.json()["publishable_key"].startswith("cub_pk_")
        assert page.json()["direct_available"] is True
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.send_signal(number)
        assert process.wait(15) == 0
        assert psutil.wait_procs(children, timeout=5)[1] == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(url[1])
    assert remains() == before


def test_a_second_signal_leaves_nothing_behind_either(folder: Path) -> None:
    before = remains()
    with running_demo(folder) as (process, _):
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert psutil.wait_procs(children, timeout=5)[1] == []
    assert remains() == before


@contextmanager
def running_demo(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The demo, and what it said until it was ready."""
    process = subprocess.Popen(
        [*COMMAND, "demo"],
        env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    try:
        while "Ctrl-C" not in said and (line := process.stdout.readline()):
            said += line
        yield process, said
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


# Stands in for whatever may keep a part from starting: a full disk, a missing library.
BREAK = """
import os, sys
if {words} == sys.orig_argv[1:][:len({words})]:
    os.write(2, b"broken on purpose\\n")
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-m", "broker.sandbox"], "The demo failed: the sandbox Coze did not start"),
        (["-m", "broker", "serve"], "The demo failed: the broker did not start"),
        (["-m", "broker", "keys"], "The demo failed: no key could be made"),
    ],
)
def test_a_part_that_does_not_start_fails_the_demo(folder: Path, words: list[str], sentence: str) -> None:
    before = remains()
    (folder / "sitecustomize.py").write_text(BREAK.format(words=words))
    environment = clean_environment() | {"PYTHONPATH": str(folder)}
    done = run_command("demo", "--check", environment=environment)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert "broken on purpose" in done.stderr
    for process in psutil.process_iter(["environ"]):
        assert (process.info["environ"] or {}).get("PYTHONPATH") != str(folder), "a process was left behind"
    assert remains() == before


def test_a_check_that_is_interrupted_is_no_success(folder: Path) -> None:
    command = [*COMMAND, "demo", "--check"]
    process = subprocess.Popen(command, env=clean_environment(), cwd=folder, stdout=subprocess.PIPE)
    try:
        give_up = time.monotonic() + 20
        while not psutil.Process(process.pid).children() and time.monotonic() < give_up:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert b"proxy" not in out


def test_two_demos_at_once_find_ports_for_both(folder: Path) -> None:
    with running_demo(folder) as (_, first), running_demo(folder) as (_, second):
        urls = [re.search(r"^Open (\S+) and drop", said, re.MULTILINE) for said in (first, second)]
        assert all(urls)
        assert len({url[1] for url in urls if url}) == 2
