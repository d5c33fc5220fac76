"""A receipt for a file that the browser sent straight to Coze: given for that file, and for no other."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from broker.api.completion import difference_between
from broker.api.file_owners import CLOCK_MARGIN_SECONDS
from broker.auth import receipts, signing_keys
from broker.auth.completion_tokens import CompletionToken, CompletionTokens
from broker.auth.signed_claims import LEEWAY_SECONDS
from broker.auth.signing_keys import KeyRing
from broker.auth.upload_tokens import UploadTokens
from broker.errors import ExpiredCredential, InvalidCredential
from broker.state.database import STORE_SECONDS
from broker.upstream.coze import StoredFile
from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.sandbox_control import SandboxControl

CONTENT = b"a,b\n1,2\n"
NAME = "标题 (1).csv"
RETRIEVE = "/v1/files/retrieve"


def announced(broker: Broker, content: bytes = CONTENT, **asked: Any) -> dict[str, Any]:
    """A token for the direct route, to a page."""
    options = {"file_name": NAME, "origin": PAGE_ORIGIN, "subject": "user-42", **asked}
    token = broker.mint(size=len(content), **options)
    assert token["route"] == "direct"
    return token


def sent(token: dict[str, Any], content: bytes = CONTENT, name: str = NAME) -> str:
    """What a browser does with it; the file's id."""
    answer = httpx.post(
        token["upload_url"],
        files={token["field"]: (name, content, "text/csv")},
        headers={"Authorization": f"Bearer {token['access_token']}"},
    )
    file_id: str = answer.json()["data"]["id"]
    return file_id


def completed(token: dict[str, Any], file_id: str, **changed: Any) -> httpx.Response:
    """What the broker says to a page that reports its file."""
    asking = {
        "url": token["complete_url"],
        "json": {"file_id": file_id},
        "headers": {"Authorization": f"Bearer {token['complete_token']}", "Origin": PAGE_ORIGIN},
        **changed,
    }
    return httpx.post(**asking)


def claims_of(broker: Broker, receipt: str) -> dict[str, Any]:
    """What a back end reads in a receipt, with the broker's public keys alone."""
    keys = jwt.PyJWKSet.from_dict(httpx.get(f"{broker.url}/.well-known/jwks.json").json())
    key = keys[jwt.get_unverified_header(receipt)["kid"]]
    claims: dict[str, Any] = jwt.decode(
        receipt, key, algorithms=["EdDSA"], audience=receipts.AUDIENCE, issuer=broker.url, leeway=5
    )
    return claims


# --- the way it should go ---------------------------------------------------------------------------


def test_a_direct_upload_gets_its_receipt(broker: Broker, sandbox: SandboxControl) -> None:
    token = announced(broker)
    assert token["complete_url"] == f"{broker.url}/uploads/{token['upload_id']}/complete"
    file_id = sent(token)
    answer = completed(token, file_id)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    told, stored = answer.json(), sandbox.file(file_id)
    assert (told["file_id"], told["file_name"], told["bytes"]) == (file_id, NAME, len(CONTENT))
    assert (told["route"], told["created_at"]) == ("direct", stored["created_at"])
    claims = claims_of(broker, told["receipt"])
    assert {
        name: claims.get(name) for name in ("file_id", "file_name", "bytes", "route", "sub", "sha256")
    } == {
        **{"file_id": file_id, "file_name": NAME, "bytes": len(CONTENT)},
        **{"route": "direct", "sub": "user-42", "sha256": None},
    }
    record = broker.record(told["request_id"])
    assert record["token_id"] == token["upload_id"]
    assert (record["file_id"], record["subject"], record["logid"]) == (file_id, "user-42", told["logid"])


def test_a_completion_that_is_repeated_gets_the_same_receipt(broker: Broker) -> None:
    """The first answer may have been lost."""
    token = announced(broker)
    file_id = sent(token)
    answers = [completed(token, file_id).json() for _ in range(3)]
    assert len({answer["receipt"] for answer in answers}) == 1


def test_a_file_without_a_name_is_known_by_its_size_and_time(broker: Broker) -> None:
    token = announced(broker, file_name=None)
    assert completed(token, sent(token)).status_code == 200


def test_a_name_is_compared_as_it_is_cleaned(broker: Broker) -> None:
    """What a browser calls the file, and what remains of that at the broker and at Coze."""
    token = announced(broker, file_name="folder/Résumé.csv")
    assert completed(token, sent(token, name="Résumé.csv")).status_code == 200


def test_a_server_s_token_has_no_origin_to_come_from(broker: Broker) -> None:
    token = announced(broker, origin=None)
    assert completed(token, sent(token)).status_code == 200


def test_the_proxy_route_needs_no_completion(broker: Broker) -> None:
    assert "complete_token" not in broker.mint(size=1, route="proxy")


# --- another file than announced (F62) --------------------------------------------------------------


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert "receipt" not in answer.json()


INVENTED = ["7000000000000000001", "1", "a" * 64, "-"]


@pytest.mark.parametrize("file_id", INVENTED)
def test_an_invented_file_id_is_refused(broker: Broker, file_id: str) -> None:
    answer = completed(announced(broker), file_id)
    refused(answer, 422, "file_mismatch")
    record = broker.record(answer.json()["request_id"])
    assert (record["file_id"], record["code"]) == (file_id, "file_mismatch")


@pytest.mark.parametrize("file_id", ["", "a" * 65, "../x", "1?x=2", "1&file_id=2", "标题", 7, None, ["1"]])
def test_what_can_be_no_file_id_is_not_asked_for(
    broker: Broker, sandbox: SandboxControl, file_id: Any
) -> None:
    refused(completed(announced(broker), file_id), 422, "invalid_request")
    assert sandbox.events(kind="retrieve") == []


FOREIGN: dict[str, tuple[bytes, str]] = {
    "of another size": (CONTENT + b"3,4\n", NAME),
    "of another name": (CONTENT, "other.csv"),
    "of another extension": (CONTENT, "标题 (1).py"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_file_is_refused(broker: Broker, case: str) -> None:
    """One of the same account that somebody else sent."""
    content, name = FOREIGN[case]
    foreign = sent(announced(broker, content, file_name=name), content, name)
    refused(completed(announced(broker), foreign), 422, "file_mismatch")


def test_one_file_is_one_upload_s(broker: Broker) -> None:
    """However well it fits: two tokens for the same file, and one file."""
    mine, other = announced(broker), announced(broker)
    file_id = sent(mine)
    assert completed(mine, file_id).status_code == 200
    refused(completed(other, file_id), 422, "file_mismatch")
    assert completed(mine, file_id).status_code == 200


@pytest.mark.parametrize("path", ["/proxy/upload", "/v1/files/upload"])
def test_a_file_that_came_through_the_broker_is_no_direct_upload_s(broker: Broker, path: str) -> None:
    """Whoever learns of another one's file_id gets no receipt that says it was theirs."""
    thief = announced(broker, file_name=None, subject="mallory")
    answer = httpx.post(
        f"{broker.url}{path}", files={"file": (NAME, CONTENT, "text/csv")}, headers=broker.auth()
    ).json()
    file_id = answer["file_id"] if path == "/proxy/upload" else answer["data"]["id"]
    refused(completed(thief, file_id), 422, "file_mismatch")


def test_an_upload_does_not_wait_for_a_store_that_takes_nothing(
    folder: Path, sandbox: SandboxControl
) -> None:
    """Coze has the file by then. Whose it is is noted as soon as that can be done."""
    with running_broker(folder, sandbox.environment) as broker:
        thief = announced(broker, file_name=None, subject="mallory")
        form = {"file": (NAME, CONTENT, "text/csv")}
        url = f"{broker.url}/proxy/upload"
        httpx.post(url, files=form, headers=broker.auth()).raise_for_status()
        with closing(sqlite3.connect(folder / "data" / "broker.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            begun = time.monotonic()
            answer = httpx.post(url, files=form, headers=broker.auth()).raise_for_status().json()
            assert time.monotonic() - begun < STORE_SECONDS / 2
            database.execute("ROLLBACK")
            noted = ("SELECT 1 FROM claims WHERE name = ?", [f"file:{answer['file_id']}"])
            sandbox.wait_for(lambda: database.execute(*noted).fetchone())
        refused(completed(thief, answer["file_id"]), 422, "file_mismatch")


def test_one_upload_is_one_file_s(broker: Broker) -> None:
    """Else a token would be good for looking through the account, file by file."""
    token = announced(broker)
    file_id, second = sent(token), sent(token)
    refused(completed(token, "7000000000000000002"), 422, "file_mismatch")
    refused(completed(token, file_id), 422, "file_mismatch")
    refused(completed(token, second), 422, "file_mismatch")


def test_a_file_that_is_only_named_is_still_free(broker: Broker) -> None:
    """Nobody can keep others from their receipt by naming their file first."""
    mine = announced(broker)
    file_id = sent(mine)
    thief = announced(broker, CONTENT + b"x")
    refused(completed(thief, file_id), 422, "file_mismatch")
    assert completed(mine, file_id).status_code == 200


def test_of_many_who_report_one_file_at_once_one_gets_it(broker: Broker) -> None:
    tokens = [announced(broker) for _ in range(8)]
    file_id = sent(tokens[0])
    with ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(lambda token: completed(token, file_id).status_code, tokens))
    assert statuses == {200: 1, 422: 7}


TOKEN = CompletionToken("id", "user-42", "key_1", 1000, 2000, 8, NAME)
FILE = StoredFile("7", NAME, 8, 1000, None)


@pytest.mark.parametrize(
    ("stored", "fits"),
    [
        pytest.param(FILE, True, id="as announced"),
        pytest.param(replace(FILE, created_at=1500), True, id="later"),
        pytest.param(replace(FILE, created_at=1000 - CLOCK_MARGIN_SECONDS), True, id="by a slower clock"),
        pytest.param(replace(FILE, created_at=999 - CLOCK_MARGIN_SECONDS), False, id="before the token was"),
        pytest.param(replace(FILE, size=7), False, id="smaller"),
        pytest.param(replace(FILE, size=9), False, id="larger"),
        pytest.param(replace(FILE, file_name=""), False, id="without a name"),
        pytest.param(replace(FILE, file_name=NAME.upper()), False, id="in capitals"),
        pytest.param(replace(FILE, file_name="\u202ea.csv"), False, id="under a name that can be none"),
        pytest.param(replace(FILE, file_name=f"folder/{NAME}"), True, id="with a folder before its name"),
    ],
)
def test_the_file_at_coze_is_the_announced_one(stored: StoredFile, fits: bool) -> None:
    assert (difference_between(TOKEN, stored) is None) is fits


# --- who reports it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", None, PAGE_ORIGIN.upper(), PAGE_ORIGIN + ".evil"]
)
def test_a_token_is_good_for_its_own_origin(broker: Broker, origin: str | None) -> None:
    token = announced(broker)
    headers = {"Authorization": f"Bearer {token['complete_token']}"} | ({"Origin": origin} if origin else {})
    refused(completed(token, sent(token), headers=headers), 403, "origin_not_allowed")


def test_a_token_is_good_for_its_own_upload(broker: Broker) -> None:
    one, other = announced(broker), announced(broker)
    refused(completed(one, sent(one), url=other["complete_url"]), 401, "invalid_credential")


def credential_of(broker: Broker, kind: str) -> str:
    token = announced(broker)
    credentials: dict[str, str] = {
        "an API key": broker.secret_key,
        "a publishable key": broker.publishable_key,
        "an upload token": broker.mint(size=8, route="proxy", origin=PAGE_ORIGIN)["access_token"],
        "Coze's own token": token["access_token"],
        "a receipt": completed(token, sent(token)).json()["receipt"],
        "junk": "junk",
        "no": "",
    }
    return credentials[kind]


@pytest.mark.parametrize(
    "kind",
    ["an API key", "a publishable key", "an upload token", "Coze's own token", "a receipt", "junk", "no"],
)
def test_another_credential_completes_nothing(broker: Broker, sandbox: SandboxControl, kind: str) -> None:
    token = announced(broker)
    file_id = sent(token)
    credential = credential_of(broker, kind)
    headers = {"Authorization": f"Bearer {credential}", "Origin": PAGE_ORIGIN} if credential else {}
    before = len(sandbox.events(kind="retrieve"))
    answer = completed(token, file_id, headers=headers)
    refused(answer, 401, "invalid_credential" if credential else "missing_credential")
    assert len(sandbox.events(kind="retrieve")) == before


@pytest.mark.parametrize("path", ["/proxy/upload", "/token", "/v1/files/upload"])
def test_a_completion_token_completes_and_does_nothing_else(broker: Broker, path: str) -> None:
    token = announced(broker)
    headers = {"Authorization": f"Bearer {token['complete_token']}", "Origin": PAGE_ORIGIN}
    answer = httpx.post(f"{broker.url}{path}", headers=headers, json={"size": 1})
    assert answer.status_code == 401


# --- Coze in trouble --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"code": 5000}, 502),
        ({"html": True}, 502),
        ({"half_json": True}, 502),
        ({"code": 4013, "status": 429}, 503),
        ({"truncate": True}, 502),
        ({"code": 4101}, 502),
    ],
)
def test_where_coze_says_nothing_nothing_is_signed_and_it_can_be_asked_again(
    broker: Broker, sandbox: SandboxControl, fault: dict[str, Any], status: int
) -> None:
    token = announced(broker)
    file_id = sent(token)
    sandbox.fail(path=RETRIEVE, **fault)
    answer = completed(token, file_id)
    assert answer.status_code == status
    assert "receipt" not in answer.json()
    sandbox.heal()
    assert completed(token, file_id).status_code == 200


# --- the token itself -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return signing_keys.load(None, tmp_path_factory.mktemp("ring"))


def tokens_at(ring: KeyRing, offset: float = 0, issuer: str = "https://broker.test") -> CompletionTokens:
    return CompletionTokens(ring, issuer, lambda: time.time() + offset)


def text_of(tokens: CompletionTokens, ttl_seconds: int = 60) -> str:
    ends = int(time.time()) + ttl_seconds
    return tokens.mint(subject="user-42", key_id="key_1", expires_at=ends, size=8)[0]


def test_a_token_says_what_it_was_minted_for(ring: KeyRing) -> None:
    tokens = tokens_at(ring)
    ends = int(time.time()) + 60
    text, token = tokens.mint(
        subject="user-42", key_id="key_1", expires_at=ends, size=8, file_name=NAME, origin=PAGE_ORIGIN
    )
    assert tokens.verify(text) == token


def test_a_token_has_its_time(ring: KeyRing) -> None:
    with pytest.raises(ExpiredCredential):
        tokens_at(ring).verify(text_of(tokens_at(ring), -LEEWAY_SECONDS - 1))
    with pytest.raises(InvalidCredential):
        tokens_at(ring).verify(text_of(tokens_at(ring, LEEWAY_SECONDS + 2)))


def test_a_token_of_another_kind_place_or_key_is_none(ring: KeyRing, folder: Path) -> None:
    upload_tokens = UploadTokens(ring, "https://broker.test")
    upload_text, _ = upload_tokens.mint(
        subject="a", key_id="key_1", ttl_seconds=60, upload_max_seconds=60, max_bytes=8
    )
    for text in (
        upload_text,
        text_of(tokens_at(ring, issuer="https://other.test")),
        text_of(tokens_at(signing_keys.load(None, folder))),
    ):
        with pytest.raises(InvalidCredential):
            tokens_at(ring).verify(text)
    with pytest.raises(InvalidCredential):
        upload_tokens.verify(text_of(tokens_at(ring)))
