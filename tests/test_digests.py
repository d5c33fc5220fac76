"""What the caller announces of its file's bytes is held against what came."""

from __future__ import annotations

import base64
import hashlib

import httpx
import pytest

from broker.errors import DigestMismatch, InvalidRequest
from broker.transfer.digests import announced_sha256
from tests.support.broker_process import PAGE_ORIGIN, Broker
from tests.support.refusals import CLIENT, PROXY, SHAPES, assert_refused
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n1,2\n"
LARGE = CSV * 40_000
HEX = hashlib.sha256(CSV).hexdigest()
OTHER_HEX = hashlib.sha256(b"").hexdigest()


def repr_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def send(broker: Broker, content: bytes, digest: str, path: str = PROXY, **more: str) -> httpx.Response:
    headers = broker.auth() | {"Origin": PAGE_ORIGIN, "Repr-Digest": digest} | more
    return CLIENT.post(broker.url + path, files={"file": ("a.csv", content)}, headers=headers)


@pytest.mark.parametrize("content", [CSV, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("path", SHAPES)
def test_a_file_that_is_not_what_was_announced_is_not_stored(
    broker: Broker, sandbox: SandboxControl, path: str, content: bytes
) -> None:
    assert_refused(broker, send(broker, content, repr_digest(b"other"), path), DigestMismatch, path)
    assert not sandbox.events(outcome="stored")
    assert send(broker, content, repr_digest(content), path).status_code == 200


def test_the_digest_of_a_bare_file_counts_too(broker: Broker, sandbox: SandboxControl) -> None:
    headers = broker.auth() | {
        "Origin": PAGE_ORIGIN,
        "Content-Type": "text/csv",
        "Repr-Digest": repr_digest(b""),
    }
    answer = CLIENT.post(broker.url + PROXY, content=CSV, headers=headers)
    assert_refused(broker, answer, DigestMismatch)
    assert not sandbox.events(outcome="stored")


def test_a_digest_that_can_not_be_read_is_refused(broker: Broker) -> None:
    assert_refused(broker, send(broker, CSV, "sha-256=abc"), InvalidRequest)


READ = {
    "alone": (repr_digest(CSV), None, HEX),
    "with others": (f"sha-512=:YWJj:, {repr_digest(CSV)}, md5=:YWJj:", None, HEX),
    "with a parameter": (repr_digest(CSV) + ";a=1", None, HEX),
    "with blanks": (f"  {repr_digest(CSV)}  ", None, HEX),
    "another algorithm": ("sha-512=:YWJj:", None, None),
    "a longer name": ("x-sha-256=:YWJj:", None, None),
    "nothing": ("", None, None),
    "no header": (None, HEX, HEX),
    "both": (repr_digest(CSV), HEX, HEX),
}


@pytest.mark.parametrize(("header", "of_token", "expected"), READ.values(), ids=READ)
def test_what_is_announced(header: str | None, of_token: str | None, expected: str | None) -> None:
    assert announced_sha256(header, of_token) == expected


BROKEN = ["sha-256=", "sha-256=::", "sha-256=:YWJj:", f"sha-256={HEX}", "sha-256=:!!:", "sha-256=:a:"]


@pytest.mark.parametrize("header", BROKEN)
def test_what_is_no_digest(header: str) -> None:
    with pytest.raises(InvalidRequest, match="Repr-Digest"):
        announced_sha256(header, None)


def test_two_that_differ_are_a_mismatch_at_once() -> None:
    with pytest.raises(DigestMismatch):
        announced_sha256(repr_digest(CSV), OTHER_HEX)
