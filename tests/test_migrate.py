"""``broker migrate``: the schema goes from any revision to the newest and loses nothing on the way."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from broker.auth import key_format
from broker.auth.api_keys import ApiKeys
from broker.auth.secrets_on_disk import pepper
from broker.errors import ExpiredCredential, InvalidCredential
from broker.state.database import Database, api_key_secrets, metadata
from broker.state.schema import HEAD_REVISION, REVISIONS, SchemaError
from tests.support.broker_process import clean_environment, run_command, running_broker
from tests.support.databases import psql
from tests.support.sandbox_control import SandboxControl

PEPPER = b"a pepper for the tests of migration"
OLD_ROWS: dict[str, dict[str, Any]] = {
    "good": {},
    "brief": {"expires_at": int(time.time()) + 3600},
    "expired": {"expires_at": 1_000},
    "revoked": {"revoked_at": 1_000},
    "page": {"kind": "publishable", "scopes": '["token:mint"]', "origins": '["https://a.example"]'},
}


def alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", "broker.state:migrations")
    config.attributes["url"] = url
    return config


def moved_to(url: str, revision: str, how: Callable[[Config, str], None] = command.upgrade) -> None:
    """Alembic itself takes the database there; in a process of its own, as it wants an event loop."""
    code = (
        "import sys; from alembic import command; from alembic.config import Config; c = Config();"
        "c.set_main_option('script_location', 'broker.state:migrations'); c.attributes['url'] = sys.argv[1];"
        "getattr(command, sys.argv[2])(c, sys.argv[3])"
    )
    arguments = [url, how.__name__, revision]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def id_of(name: str) -> str:
    """An id as the broker makes them."""
    return f"key_{name.encode().hex():0<16}"


async def with_old_keys(url: str) -> dict[str, str]:
    """Keys as revisions 0001 and 0002 kept them: the hash in the key's own row. Gives each key's secret."""
    database = Database(url)
    keys, made = ApiKeys(database, PEPPER), {}
    async with database.transaction() as connection:
        for name, changes in OLD_ROWS.items():
            made[name] = key_format.generate(changes.get("kind", "secret"))
            row = {
                "id": id_of(name),
                "kind": "secret",
                "name": name,
                "hash": keys.hashing.hash(made[name]),
                "hint": key_format.hint(made[name]),
                "scopes": '["files:upload"]',
                "origins": "[]",
                "created_at": 900,
                "expires_at": 0,
                "revoked_at": None,
                **changes,
            }
            columns = ", ".join(row)
            values = ", ".join(f":{column}" for column in row)
            await connection.execute(sa.text(f"INSERT INTO api_keys ({columns}) VALUES ({values})"), row)
    await database.close()
    return made


async def rotated(url: str, made: dict[str, str]) -> None:
    """The good key has a new secret, and its old one for a while; the brief one has none any more."""
    database = Database(url)
    keys = ApiKeys(database, PEPPER)
    made["good"], old = key_format.generate("secret"), made["good"]
    async with database.transaction() as connection:
        await connection.execute(
            sa.update(api_key_secrets)
            .where(api_key_secrets.c.hash == keys.hashing.hash(old))
            .values(expires_at=2_000)
        )
        row = {
            "hash": keys.hashing.hash(made["good"]),
            "key_id": id_of("good"),
            "hint": "new",
            "created_at": 1_000,
        }
        await connection.execute(sa.insert(api_key_secrets).values(row))
        await connection.execute(sa.delete(api_key_secrets).where(api_key_secrets.c.key_id == id_of("brief")))
    await database.close()


async def verdicts(database: Database, made: dict[str, str]) -> dict[str, str]:
    """What becomes of each key that is shown."""
    keys, found = ApiKeys(database, PEPPER), {}
    for name, secret in made.items():
        try:
            key = await keys.authenticate(secret)
        except (InvalidCredential, ExpiredCredential) as refusal:
            found[name] = refusal.code
        else:
            found[name] = key.id
    return found


EXPECTED = {
    "good": id_of("good"),
    "brief": id_of("brief"),
    "expired": "expired_credential",
    "revoked": "invalid_credential",
    "page": id_of("page"),
}


@pytest.fixture
def empty(url: str) -> str:
    """The address of an empty database whose folder is there."""
    if url.startswith("sqlite"):
        Path(url.partition("///")[2]).parent.mkdir()
    return url


# --- from where to where ------------------------------------------------------------------------------------


def test_the_revisions_are_those_of_the_migrations() -> None:
    known = ScriptDirectory.from_config(alembic("")).walk_revisions()
    assert tuple(reversed([script.revision for script in known])) == REVISIONS


@pytest.mark.parametrize("revision", REVISIONS[:2])
async def test_keys_of_an_older_database_are_good_in_the_newest(empty: str, revision: str) -> None:
    moved_to(empty, revision)
    made = await with_old_keys(empty)
    database = Database(empty)
    assert await database.revision() == revision
    assert await database.migrate() == revision
    assert await database.revision() == HEAD_REVISION
    assert await verdicts(database, made) == EXPECTED
    listed = {key.id: key for key in (await ApiKeys(database, PEPPER).list()).keys}
    assert listed[id_of("page")].origins == ("https://a.example",)
    assert {key.hint for key in listed.values()} == {key_format.hint(secret) for secret in made.values()}
    await database.close()


async def test_a_schema_can_go_back_with_its_keys_and_come_again(empty: str) -> None:
    moved_to(empty, "0002")
    made = await with_old_keys(empty)
    moved_to(empty, HEAD_REVISION)
    await rotated(empty, made)
    moved_to(empty, "0002", command.downgrade)
    database = Database(empty)
    assert await database.revision() == "0002"
    await database.migrate()
    assert await verdicts(database, made) == EXPECTED | {"brief": "invalid_credential"}
    await database.close()
    moved_to(empty, "base", command.downgrade)
    database = Database(empty)
    assert await database.revision() is None
    async with database.engine.connect() as connection:
        left = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    assert left == ["alembic_version"]
    await database.close()


async def test_a_way_back_and_forth_ends_where_it_began(empty: str) -> None:
    """Whatever way a database took, its tables are those that the code describes."""
    moved_to(empty, HEAD_REVISION)
    moved_to(empty, "0001", command.downgrade)
    moved_to(empty, HEAD_REVISION)

    def compare(connection: sa.Connection) -> Any:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    database = Database(empty)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(compare) == []
    await database.close()


async def test_a_database_of_a_newer_version_is_left_alone(database: Database) -> None:
    async with database.transaction() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    for use in (database.migrate, database.make_ready):
        with pytest.raises(SchemaError, match="revision 9999, which this version does not know"):
            await use()


# --- the command -----------------------------------------------------------------------------------------


def migrate(url: str, folder: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {
        **clean_environment(),
        "DATABASE_URL": url.replace("+asyncpg", "").replace("+aiosqlite", ""),
        "BROKER_DATA_DIR": str(folder / "data"),
    }
    done = run_command("migrate", *arguments, environment=environment, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def test_migrate_says_from_where_to_where(empty: str, folder: Path) -> None:
    moved_to(empty, "0002")
    behind = f"The database has yet to go from revision 0002 to revision {HEAD_REVISION}.\n"
    assert migrate(empty, folder, "--check") == (1, behind, "")
    assert migrate(empty, folder) == (
        0,
        f"The database went from revision 0002 to revision {HEAD_REVISION}.\n",
        "",
    )
    current = f"The database is up to date: it is at revision {HEAD_REVISION}.\n"
    assert migrate(empty, folder) == (0, current, "")
    assert migrate(empty, folder, "--check") == (0, current, "")


def test_migrate_speaks_json(url: str, folder: Path) -> None:
    def told(*arguments: str) -> tuple[int, Any]:
        code, out, _ = migrate(url, folder, "--json", *arguments)
        return code, json.loads(out)

    assert told("--check") == (1, {"from": None, "to": HEAD_REVISION, "current": False})
    assert not list(folder.rglob("*.db")), "looking makes nothing"
    assert told() == (0, {"from": None, "to": HEAD_REVISION, "current": True})
    assert told("--check") == (0, {"from": HEAD_REVISION, "to": HEAD_REVISION, "current": True})


def test_a_database_that_is_away_is_said_in_a_sentence(folder: Path) -> None:
    for arguments in ((), ("--check",)):
        code, out, err = migrate("postgresql://u:secret@127.0.0.1:1/d", folder, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "the database can't be reached" in err
        assert "secret" not in err


MIGRATE_AT = """
import asyncio, sys, time
from broker.state.database import Database

async def main():
    database = Database(sys.argv[1])
    time.sleep(max(0, float(sys.argv[2]) - time.time()))
    print(await database.migrate())
    await database.close()

asyncio.run(main())
"""


async def test_of_those_that_migrate_at_once_one_does_it(empty: str) -> None:
    """The others wait, find it done, and say so; no key is lost or there twice."""
    moved_to(empty, "0001")
    made = await with_old_keys(empty)
    arguments = [sys.executable, "-c", MIGRATE_AT, empty, str(time.time() + 1.5)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(arguments, **pipes) for _ in range(4)]
    told = [process.communicate() for process in processes]
    assert [err for _, err in told] == [""] * 4
    assert sorted(out.strip() for out, _ in told) == ["0001", *[HEAD_REVISION] * 3]
    database = Database(empty)
    assert await verdicts(database, made) == EXPECTED
    await database.close()


# --- serve and keys --------------------------------------------------------------------------------------

GOOD = {"COZE_API_BASE": "https://api.coze.cn", "COZE_API_TOKEN": "sat_1", "PORT": "0"}


def start(url: str, folder: Path, *arguments: str) -> tuple[int, str]:
    environment = {**clean_environment(), **GOOD, "BROKER_DATA_DIR": str(folder / "data")}
    environment["DATABASE_URL"] = url.replace("+asyncpg", "").replace("+aiosqlite", "")
    done = run_command(*arguments, environment=environment, cwd=folder)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [("serve",), ("keys", "list")], ids=" ".join)
@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_postgresql_is_its_operators_to_migrate(url: str, folder: Path, arguments: tuple[str, ...]) -> None:
    """Neither the service nor a command of another version changes a database that others use."""
    told = "error DATABASE_URL, BROKER_DATA_DIR: the database {}, and this version needs {}. "
    told += "Run: broker migrate.\n"
    assert start(url, folder, *arguments) == (2, told.format("has no tables yet", HEAD_REVISION))
    moved_to(url, "0002")
    assert start(url, folder, *arguments) == (2, told.format("is at revision 0002", HEAD_REVISION))


@pytest.mark.parametrize("arguments", [("serve",), ("keys", "list"), ("migrate",)], ids=" ".join)
def test_a_newer_schema_is_not_touched(
    database: Database, url: str, folder: Path, arguments: tuple[str, ...]
) -> None:
    statement = "UPDATE alembic_version SET version_num = '9999'"
    if url.startswith("sqlite"):
        with sqlite3.connect(url.partition("///")[2]) as connection:
            connection.execute(statement)
        connection.close()
    else:
        subprocess.run([*psql(url), "-c", statement], check=True, capture_output=True)
    code, said = start(url, folder, *arguments)
    assert code == 2
    assert "at revision 9999, which this version does not know: a newer one made it." in said
    assert said.count("\n") == 1


async def test_serving_brings_its_own_sqlite_up_to_date(folder: Path, sandbox: SandboxControl) -> None:
    """Keys that were made before the upgrade work after it."""
    data = folder / "data"
    data.mkdir()
    url = f"sqlite+aiosqlite:///{data / 'broker.db'}"
    moved_to(url, "0002")
    made = await with_old_keys(url)
    settings = {"BROKER_KEY_PEPPER": PEPPER.decode()}
    assert pepper(settings["BROKER_KEY_PEPPER"], data) == PEPPER
    with running_broker(folder, sandbox.environment, **settings) as broker:
        answer = httpx.post(
            f"{broker.url}/proxy/upload", files={"file": ("a.csv", b"1")}, headers=broker.auth(made["good"])
        )
        assert answer.status_code == 200, answer.text
