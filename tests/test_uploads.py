"""A file goes in, a ``file_id`` comes out."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n1,2\n"


def content_of(size: int) -> bytes:
    return (CSV * (size // len(CSV) + 1))[:size]


@pytest.mark.parametrize("size", [1, 1000, 262_144, 9_999_999, 10_000_000, 10_000_001])
@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
def test_a_form_reaches_coze_whole(
    client: httpx.Client, sandbox: SandboxControl, path: str, size: int
) -> None:
    content = content_of(size)
    answer = client.post(path, files={"file": ("data.csv", content, "text/csv")})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    file_id = body["file_id"] if path == "/proxy/upload" else body["data"]["id"]
    stored = sandbox.file(file_id)
    assert (stored["bytes"], stored["sha256"]) == (size, hashlib.sha256(content).hexdigest())
    assert stored["file_name"] == "data.csv"


def test_the_answer_is_all_that_a_caller_needs(client: httpx.Client, sandbox: SandboxControl) -> None:
    answer = client.post("/proxy/upload", files={"file": ("Übersicht 1.csv", CSV, "text/csv")})
    body = answer.json()
    stored = sandbox.file(body["file_id"])
    assert body["file_name"] == stored["file_name"] == "Übersicht 1.csv"
    assert body["bytes"] == len(CSV)
    assert body["sha256"] == hashlib.sha256(CSV).hexdigest()
    assert body["created_at"] == stored["created_at"]
    assert body["route"] == "proxy"
    assert body["logid"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("size", [1, 10_000_001])
def test_a_bare_file_is_taken_too(client: httpx.Client, sandbox: SandboxControl, size: int) -> None:
    content = content_of(size)
    name = {"Content-Disposition": "attachment; filename*=UTF-8''%E4%B8%AD%E6%96%87.csv"}
    answer = client.post("/proxy/upload", content=content, headers={"Content-Type": "text/csv", **name})
    stored = sandbox.file(answer.json()["file_id"])
    assert (stored["sha256"], stored["file_name"]) == (hashlib.sha256(content).hexdigest(), "中文.csv")
    (event,) = sandbox.events(kind="upload")
    assert not event["chunked"]


def test_a_body_of_unknown_length_is_taken_too(client: httpx.Client, sandbox: SandboxControl) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield CSV * 5000

    headers = {"Content-Type": "text/csv", "Content-Disposition": 'attachment; filename="a.csv"'}
    answer = client.post("/proxy/upload", content=chunks(), headers=headers)
    stored = sandbox.file(answer.json()["file_id"])
    assert stored["sha256"] == hashlib.sha256(CSV * 250_000).hexdigest()


def test_the_length_is_told_upstream_beforehand(client: httpx.Client, sandbox: SandboxControl) -> None:
    client.post("/proxy/upload", files={"file": ("a.csv", content_of(3_000_000), "text/csv")})
    (event,) = sandbox.events(kind="upload")
    assert not event["chunked"]
    assert event["content_length"] == event["body_bytes"] > 3_000_000
    assert event["part_names"] == ["file"]


def test_what_is_known_of_a_file_can_be_asked(client: httpx.Client) -> None:
    uploaded = client.post("/v1/files/upload", files={"file": ("a.csv", CSV, "text/csv")}).json()
    found = client.get("/v1/files/retrieve", params={"file_id": uploaded["data"]["id"]})
    assert found.json()["data"] == uploaded["data"]
    assert found.json()["detail"]["logid"] == found.headers["x-tt-logid"]


@pytest.mark.parametrize(
    ("file_id", "status", "code"), [("404404404", 404, 4200), ("", 422, 4000), ("../x", 422, 4000)]
)
def test_a_file_that_is_not_there_is_said_in_cozes_words(
    client: httpx.Client, file_id: str, status: int, code: int
) -> None:
    answer = client.get("/v1/files/retrieve", params={"file_id": file_id})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["msg"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("//v1/files/retrieve", 422), ("///v1//files/retrieve", 422), ("/v1/bots", 404), ("/v1/", 404)],
)
def test_cozes_paths_are_known_by_their_prefix(client: httpx.Client, path: str, status: int) -> None:
    """With doubled slashes, which some clients write, and for paths that are not passed on."""
    answer = client.get(str(client.base_url).rstrip("/") + path)
    assert answer.status_code == status
    assert answer.json()["code"] != 0
    assert answer.headers["x-tt-logid"] == answer.json()["detail"]["logid"]


def test_of_two_who_come_with_one_token_at_once_one_gets_in(broker: Broker, sandbox: SandboxControl) -> None:
    token = broker.mint(size=len(CSV), route="proxy")["access_token"]

    async def race() -> list[httpx.Response]:
        async with httpx.AsyncClient(headers=broker.auth(token)) as client:
            sends = [
                client.post(f"{broker.url}/proxy/upload", files={"file": ("a.csv", CSV)}) for _ in range(20)
            ]
            return list(await asyncio.gather(*sends))

    answers = asyncio.run(race())
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 19
    assert {answer.json()["code"] for answer in answers if answer.status_code == 401} == {"token_used"}
    assert len(sandbox.events(kind="upload", outcome="stored")) == 1


def test_a_file_of_another_type_than_granted_is_refused(broker: Broker, sandbox: SandboxControl) -> None:
    """And the token is still good afterwards: nothing was lost by the mistake."""
    token = broker.mint(size=len(CSV), route="proxy", content_type="text/csv")["access_token"]
    url = f"{broker.url}/proxy/upload"
    wrong = httpx.post(url, headers=broker.auth(token), files={"file": ("a.csv", CSV, "image/png")})
    assert (wrong.status_code, wrong.json()["code"]) == (415, "type_not_granted")
    right = httpx.post(url, headers=broker.auth(token), files={"file": ("a.csv", CSV, "text/csv")})
    assert right.status_code == 200


def test_an_upload_that_outlives_its_token_is_stopped(
    sandbox: SandboxControl, folder: Path, broker: Broker
) -> None:
    """A token says when to start; an upload that started may go on until ``finish_by``, and no longer."""
    with running_broker(folder, sandbox.environment, BROKER_UPLOAD_MAX_SECONDS="1") as strict:
        token = strict.mint(size=1_000_000, route="proxy", ttl_seconds=1)

        def trickle() -> Iterator[bytes]:
            yield CSV * 20_000  # more than is read before Coze hears of a file
            for _ in range(30):
                yield CSV * 100
                time.sleep(0.1)

        answer = httpx.post(
            token["upload_url"],
            content=trickle(),
            headers={
                "Authorization": f"Bearer {token['access_token']}",
                "Content-Type": "text/csv",
                "Content-Disposition": 'attachment; filename="a.csv"',
            },
        )
    assert (answer.status_code, answer.json()["code"]) == (401, "finish_deadline")
    sandbox.wait_for(lambda: sandbox.events(kind="upload", outcome="aborted"))
    assert not sandbox.events(kind="upload", outcome="stored")


def test_a_request_leaves_one_record_that_tells_its_story(client: httpx.Client, broker: Broker) -> None:
    answer = client.post(
        "/proxy/upload", files={"file": ("a.csv", CSV, "text/csv")}, headers={"Origin": PAGE_ORIGIN}
    )
    record = broker.record(answer.headers["x-request-id"])
    assert (record["method"], record["path"], record["status"]) == ("POST", "/proxy/upload", 200)
    assert (record["caller"], record["route"], record["bytes_received"]) == ("secret_key", "proxy", len(CSV))
    assert (record["file_id"], record["logid"]) == (answer.json()["file_id"], answer.json()["logid"])
    assert record["origin"] == PAGE_ORIGIN
    assert record["client_ip"] == "127.0.0.1"
