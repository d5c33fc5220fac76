"""API keys: shown once, kept as a hash, bound by rules, useless within a second of being revoked."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.auth.api_keys import ApiKeys, KeyRulesError
from broker.state.database import Database
from tests.support.broker_process import PAGE_ORIGIN, Broker, run_command

PROCESS_SWITCH_SECONDS = 1.0
"""What a busy machine may need between a second's end and the next answer."""


def data_dir(broker: Broker) -> Path:
    return Path(broker.environment["BROKER_DATA_DIR"])


def listed(broker: Broker, key_id: str) -> dict[str, Any]:
    keys = {key["id"]: key for key in json.loads(broker.command("keys", "list", "--json").stdout)}
    found: dict[str, Any] = keys[key_id]
    return found


def mint(broker: Broker, key: str, origin: str | None = None) -> httpx.Response:
    headers = broker.auth(key) | ({"Origin": origin} if origin else {})
    return httpx.post(f"{broker.url}/token", json={"size": 1}, headers=headers)


def test_a_key_is_shown_this_once_and_kept_as_an_hmac(broker: Broker) -> None:
    """Neither a list nor the database, its log or any other file gives it back; without the pepper its
    hash can't even be tried.
    """
    created = broker.create_key("--scope", "files:upload")
    key = created["key"]
    assert mint(broker, key).status_code == 403, "it works, though not for this"
    for arguments in (("keys", "list"), ("keys", "list", "--json")):
        shown = broker.command(*arguments).stdout
        assert key not in shown
        assert key[11:-4] not in shown
    secret_part = key.removeprefix("cub_sk_")[4:-4].encode()
    files = [path for path in data_dir(broker).rglob("*") if path.is_file()]
    assert {"broker.db", "key-pepper", "signing-keys.pem"} <= {path.name for path in files}
    assert [path.name for path in [*files, broker.log] if secret_part in path.read_bytes()] == []
    pepper = (data_dir(broker) / "key-pepper").read_bytes()
    with sqlite3.connect(data_dir(broker) / "broker.db") as database:
        row = database.execute(
            "SELECT hash FROM api_key_secrets WHERE key_id = ?", (created["id"],)
        ).fetchone()
    database.close()
    assert row[0] == hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def test_without_json_the_key_stands_alone_on_its_line(broker: Broker) -> None:
    done = broker.command("keys", "create", "--name", "x", "--scope", "files:upload")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert sum(line.startswith("cub_sk_") and len(line) == 53 for line in lines) == 1
    assert "can't be shown again" in done.stderr


def test_what_was_asked_for_is_what_is_listed(broker: Broker) -> None:
    scopes = ["--scope=token:mint", "--scope=files:read", "--scope=files:read"]
    created = broker.create_key(*scopes, "--origin", PAGE_ORIGIN, "--expires-in-days", "2")
    found = listed(broker, created["id"])
    shown_once = {"key", "signing_secret"}
    assert {name: value for name, value in created.items() if name not in shown_once} == found
    assert found["scopes"] == ["token:mint", "files:read"]
    assert found["origins"] == [PAGE_ORIGIN]
    # Two looks at the clock, which may have gone on by a second in between.
    assert found["expires_at"] - found["created_at"] in (2 * 86_400 - 1, 2 * 86_400)
    assert found["revoked_at"] is None
    assert mint(broker, created["key"], PAGE_ORIGIN).status_code == 200
    assert mint(broker, created["key"]).json()["code"] == "origin_not_allowed"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--scope", "everything"], "A secret key can't have everything. It may have: token:mint, "),
        (["--publishable"], "A publishable key needs the origins"),
        (["--publishable", "--origin", "*"], "--origin: '*' is not an origin"),
        (["--scope", "files:upload", "--expires-in-days", "0"], "expires-in-days"),
    ],
)
def test_the_command_says_why_it_makes_no_key(broker: Broker, arguments: list[str], sentence: str) -> None:
    done = broker.command("keys", "create", "--name", "no such key", "--json", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"name": "", "scopes": ["files:upload"]}, "A name has 1 to 200 characters"),
        ({"name": "x" * 201, "scopes": ["files:upload"]}, "A name has 1 to 200 characters"),
        ({}, "A key without a scope can do nothing"),
        ({"scopes": ["files:upload", "keys:all"]}, "can't have keys:all"),
        ({"kind": "publishable"}, "needs the origins"),
        (
            {"kind": "publishable", "origins": [PAGE_ORIGIN], "scopes": ["token:mint", "files:upload"]},
            "A publishable key can't have files:upload. It may have: token:mint.",
        ),
    ],
)
async def test_a_key_beyond_the_rules_is_not_made(folder: Path, asked: dict[str, Any], sentence: str) -> None:
    database = Database(f"sqlite+aiosqlite:///{folder / 'broker.db'}")
    await database.migrate()
    keys = ApiKeys(database, b"pepper")
    with pytest.raises(KeyRulesError, match=re.escape(sentence)):
        await keys.create(**{"name": "x", **asked})
    assert (await keys.list()).keys == ()
    await database.close()


def test_a_publishable_key_mints_and_does_nothing_else(broker: Broker) -> None:
    key = broker.create_key("--publishable", "--origin", PAGE_ORIGIN)["key"]
    assert key.startswith("cub_pk_")
    assert mint(broker, key, PAGE_ORIGIN).status_code == 200
    assert mint(broker, key).json()["code"] == "origin_not_allowed"
    assert mint(broker, key, "https://elsewhere.example").json()["code"] == "origin_not_allowed"
    headers = broker.auth(key) | {"Origin": PAGE_ORIGIN}
    answer = httpx.post(f"{broker.url}/proxy/upload", files={"file": ("a.csv", b"1")}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "wrong_scope")
    answer = httpx.get(f"{broker.url}/v1/files/retrieve?file_id=1", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, 4101)


def refused_within_a_second(broker: Broker, key: str) -> httpx.Response:
    """The first refusal of a key that another process has just changed."""
    give_up = time.monotonic() + 1 + PROCESS_SWITCH_SECONDS
    while (answer := mint(broker, key)).status_code == 200:
        assert time.monotonic() < give_up, "the broker still takes the key"
    return answer


def test_revoking_takes_effect_within_a_second_on_the_running_broker(broker: Broker) -> None:
    created = broker.create_key("--scope", "token:mint")
    assert mint(broker, created["key"]).status_code == 200
    done = broker.command("keys", "revoke", created["id"])
    assert (done.returncode, done.stdout) == (0, f"{created['id']} is revoked.\n")
    answer = refused_within_a_second(broker, created["key"])
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_credential")
    assert listed(broker, created["id"])["revoked_at"] > 0
    done = broker.command("keys", "revoke", created["id"])
    assert (done.returncode, done.stderr) == (
        2,
        f"error There is no key {created['id']} that could be revoked.\n",
    )


def test_an_expired_key_is_told_so(broker: Broker) -> None:
    created = broker.create_key("--scope", "token:mint", "--expires-in-days", "1")
    assert mint(broker, created["key"]).status_code == 200
    with sqlite3.connect(data_dir(broker) / "broker.db") as database:  # a day goes by
        database.execute("UPDATE api_keys SET expires_at = 1 WHERE id = ?", (created["id"],))
    database.close()
    answer = refused_within_a_second(broker, created["key"])
    assert (answer.status_code, answer.json()["code"]) == (401, "expired_credential")
    assert "expired" in broker.command("keys", "list").stdout


def test_keys_need_no_upstream_but_a_database(broker: Broker, folder: Path) -> None:
    environment = {name: value for name, value in broker.environment.items() if not name.startswith("COZE_")}
    assert run_command("keys", "list", environment=environment).returncode == 0
    (folder / "broker.db").write_bytes(b"junk" * 1000)
    for given, sentences in (
        ({"BROKER_DATA_DIR": str(folder)}, ["the database can't be used"]),
        ({"BROKER_DATA_DIR": "/proc/nothing"}, ["BROKER_DATA_DIR: /proc/nothing can't be used"]),
        (
            {"DATABASE_URL": "mysql://h/d", "BROKER_KEY_PEPPER": "x"},
            ["BROKER_KEY_PEPPER is shorter", "DATABASE_URL: not an address"],
        ),
    ):
        done = run_command("keys", "list", environment=environment | given)
        assert done.returncode == 2
        lines = done.stderr.splitlines()
        assert len(lines) == len(sentences), "a line each, no trace"
        assert all(sentence in line for sentence, line in zip(sentences, lines, strict=True))


def test_a_list_shows_ids_whole_even_in_a_narrow_pipe(broker: Broker) -> None:
    """An id that is cut can't be used to revoke its key."""
    key_id = broker.create_key("--scope", "files:upload")["id"]
    narrow = {**broker.environment, "COLUMNS": "40", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = run_command("keys", "list", environment=narrow)
    assert done.returncode == 0, done.stderr
    assert key_id in done.stdout.split()


def test_a_key_for_a_page_that_browsers_keep_out_is_warned_of(broker: Broker) -> None:
    done = broker.command(
        "keys", "create", "--name", "x", "--publishable", "--origin", "https://elsewhere.example"
    )
    assert done.returncode == 0
    assert "BROKER_ALLOWED_ORIGINS" in done.stderr


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x1b[31mred"])
def test_a_name_can_be_shown(broker: Broker, name: str) -> None:
    done = broker.command("keys", "create", "--name", name, "--scope", "files:upload")
    assert done.returncode == 2
    assert "characters that can be shown" in done.stderr
