"""A file of any size arrives whole, and the broker never holds more of it than it is passing on."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from broker.uploader import BrokerClient
from tests.support.broker_process import Broker
from tests.support.raw_http import FORM_TYPE, Connection, form, head, part
from tests.support.sandbox_control import SandboxControl

MIB = 1024 * 1024
MAX_GROWTH_BYTES = 16 * MIB
SAMPLE_SECONDS = 0.02
DIRECT_BELOW = 10_000_000
BLOCK = (bytes(range(1, 256)) + b"\n") * 1024
SIZES = [1, DIRECT_BELOW - 1, DIRECT_BELOW, DIRECT_BELOW + 1]


def chunks(size: int) -> Iterator[bytes]:
    while size > 0:
        yield BLOCK[:size]
        size -= len(BLOCK)


def sha256_of(size: int) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(size):
        digest.update(chunk)
    return digest.hexdigest()


@pytest.mark.parametrize("size", SIZES)
def test_a_form_of_any_size_arrives_whole(
    broker: Broker, client: httpx.Client, sandbox: SandboxControl, size: int
) -> None:
    content = b"".join(chunks(size))
    answer = client.post("/proxy/upload", files={"file": ("a.csv", content)}).json()
    stored = sandbox.file(answer["file_id"])
    assert (stored["bytes"], stored["sha256"]) == (size, sha256_of(size))
    assert (answer["bytes"], answer["sha256"]) == (size, sha256_of(size))


@pytest.mark.parametrize("size", SIZES)
def test_a_token_sends_a_file_of_any_size_the_way_of_its_size(
    broker: Broker, sandbox: SandboxControl, folder: Path, size: int
) -> None:
    """Below 10,000,000 bytes straight to Coze with a token of the browser's app, from there on through
    the broker with the server's.
    """
    path = folder / "a.csv"
    path.write_bytes(b"".join(chunks(size)))
    page = BrokerClient(broker.url, broker.publishable_key, origin=broker.origin)
    done = page.upload_by_token(path)
    is_direct = size < DIRECT_BELOW
    assert done["route"] == ("direct" if is_direct else "proxy")
    stored = sandbox.file(done["file_id"])
    assert (stored["bytes"], stored["sha256"]) == (size, sha256_of(size))
    app = "BROWSER" if is_direct else "JWT"
    assert stored["client_id"] == sandbox.environment[f"COZE_{app}_OAUTH_CLIENT_ID"]


def test_a_file_without_a_byte_is_refused_on_every_way(
    broker: Broker, client: httpx.Client, sandbox: SandboxControl
) -> None:
    answers = [
        client.post("/proxy/upload", files={"file": ("a.csv", b"")}),
        client.post("/proxy/upload", content=b"", headers={"Content-Type": "text/csv"}),
        client.post("/token", json={"size": 0}),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(400, "empty_file")] * 3
    assert sandbox.events(kind="upload") == []


@pytest.mark.parametrize("kind", ["form", "bare file", "bare file, chunked"])
def test_memory_stays_flat_over_a_file_of_300_mb(broker: Broker, sandbox: SandboxControl, kind: str) -> None:
    size = 300_000_000
    assert send(broker, 1000, kind)  # the first upload brings its code and connections with it
    with peak_of(broker.process.pid) as seen:
        file_id = send(broker, size, kind)
    stored = sandbox.file(file_id)
    assert (stored["bytes"], stored["sha256"]) == (size, sha256_of(size))
    idle, peak, samples = seen
    assert samples >= 5, "the upload was too short to be measured"
    figure = f"idle {idle / MIB:.1f} MiB, peak {peak / MIB:.1f} MiB in {samples} samples"
    assert peak - idle <= MAX_GROWTH_BYTES, figure
    print(figure)


def test_what_a_form_promises_after_its_end_costs_no_memory(broker: Broker, sandbox: SandboxControl) -> None:
    """The rest of a promised length is filled up for Coze, but not when it is half a gigabyte."""
    headers = broker.auth() | {"Content-Type": FORM_TYPE, "Content-Length": "500000000"}
    with peak_of(broker.process.pid) as seen, Connection(broker.url) as connection:
        connection.send(head("/proxy/upload", [*headers.items()]) + part(b"a,b\n" * 2048)[:-2])
        sandbox.wait_for(lambda: any(event["body_bytes"] > 0 for event in sandbox.events(kind="upload")))
        connection.send(b"\r\n" + form())
        answer = connection.answer()
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_multipart")
    idle, peak, _ = seen
    assert peak - idle <= MAX_GROWTH_BYTES


def send(broker: Broker, size: int, kind: str) -> str:
    """The ``file_id`` of a file that is made as it is sent."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    end = b"\r\n--b--\r\n"
    is_form = kind == "form"
    headers = {"Content-Type": "multipart/form-data; boundary=b" if is_form else "text/csv"}
    if kind != "bare file, chunked":
        headers["Content-Length"] = str(size + (len(head + end) if is_form else 0))

    def body() -> Iterator[bytes]:
        yield head if is_form else b""
        yield from chunks(size)
        yield end if is_form else b""

    answer = httpx.post(
        f"{broker.url}/proxy/upload", content=body(), headers=broker.auth() | headers, timeout=60
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["file_id"])


@contextmanager
def peak_of(pid: int) -> Iterator[list[int]]:
    """Watches a process's resident memory; at the end: bytes at first, the most, and how often it looked."""
    memory = psutil.Process(pid).memory_info
    idle = memory().rss
    seen = [idle, idle, 0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            seen[1:] = [max(seen[1], memory().rss), seen[2] + 1]

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
        time.sleep(SAMPLE_SECONDS * 2)
    finally:
        ended.set()
        watcher.join()
