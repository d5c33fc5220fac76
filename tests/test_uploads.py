"""A file goes in, a ``file_id`` comes out."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from tests.support.broker_process import Broker
from tests.support.sandbox_control import SandboxControl


@pytest.mark.parametrize("size", [1, 1000, 9_999_999, 10_000_000, 10_000_001])
def test_a_form_reaches_coze_whole(client: httpx.Client, sandbox: SandboxControl, size: int) -> None:
    content = b"a,b\n" * (size // 4) + b"x" * (size % 4)
    answer = client.post("/proxy/upload", files={"file": ("data.csv", content, "text/csv")})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    digest = hashlib.sha256(content).hexdigest()
    stored = sandbox.file(body["file_id"])
    assert (stored["bytes"], stored["sha256"], stored["file_name"]) == (size, digest, "data.csv")
    assert (body["bytes"], body["sha256"], body["route"]) == (size, digest, "proxy")
