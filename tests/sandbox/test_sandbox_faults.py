"""Each fault does at the socket what it says."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from broker.sandbox.launch import SandboxProcess
from broker.sandbox.serve import RunningSandbox, in_thread

UPLOAD = "/v1/files/upload"
FILES = {"file": ("a.csv", b"1,2")}

Order = Callable[..., None]
LastEvent = Callable[[], dict[str, Any]]


def stored_count(client: httpx.Client) -> int:
    return len(client.get("/_sandbox/files").json()["files"])


def open_upload(sandbox: RunningSandbox, content_length: int) -> socket.socket:
    host, port = sandbox.base_url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(
        f"POST {UPLOAD} HTTP/1.1\r\nHost: sandbox\r\nContent-Length: {content_length}\r\n"
        f"Authorization: Bearer {sandbox.credentials.api_token}\r\n"
        f"Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
    )
    return connection


def send_and_read(connection: socket.socket, content: bytes) -> bytes:
    connection.sendall(content)
    return connection.recv(1)


def test_status_code_message_and_headers(order: Order, client: httpx.Client, last_event: LastEvent) -> None:
    before = stored_count(client)
    order(path=UPLOAD, status=429, code=4013, msg="slow down", headers={"Retry-After": "3"})
    response = client.post(UPLOAD, files=FILES)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert (response.json()["code"], response.json()["msg"]) == (4013, "slow down")
    assert response.json()["detail"]["logid"] == response.headers["x-tt-logid"]
    assert stored_count(client) == before
    event = last_event()
    assert (event["outcome"], event["status"], event["code"]) == ("faulted", 429, 4013)
    assert event["fault"]["status"] == 429
    assert event["body_bytes"] == event["content_length"]


def test_a_code_alone_comes_with_200(order: Order, client: httpx.Client) -> None:
    order(code=4302)
    response = client.post(UPLOAD, files=FILES)
    assert (response.status_code, response.json()["code"]) == (200, 4302)


def test_a_status_alone_comes_with_code_5000(order: Order, client: httpx.Client) -> None:
    order(status=500)
    assert client.post(UPLOAD, files=FILES).json()["code"] == 5000


def test_code_zero_can_lie(order: Order, client: httpx.Client) -> None:
    order(status=500, code=0)
    response = client.post(UPLOAD, files=FILES)
    assert (response.status_code, response.json()["code"]) == (500, 0)


def test_token_faults_have_the_token_endpoints_shape(order: Order, client: httpx.Client) -> None:
    order(path="/api/permission/oauth2/token", status=401, code="access_deny", msg="no")
    response = client.post("/api/permission/oauth2/token", json={})
    assert response.json() == {"error_code": "access_deny", "error_message": "no"}


def test_a_fault_is_for_its_path_and_its_times(order: Order, client: httpx.Client) -> None:
    order(path=UPLOAD, times=2, status=503)
    assert client.get("/v1/files/retrieve").status_code == 200
    assert [client.post(UPLOAD, files=FILES).status_code for _ in range(3)] == [503, 503, 200]


def test_a_list_is_used_up_in_order(client: httpx.Client) -> None:
    orders = [{"status": 503, "times": 1}, {"status": 429, "times": 1}]
    client.put("/_sandbox/faults", json=orders)
    assert [client.post(UPLOAD, files=FILES).status_code for _ in range(3)] == [503, 429, 200]


def test_faults_stay_until_deleted(client: httpx.Client) -> None:
    listed = client.put("/_sandbox/faults", json={"status": 503}).json()
    assert listed == {"faults": [{"status": 503, "times_left": None}]}
    assert [client.post(UPLOAD, files=FILES).status_code for _ in range(2)] == [503, 503]
    assert client.get("/_sandbox/faults").json() == listed
    assert client.delete("/_sandbox/faults").status_code == 204
    assert client.get("/_sandbox/faults").json() == {"faults": []}
    assert client.post(UPLOAD, files=FILES).status_code == 200


@pytest.mark.parametrize(
    "body",
    ['{"sttaus": 503}', '{"status": 99}', '{"times": 0}', '{"before_body": true}', "nonsense", " " * 70_000],
)
def test_a_fault_that_means_nothing_is_refused(body: str, client: httpx.Client) -> None:
    response = client.put("/_sandbox/faults", content=body)
    assert (response.status_code, response.json()["code"]) == (400, 4000)
    assert response.json()["msg"]


def test_delay(order: Order, client: httpx.Client) -> None:
    order(delay_seconds=0.4)
    start = time.monotonic()
    assert client.post(UPLOAD, files=FILES).json()["code"] == 0
    assert time.monotonic() - start >= 0.4


def test_answer_before_the_body(
    order: Order, sandbox: SandboxProcess, client: httpx.Client, last_event: LastEvent
) -> None:
    order(status=413, code=4302, before_body=True)
    with open_upload(sandbox, 1_000_000) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert b'"code":4302' in answer
    event = last_event()
    assert (event["outcome"], event["body_bytes"]) == ("faulted", 0)


def test_answer_before_the_body_reaches_a_client_that_goes_on_sending(
    order: Order, client: httpx.Client
) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * 1024 * 1024

    order(status=503, before_body=True)
    response = client.post(
        UPLOAD, content=body(), headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert response.status_code == 503


@pytest.mark.parametrize("after_bytes", [0, 1, 100_000])
def test_abort_is_a_reset_in_mid_body(
    after_bytes: int, order: Order, sandbox: SandboxProcess, client: httpx.Client, last_event: LastEvent
) -> None:
    order(abort_after_bytes=after_bytes)
    with open_upload(sandbox, 1_000_000) as connection, pytest.raises(ConnectionResetError):
        send_and_read(connection, b"x" * after_bytes)
    event = last_event()
    assert (event["outcome"], event["status"], event["body_bytes"]) == ("faulted", None, after_bytes)


def test_abort_as_a_client_sees_it(order: Order, client: httpx.Client) -> None:
    order(abort_after_bytes=1000)
    with pytest.raises(httpx.TransportError):
        client.post(UPLOAD, files={"file": ("a.csv", b"x" * 50_000_000)})
    assert client.post(UPLOAD, files=FILES).status_code == 200


def test_there_is_nothing_to_reset_when_the_client_has_left(caplog: pytest.LogCaptureFixture) -> None:
    with in_thread() as sandbox, httpx.Client(base_url=sandbox.base_url) as client:
        client.put("/_sandbox/faults", json={"path": UPLOAD, "abort_after_bytes": 1000})
        open_upload(sandbox, 2000).close()
        give_up = time.monotonic() + 5
        while not any(
            event["outcome"] != "open" for event in client.get("/_sandbox/events").json()["events"]
        ):
            assert time.monotonic() < give_up, "nobody left"
            time.sleep(0.02)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_the_answer_can_be_lost_after_the_file_is_stored(order: Order, client: httpx.Client) -> None:
    before = stored_count(client)
    order(abort_answer=True)
    with pytest.raises(httpx.ReadError):
        client.post(UPLOAD, files=FILES)
    assert stored_count(client) == before + 1


def test_never_answer_stores_and_stays_silent(
    order: Order, client: httpx.Client, last_event: LastEvent
) -> None:
    before = stored_count(client)
    order(never_answer=True)
    with pytest.raises(httpx.ReadTimeout):
        client.post(UPLOAD, files=FILES, timeout=0.5)
    assert stored_count(client) == before + 1
    assert (last_event()["outcome"], last_event()["status"]) == ("stored", None)


def test_never_answer_before_the_body(order: Order, client: httpx.Client) -> None:
    before = stored_count(client)
    order(never_answer=True, before_body=True)
    with pytest.raises(httpx.ReadTimeout):
        client.post(UPLOAD, files=FILES, timeout=0.5)
    assert stored_count(client) == before


def test_html(order: Order, client: httpx.Client) -> None:
    order(html=True)
    response = client.post(UPLOAD, files=FILES)
    assert response.status_code == 502
    assert response.headers["content-type"].startswith("text/html")
    assert response.text.startswith("<!doctype html>")


def test_truncate_announces_more_than_it_sends(order: Order, client: httpx.Client) -> None:
    order(truncate=True)
    with pytest.raises(httpx.RemoteProtocolError):
        client.post(UPLOAD, files=FILES)


def test_half_json(order: Order, client: httpx.Client) -> None:
    order(half_json=True)
    response = client.post(UPLOAD, files=FILES)
    assert response.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        response.json()


def test_oversize(order: Order, client: httpx.Client) -> None:
    order(oversize_bytes=5_000_001)
    response = client.post(UPLOAD, files=FILES)
    assert len(response.content) == 5_000_001
    assert response.json()["code"] == 0


def test_redirect(order: Order, client: httpx.Client) -> None:
    order(redirect="http://127.0.0.1:9/elsewhere")
    response = client.post(UPLOAD, files=FILES)
    assert (response.status_code, response.headers["location"]) == (307, "http://127.0.0.1:9/elsewhere")


def test_every_faulty_answer_has_a_logid(order: Order, client: httpx.Client) -> None:
    for fault in ({"html": True}, {"redirect": "/x"}, {"status": 503}, {"oversize_bytes": 100}):
        order(**fault)
        assert len(client.post(UPLOAD, files=FILES).headers["x-tt-logid"]) == 34
