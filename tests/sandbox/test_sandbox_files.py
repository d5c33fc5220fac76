"""The files API, over real sockets."""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from broker.sandbox.launch import SandboxProcess
from broker.sandbox.serve import in_thread

UPLOAD = "/v1/files/upload"
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1"
BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}
MEBIBYTE = 1024 * 1024

LastEvent = Callable[[], dict[str, Any]]


def part(content: bytes, disposition: str = 'form-data; name="file"; filename="a.csv"') -> bytes:
    return b"--b\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def assert_refused(response: httpx.Response, code: int, status: int = 200) -> None:
    assert (response.json()["code"], response.status_code) == (code, status)
    assert response.json()["msg"]
    assert response.json()["detail"]["logid"] == response.headers["x-tt-logid"]


@pytest.mark.parametrize("size", [1, 65_537, 20_000_000])
def test_upload_is_counted_and_hashed(size: int, client: httpx.Client) -> None:
    content = b"%PDF-1.7\n"[:size] + os.urandom(max(0, size - 9))
    name = "a.pdf" if size > 9 else "a.csv"
    response = client.post(UPLOAD, files={"file": (name, content, "application/pdf")})
    assert response.status_code == 200
    body = response.json()
    assert set(body) == {"code", "msg", "data"}
    assert (body["code"], body["msg"]) == (0, "")
    assert set(body["data"]) == {"id", "bytes", "created_at", "file_name"}
    assert body["data"]["bytes"] == size
    assert body["data"]["id"].isdecimal()
    assert len(body["data"]["id"]) == 19
    stored = client.get("/_sandbox/files").json()["files"][-1]
    assert stored["sha256"] == hashlib.sha256(content).hexdigest()
    assert (stored["id"], stored["content_type"], stored["token_kind"]) == (
        body["data"]["id"],
        "application/pdf",
        "pat",
    )


def test_a_stored_file_can_be_retrieved(client: httpx.Client) -> None:
    data = client.post(UPLOAD, files={"file": ("a.csv", b"1,2")}).json()["data"]
    response = client.get("/v1/files/retrieve", params={"file_id": data["id"]})
    assert response.json()["data"] == data
    assert response.json()["detail"]["logid"] == response.headers["x-tt-logid"]


def test_an_unknown_file_is_4200(client: httpx.Client) -> None:
    assert_refused(client.get("/v1/files/retrieve", params={"file_id": "1"}), 4200)
    assert_refused(client.get("/v1/files/retrieve"), 4200)


def test_file_names_are_raw_utf8_with_the_browsers_escapes(client: httpx.Client) -> None:
    disposition = 'form-data; name="file"; filename="报告 %22x%22 100%25.csv"'
    response = client.post(UPLOAD, content=part(b"1", disposition) + b"--b--\r\n", headers=BOUNDARY)
    assert response.json()["data"]["file_name"] == '报告 "x" 100%25.csv'


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ([("file", ("a.csv", b""))], 4300),
        ([("data", ("a.csv", b"1"))], 4300),
        ([("file", (None, b"1"))], 4300),
        ([("file", ("a.csv", b"1")), ("file", ("b.csv", b"2"))], 4301),
        ([("file", ("a.csv", b"1")), ("other", ("b.csv", b"2"))], 4301),
        ([("file", ("a.txt", b"1"))], 4303),
        ([("file", ("upload", b"1"))], 4303),
        ([("file", ("a.png", JPEG))], 4000),
        ([("file", ("a.png", b"hello"))], 4000),
        ([("file", ("a.csv", PNG))], 4000),
    ],
)
def test_uploads_that_coze_refuses(
    files: Any, code: int, client: httpx.Client, last_event: LastEvent
) -> None:
    assert_refused(client.post(UPLOAD, files=files), code)
    assert (last_event()["outcome"], last_event()["code"]) == ("refused", code)


def test_the_content_type_must_be_a_form(client: httpx.Client) -> None:
    assert_refused(client.post(UPLOAD, json={}), 4300)
    assert_refused(client.post(UPLOAD), 4300)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        part(b"1"),
        part(b"1") + b"--b",
        part(b"1") * 33 + b"--b--\r\n",
        part(b"1", "form-data; name=x") + part(b"y" * 70_000, "form-data; name=y") + b"--b--\r\n",
        part(b"1", 'form-data; name="' + "x" * 20_000 + '"') + b"--b--\r\n",
    ],
)
def test_a_broken_form_is_4304(body: bytes, client: httpx.Client) -> None:
    assert_refused(client.post(UPLOAD, content=body, headers=BOUNDARY), 4304)


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=" + "b" * 300]
)
def test_a_form_needs_a_sane_boundary(content_type: str, client: httpx.Client) -> None:
    assert_refused(client.post(UPLOAD, content=b"x", headers={"content-type": content_type}), 4304)


def test_a_form_without_a_file_is_4300(client: httpx.Client) -> None:
    body = part(b"1", "form-data; name=purpose") + b"--b--\r\n"
    assert_refused(client.post(UPLOAD, content=body, headers=BOUNDARY), 4300)


@pytest.mark.parametrize("token", ["wrong", "pat_wrong", "czs_wrong"])
def test_a_bad_token_is_401(token: str, client: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {token}"}
    assert_refused(client.post(UPLOAD, files={"file": ("a.csv", b"1")}, headers=headers), 700012006, 401)


def test_an_empty_file_name_is_4303(client: httpx.Client) -> None:
    body = part(b"1", 'form-data; name="file"; filename=""') + b"--b--\r\n"
    assert_refused(client.post(UPLOAD, content=body, headers=BOUNDARY), 4303)


def test_no_token_and_two_tokens_are_401(sandbox: SandboxProcess, anonymous: httpx.Client) -> None:
    value = f"Bearer {sandbox.credentials.api_token}"
    assert_refused(anonymous.post(UPLOAD), 700012006, 401)
    twice = [("authorization", value), ("authorization", value)]
    assert_refused(anonymous.post(UPLOAD, headers=twice), 700012006, 401)


def test_the_browser_app_may_upload_only(
    sandbox: SandboxProcess,
    anonymous: httpx.Client,
    claims: dict[str, Any],
    signed: Callable[..., str],
    exchange: Callable[..., httpx.Response],
) -> None:
    app = sandbox.credentials.browser_app
    token = exchange(signed(claims | {"iss": app.client_id}, app)).json()["access_token"]
    anonymous.headers["authorization"] = f"Bearer {token}"
    data = anonymous.post(UPLOAD, files={"file": ("a.csv", b"1")}).json()["data"]
    assert_refused(anonymous.get("/v1/files/retrieve", params={"file_id": data["id"]}), 4101)
    stored = anonymous.get("/_sandbox/files").json()["files"][-1]
    assert (stored["client_id"], stored["token_kind"]) == (app.client_id, "czs")


def test_unknown_paths_answer_in_the_envelope(client: httpx.Client) -> None:
    assert_refused(client.get("/v1/unknown"), 4000, 404)
    assert_refused(client.get("/v1/files/upload/"), 4000, 404)
    assert_refused(client.get(UPLOAD), 4000, 405)


def test_a_file_too_large_is_refused_before_it_is_read() -> None:
    content = iter([part(b"x" * MEBIBYTE)[:-2], *[b"x" * MEBIBYTE] * 199, b"\r\n--b--\r\n"])
    with in_thread(max_file_bytes=2 * MEBIBYTE) as running, httpx.Client(base_url=running.base_url) as client:
        headers = BOUNDARY | {"authorization": f"Bearer {running.credentials.api_token}"}
        response = client.post(UPLOAD, content=content, headers=headers)
        event = client.get("/_sandbox/events").json()["events"][-1]
        exact = client.post(
            UPLOAD,
            files={"file": ("a.csv", b"x" * 2 * MEBIBYTE)},
            headers={"authorization": headers["authorization"]},
        )
    assert_refused(response, 4302)
    assert response.headers["connection"] == "close"
    assert event["body_bytes"] < 10 * MEBIBYTE
    assert exact.json()["code"] == 0


def test_a_client_that_leaves_stores_nothing(
    sandbox: SandboxProcess, client: httpx.Client, last_event: LastEvent
) -> None:
    before = len(client.get("/_sandbox/files").json()["files"])
    body = part(b"x" * 1000)[:-2]
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: sandbox\r\nContent-Length: 5000\r\n"
        f"Authorization: Bearer {sandbox.credentials.api_token}\r\n"
        f"Content-Type: {BOUNDARY['content-type']}\r\n\r\n"
    )
    host, port = sandbox.base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as leaving:
        leaving.sendall(head.encode() + body)
    event = last_event()
    assert (event["kind"], event["outcome"], event["status"]) == ("upload", "aborted", None)
    assert (event["body_bytes"], event["content_length"]) == (len(body), 5000)
    assert len(client.get("/_sandbox/files").json()["files"]) == before


def test_events_show_how_the_body_came_and_no_secret(client: httpx.Client, last_event: LastEvent) -> None:
    client.headers["cookie"] = "session=secret-1"
    client.post(
        f"{UPLOAD}?token=secret-2",
        data={"purpose": "x"},
        files={"file": ("a.csv", b"1")},
        headers={"x-key": "secret-3", "x-coze-client-user-agent": "{}"},
    )
    event = last_event()
    assert event["part_names"] == ["purpose", "file"]
    assert event["content_length"] == event["body_bytes"]
    assert event["chunked"] is False
    assert {"authorization", "cookie", "x-key"} <= set(event["header_names"])
    assert event["headers"]["x-coze-client-user-agent"] == "{}"
    assert event["query_names"] == ["token"]
    assert "secret" not in str(event)
    assert client.headers["authorization"].split()[1] not in str(event)
    client.post(UPLOAD, content=iter([part(b"1"), b"--b--\r\n"]), headers=BOUNDARY)
    assert (last_event()["chunked"], last_event()["content_length"]) == (True, None)


def test_memory_stays_flat(sandbox: SandboxProcess, client: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield part(b"")[:-2]
        for _ in range(200):
            yield b"x" * MEBIBYTE
        yield b"\r\n--b--\r\n"

    client.post(UPLOAD, files={"file": ("a.csv", b"x" * MEBIBYTE)})
    process = psutil.Process(sandbox.pid)
    before = process.memory_info().rss
    response = client.post(UPLOAD, content=body(), headers=BOUNDARY)
    assert response.json()["data"]["bytes"] == 200 * MEBIBYTE
    assert process.memory_info().rss - before < 32 * MEBIBYTE
