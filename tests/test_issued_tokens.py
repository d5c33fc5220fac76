"""What becomes of a token after it was minted: used more than once, looked at, taken back, minted again."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.support.broker_process import PAGE_ORIGIN, Broker, running_broker
from tests.support.raw_http import Connection, head
from tests.support.refusals import CLIENT
from tests.support.sandbox_control import SandboxControl

CSV = b"a,b\n"
MINTER = ("--scope=token:mint", "--scope=files:upload")


def upload(
    broker: Broker, token: str, content_type: str = "text/csv", content: bytes = CSV
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", "Origin": PAGE_ORIGIN}
    files = {"file": ("a.csv", content, content_type)}
    return CLIENT.post(f"{broker.url}/proxy/upload", files=files, headers=headers)


def token(broker: Broker, **asked: Any) -> str:
    return str(broker.mint(**{"size": 4, "route": "proxy", **asked})["access_token"])


def form(broker: Broker, path: str, key: str | None = None, **fields: str) -> httpx.Response:
    return CLIENT.post(f"{broker.url}/token/{path}", data=fields, headers=broker.auth(key))


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "ok")


# --- uses ---------------------------------------------------------------------------------------------


def test_a_token_may_be_good_for_several_uploads(broker: Broker) -> None:
    answer = broker.mint(size=4, route="proxy", uses=3)
    assert answer["uses"] == 3
    assert [upload(broker, answer["access_token"]).status_code for _ in range(4)] == [200, 200, 200, 401]


def test_by_default_it_is_good_for_one_and_says_so(broker: Broker) -> None:
    assert broker.mint(size=4, route="proxy")["uses"] == 1


def test_a_use_is_remembered_for_as_long_as_another_upload_may_be_under_way(
    folder: Path, sandbox: SandboxControl
) -> None:
    """One that began in time may take its time over its first bytes, and must find the token used then."""
    with running_broker(folder, sandbox.environment) as broker:
        answer = broker.mint(size=4, route="proxy")
        assert upload(broker, answer["access_token"]).status_code == 200
    jti = jwt.decode(answer["access_token"], options={"verify_signature": False})["jti"]
    with closing(sqlite3.connect(folder / "data" / "broker.db")) as database:
        kept = database.execute("SELECT expires_at FROM claims WHERE name = ?", [f"upload:{jti}"]).fetchone()
    assert kept[0] >= answer["finish_by"]


def test_more_uses_than_the_policy_has_are_refused_and_named(broker: Broker) -> None:
    refused = CLIENT.post(f"{broker.url}/token", json={"size": 4, "uses": 11}, headers=broker.auth())
    assert code(refused) == (422, "invalid_request")
    assert "10 uploads" in refused.json()["detail"]


# --- what a key may do is what its tokens may ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "asked", "refused"),
    [
        (["--max-bytes=100"], {"size": 101}, (413, "too_large")),
        (["--content-type=image/*"], {"content_type": "text/csv"}, (415, "type_not_granted")),
        (["--network=192.0.2.0/24"], {}, (403, "address_not_allowed")),
    ],
)
def test_a_token_never_allows_more_than_its_key(
    broker: Broker, options: list[str], asked: dict[str, Any], refused: tuple[int, str]
) -> None:
    key = broker.create_key(*MINTER, *options)["key"]
    answer = CLIENT.post(f"{broker.url}/token", json={"size": 4, **asked}, headers=broker.auth(key))
    assert code(answer) == refused


def test_a_key_s_types_bind_a_token_that_names_none(broker: Broker) -> None:
    key = broker.create_key(*MINTER, "--content-type=image/*", "--content-type=application/pdf")["key"]
    text = token(broker, key=key)
    assert code(upload(broker, text)) == (415, "type_not_granted")
    claims = jwt.decode(text, options={"verify_signature": False})
    assert claims["content_types"] == ["image/*", "application/pdf"]


def test_what_a_key_is_bound_to_does_not_go_where_it_can_not_be_checked(broker: Broker) -> None:
    key = broker.create_key(*MINTER, "--content-type=image/*")["key"]
    for asked in ({}, {"content_type": "image/png"}, {"route": "direct"}):
        answer = broker.mint(key=key, size=4, **asked)
        assert (answer["route"], answer["reason"]) == ("proxy", "key_bound_to_types")
    assert broker.mint(key=key, size=4, sensitive=True)["reason"] == "sensitive"
    assert broker.mint(key=key, size=4, route="proxy")["reason"] == "proxy_requested"


@pytest.mark.parametrize(
    ("options", "content", "refused"),
    [
        (["--max-bytes=8"], CSV * 3, (413, "too_large")),
        (["--content-type=image/*"], CSV, (415, "type_not_granted")),
        (["--network=192.0.2.0/24"], CSV, (403, "address_not_allowed")),
        (["--max-bytes=8", "--content-type=text/*", "--network=127.0.0.0/8"], CSV, (200, "ok")),
    ],
)
def test_a_key_that_uploads_itself_is_bound_the_same(
    broker: Broker, options: list[str], content: bytes, refused: tuple[int, str]
) -> None:
    key = broker.create_key(*MINTER, *options)["key"]
    assert code(upload(broker, key, content=content)) == refused


# --- looked at ----------------------------------------------------------------------------------------


def test_introspection_tells_what_a_token_grants(broker: Broker) -> None:
    created = broker.create_key(*MINTER)
    text = token(broker, key=created["key"], subject="user-42", content_type="text/csv")
    found = form(broker, "introspect", created["key"], token=text).json()
    assert found["active"] is True
    assert (found["scope"], found["client_id"], found["sub"]) == ("files:upload", created["id"], "user-42")
    assert (found["max_bytes"], found["content_types"], found["uses"]) == (4, ["text/csv"], 1)
    assert found["iat"] <= time.time() < found["exp"] < found["finish_by"]


@pytest.mark.parametrize(
    "state", ["used", "revoked", "expired", "another key's", "no token", "a key", "a receipt"]
)
def test_of_what_is_not_active_nothing_is_told(broker: Broker, state: str) -> None:
    key = broker.create_key(*MINTER)["key"]
    text = token(broker, key=key)
    if state == "used":
        upload(broker, text)
    elif state == "revoked":
        form(broker, "revoke", key, token=text)
    elif state == "expired":
        text = token(broker, key=key, ttl_seconds=1)
        time.sleep(6.5)  # and its leeway
    elif state == "another key's":
        text = token(broker)
    elif state == "no token":
        text = "x.y.z"
    elif state == "a key":
        text = key
    else:
        text = upload(broker, key).json()["receipt"]
    answer = form(broker, "introspect", key, token=text)
    assert (answer.status_code, answer.json()) == (200, {"active": False})
    assert answer.headers["cache-control"] == "no-store"


def test_an_administrator_may_look_at_every_token(broker: Broker) -> None:
    admin = broker.create_key("--scope=token:mint", "--scope=keys:admin")["key"]
    assert form(broker, "introspect", admin, token=token(broker)).json()["active"] is True


@pytest.mark.parametrize("path", ["introspect", "revoke"])
@pytest.mark.parametrize(
    ("body", "content_type", "refused"),
    [
        (b"{}", "application/json", (415, "unsupported_media_type")),
        (b"", "application/x-www-form-urlencoded", (422, "invalid_request")),
        (b"token=a&token=b", "application/x-www-form-urlencoded", (422, "invalid_request")),
        (b"other=a", "application/x-www-form-urlencoded", (422, "invalid_request")),
        (b"token=" + b"a" * 20_000, "application/x-www-form-urlencoded", (413, "too_large")),
        (b"token=%ff%fe", "application/x-www-form-urlencoded", (200, "ok")),
    ],
)
def test_a_form_that_can_not_be_read_is_refused(
    broker: Broker, path: str, body: bytes, content_type: str, refused: tuple[int, str]
) -> None:
    headers = broker.auth() | {"Content-Type": content_type}
    answer = CLIENT.post(f"{broker.url}/token/{path}", content=body, headers=headers)
    assert answer.status_code == refused[0], answer.text
    assert refused[0] == 200 or answer.json()["code"] == refused[1]


# --- taken back ---------------------------------------------------------------------------------------


def test_a_token_that_is_taken_back_is_refused(broker: Broker) -> None:
    text = token(broker)
    assert form(broker, "revoke", token=text).status_code == 200
    assert code(upload(broker, text)) == (401, "revoked_credential")


def test_an_administrator_takes_back_a_token_that_is_known_by_its_id(broker: Broker) -> None:
    admin = broker.create_key("--scope=token:mint", "--scope=keys:admin")["key"]
    text = token(broker)
    jti = jwt.decode(text, options={"verify_signature": False})["jti"]
    assert code(form(broker, "revoke", jti=jti)) == (403, "wrong_scope")
    assert form(broker, "revoke", admin, jti=jti).status_code == 200
    assert code(upload(broker, text)) == (401, "revoked_credential")


def test_a_token_for_a_receipt_is_taken_back_too(broker: Broker) -> None:
    granted = broker.mint(size=4, file_name="a.csv")
    assert form(broker, "revoke", token=granted["complete_token"]).status_code == 200
    refused = CLIENT.post(
        granted["complete_url"], json={"file_id": "7"}, headers=broker.auth(granted["complete_token"])
    )
    assert code(refused) == (401, "revoked_credential")


def test_what_was_taken_back_is_in_the_audit(broker: Broker) -> None:
    created = broker.create_key(*MINTER)
    text = token(broker, key=created["key"])
    for fields in ({"subject": "anna"}, {"key_id": created["id"]}, {"token": text}):
        form(broker, "revoke", created["key"], **fields)
    listed = broker.command("audit", "list", "--action=token.revoke", f"--key={created['id']}", "--json")
    rows = json.loads(listed.stdout)
    assert [row["detail"]["revoked"] for row in rows] == ["key_subject", "key", "token"]
    assert {row["result"] for row in rows} == {"ok"}
    assert rows[0]["subject"] == "anna"
    assert [row["detail"]["target"] for row in rows] == ["anna", created["id"], rows[2]["token"]]
    assert jwt.decode(text, options={"verify_signature": False})["jti"] not in listed.stdout


@pytest.mark.parametrize("text", ["x.y.z", "", "a" * 9000])
def test_taking_back_what_is_no_token_changes_nothing(broker: Broker, text: str) -> None:
    """RFC 7009 §2.2: there is nothing that a client could do about it."""
    answer = form(broker, "revoke", token=text)
    assert answer.status_code == (200 if text else 422)


def test_nobody_takes_back_what_another_key_minted(broker: Broker) -> None:
    other = broker.create_key(*MINTER)
    text = token(broker, subject="user-42")
    form(broker, "revoke", other["key"], token=text)
    form(broker, "revoke", other["key"], subject="user-42")
    refused = form(broker, "revoke", other["key"], key_id="key_0123456789abcdef")
    assert code(refused) == (403, "wrong_scope")
    assert upload(broker, text).status_code == 200


def test_all_of_a_subject_s_tokens_are_taken_back_and_later_ones_are_good(broker: Broker) -> None:
    created = broker.create_key(*MINTER)
    mine, same, other = (token(broker, key=created["key"], subject=name) for name in ("anna", "anna", "ben"))
    assert form(broker, "revoke", created["key"], subject="anna").status_code == 200
    assert [code(upload(broker, text))[1] for text in (mine, same)] == ["revoked_credential"] * 2
    assert upload(broker, other).status_code == 200
    give_up = time.monotonic() + 3
    while code(upload(broker, token(broker, key=created["key"], subject="anna")))[0] != 200:
        assert time.monotonic() < give_up, "a second after it, at the latest"


def test_a_subject_that_nobody_can_have_is_refused_and_nothing_is_taken_back(broker: Broker) -> None:
    """Cut to its length it would be another one."""
    created = broker.create_key(*MINTER)
    text = token(broker, key=created["key"], subject="s" * 200)
    assert form(broker, "revoke", created["key"], subject="s" * 256).status_code == 422
    assert upload(broker, text).status_code == 200


def test_an_administrator_takes_back_a_subject_s_tokens_of_every_key(broker: Broker) -> None:
    admin = broker.create_key("--scope=token:mint", "--scope=keys:admin")["key"]
    subject = uuid.uuid4().hex
    text = token(broker, subject=subject)
    assert form(broker, "revoke", admin, subject=subject).status_code == 200
    assert code(upload(broker, text)) == (401, "revoked_credential")


def test_all_tokens_of_a_key_are_taken_back_and_the_key_goes_on(broker: Broker) -> None:
    created = broker.create_key(*MINTER)
    text = token(broker, key=created["key"])
    assert form(broker, "revoke", created["key"], key_id=created["id"]).status_code == 200
    assert code(upload(broker, text)) == (401, "revoked_credential")
    assert upload(broker, created["key"]).status_code == 200


def test_an_upload_under_way_is_stopped_when_its_token_is_taken_back(
    broker: Broker, sandbox: SandboxControl
) -> None:
    text = token(broker, size=1_000_000)
    with Connection(broker.url) as connection:
        headers = broker.auth(text) | {"Content-Type": "text/csv", "Content-Length": "1000000"}
        connection.send(head("/proxy/upload", [*headers.items()]) + b"a,b\n" * 32_000)
        sandbox.wait_for(lambda: sandbox.events(kind="upload"))
        form(broker, "revoke", token=text)
        answer = connection.answer()
    assert code(answer) == (401, "revoked_credential")
    assert sandbox.events(outcome="stored") == []


def test_a_key_that_has_expired_has_no_tokens_either(folder: Path, sandbox: SandboxControl) -> None:
    with running_broker(folder, sandbox.environment) as broker:
        admin = broker.create_key("--scope=keys:admin")["key"]
        expires_at = int(time.time()) + 2
        asked = {"name": "short", "scopes": ["token:mint"], "expires_at": expires_at}
        made = CLIENT.post(f"{broker.url}/keys", json=asked, headers=broker.auth(admin)).json()
        text = token(broker, key=made["key"])
        time.sleep(max(0.0, expires_at - time.time()))
        assert code(upload(broker, text)) == (401, "expired_credential")


# --- minted again -------------------------------------------------------------------------------------


def mint_again(broker: Broker, idempotency_key: str, **asked: Any) -> httpx.Response:
    headers = broker.auth() | {"Idempotency-Key": idempotency_key, "Origin": PAGE_ORIGIN}
    return CLIENT.post(f"{broker.url}/token", json=asked, headers=headers)


@pytest.mark.parametrize("route", ["proxy", "direct"])
def test_the_same_request_with_the_same_key_gets_the_same_token(broker: Broker, route: str) -> None:
    key = str(uuid.uuid4())
    first, second = (mint_again(broker, key, size=4, route=route) for _ in range(2))
    assert first.json()["route"] == route
    assert second.json()["access_token"] == first.json()["access_token"]
    assert second.json()["expires_at"] == first.json()["expires_at"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"


def test_another_request_with_the_same_key_is_refused(broker: Broker) -> None:
    key = str(uuid.uuid4())
    assert mint_again(broker, key, size=4).status_code == 200
    assert code(mint_again(broker, key, size=5)) == (409, "idempotency_key_reused")


def test_a_refused_request_may_be_sent_again_with_its_key(broker: Broker) -> None:
    key = str(uuid.uuid4())
    assert mint_again(broker, key, size=4, ttl_seconds=100_000).status_code == 422
    assert mint_again(broker, key, size=4).status_code == 200


def test_once_the_token_is_over_the_key_gets_a_fresh_one(broker: Broker) -> None:
    key = str(uuid.uuid4())
    first = mint_again(broker, key, size=4, route="proxy", ttl_seconds=1).json()
    give_up = time.monotonic() + 5
    while (again := mint_again(broker, key, size=4, route="proxy", ttl_seconds=1).json()) == first or again[
        "access_token"
    ] == first["access_token"]:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert upload(broker, again["access_token"]).status_code == 200


def test_an_upload_s_key_and_a_mint_s_are_two(broker: Broker) -> None:
    key = str(uuid.uuid4())
    assert mint_again(broker, key, size=4).status_code == 200
    headers = broker.auth() | {"Idempotency-Key": key}
    uploaded = CLIENT.post(f"{broker.url}/proxy/upload", files={"file": ("a.csv", CSV)}, headers=headers)
    assert uploaded.status_code == 200


def test_a_kept_token_that_can_not_be_opened_is_not_repeated(broker: Broker) -> None:
    """As after a change of the pepper."""
    key = str(uuid.uuid4())
    assert mint_again(broker, key, size=4).status_code == 200
    with sqlite3.connect(Path(broker.environment["BROKER_DATA_DIR"]) / "broker.db") as database:
        newest = "(SELECT max(rowid) FROM idempotency)"
        sealed = json.dumps({"sealed": "A" * 64})
        database.execute(f"UPDATE idempotency SET answer = ? WHERE rowid = {newest}", [sealed])
    database.close()
    assert code(mint_again(broker, key, size=4)) == (409, "idempotency_key_reused")


def test_a_kept_token_is_of_no_use_to_who_reads_the_database(broker: Broker) -> None:
    kept = mint_again(broker, str(uuid.uuid4()), size=4, route="proxy").json()["access_token"]
    with sqlite3.connect(Path(broker.environment["BROKER_DATA_DIR"]) / "broker.db") as database:
        rows = str(database.execute("SELECT * FROM idempotency").fetchall())
    database.close()
    assert "sealed" in rows
    assert [part for part in kept.split(".") if part in rows] == []
