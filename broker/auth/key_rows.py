"""The rows of API keys: how they are read, written and paged through, within somebody's transaction."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.auth.api_key import ApiKey, KeySecret, from_rows
from broker.auth.key_format import KeyKind
from broker.auth.key_rules import KeyRulesError
from broker.errors import KeyRevoked, NotFound
from broker.state.database import api_key_secrets as secrets_table
from broker.state.database import api_keys as table

MAX_SECRETS = 5
"""The most secrets of one key that are good at a time: the newest, and old ones in their grace."""
_ID = re.compile("key_[0-9a-f]{16}")
_CURSOR = re.compile(f"([0-9]{{1,15}}):({_ID.pattern})")
_CHANGEABLE = {"name", "owner", "scopes", "origins", "rights", "expires_at", "updated_at"}
_OF_A_SECRET = [column.label(f"secret_{column.name}") for column in secrets_table.columns]
OLDEST_FIRST = (table.c.created_at, table.c.id)
NEWEST_FIRST = tuple(column.desc() for column in OLDEST_FIRST)


def is_id(text: str) -> bool:
    """Whether the text could be a key's id; what else a caller sends need not be looked for."""
    return bool(_ID.fullmatch(text))


async def read(
    connection: AsyncConnection,
    *conditions: sa.ColumnElement[bool],
    order: Sequence[sa.ColumnElement[Any]] = (),
    limit: int | None = None,
    offset: int | None = None,
) -> list[ApiKey]:
    """The keys that meet the conditions, each with all its secrets."""
    ids = sa.select(table.c.id).where(*conditions).order_by(*order).limit(limit).offset(offset)
    joined = sa.select(table, *_OF_A_SECRET).join(secrets_table, secrets_table.c.key_id == table.c.id)
    rows = (await connection.execute(joined.where(table.c.id.in_(ids)).order_by(*order))).mappings().all()
    groups = (list(group) for _, group in itertools.groupby(rows, key=lambda row: row["id"]))
    return [from_rows(group[0], [_secret(row) for row in group]) for group in groups]


async def find(connection: AsyncConnection, key_id: str) -> ApiKey | None:
    """The key with this id."""
    found = await read(connection, table.c.id == key_id) if is_id(key_id) else []
    return found[0] if found else None


async def find_by_hash(connection: AsyncConnection, secret_hash: str) -> ApiKey | None:
    """The key that has the secret with this hash, as the one that was used."""
    same = secrets_table.c.hash == secret_hash
    found = await read(connection, table.c.id.in_(sa.select(secrets_table.c.key_id).where(same)))
    if not found:
        return None
    return dataclasses.replace(found[0], used=next(s for s in found[0].secrets if s.hash == secret_hash))


async def hold(connection: AsyncConnection, key_id: str) -> ApiKey:
    """The key, which nobody else can change until this transaction is over.

    Written first, read then: SQLite can't make a writer of a reader when another one wrote in between.
    Raises :class:`NotFound` or :class:`KeyRevoked`.
    """
    await connection.execute(
        sa.update(table).where(table.c.id == key_id if is_id(key_id) else sa.false()).values(id=table.c.id)
    )
    key = await find(connection, key_id)
    if key is None:
        raise NotFound("There is no key with this id.")
    if key.revoked_at is not None:
        raise KeyRevoked
    return key


async def add(connection: AsyncConnection, key: ApiKey) -> None:
    """Write down a key that is new, with its secrets."""
    await connection.execute(sa.insert(table).values(_row(key)))
    for secret in key.secrets:
        await add_secret(connection, key.id, secret)


async def change(connection: AsyncConnection, key: ApiKey) -> None:
    """Write down what may change of a key."""
    values = {name: value for name, value in _row(key).items() if name in _CHANGEABLE}
    await connection.execute(sa.update(table).where(table.c.id == key.id).values(values))


async def revoke(connection: AsyncConnection, key_id: str, now: int) -> bool:
    """Whether there was a key to revoke."""
    live = (table.c.id == key_id, table.c.revoked_at.is_(None))
    statement = sa.update(table).where(*live).values(revoked_at=now, updated_at=now)
    return is_id(key_id) and (await connection.execute(statement)).rowcount == 1


async def add_secret(connection: AsyncConnection, key_id: str, secret: KeySecret) -> None:
    """Give a key another secret."""
    await connection.execute(sa.insert(secrets_table).values(key_id=key_id, **vars(secret)))


async def end_secrets(connection: AsyncConnection, key: ApiKey, *, now: float, grace_seconds: int) -> None:
    """Let no secret live longer than the grace; forget those that are over, and the oldest of too many."""
    ends_at = math.ceil(now + grace_seconds) if grace_seconds else int(now)
    kept = [secret.hash for secret in key.secrets if secret.is_live(now)][: MAX_SECRETS - 1]
    ours, ends = secrets_table.c.key_id == key.id, secrets_table.c.expires_at
    await connection.execute(sa.delete(secrets_table).where(ours, secrets_table.c.hash.not_in(kept)))
    later = sa.or_(ends == 0, ends > ends_at)
    await connection.execute(sa.update(secrets_table).where(ours, later).values(expires_at=ends_at))


def conditions(
    *, owner: str | None, kind: KeyKind | None, active_at: float | None, cursor: str | None
) -> list[sa.ColumnElement[bool]]:
    """What a list of keys is narrowed down to. Raises :class:`KeyRulesError` for a cursor that is none."""
    found: list[sa.ColumnElement[bool]] = []
    if owner is not None:
        found.append(table.c.owner == owner if owner.isprintable() else sa.false())
    if kind is not None:
        found.append(table.c.kind == kind)
    if active_at is not None:
        found += [not_revoked(), sa.or_(table.c.expires_at == 0, table.c.expires_at > active_at)]
    if cursor is not None:
        found.append(_after(cursor))
    return found


def not_revoked() -> sa.ColumnElement[bool]:
    """The keys that somebody may still use, or could if they had not expired."""
    return table.c.revoked_at.is_(None)


def cursor_after(last: ApiKey) -> str:
    """Where a page ended; opaque to whoever passes it back."""
    return base64.urlsafe_b64encode(f"{last.created_at}:{last.id}".encode()).decode().rstrip("=")


def _after(cursor: str) -> sa.ColumnElement[bool]:
    """What comes after the key that a page ended with, whatever became of it since."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise KeyRulesError("The cursor is none that an earlier page gave.")
    created_at, key_id = int(match[1]), match[2]
    same = sa.and_(table.c.created_at == created_at, table.c.id > key_id)
    return sa.or_(table.c.created_at > created_at, same)


def _row(key: ApiKey) -> dict[str, Any]:
    row = {column.name: getattr(key, column.name) for column in table.columns}
    lists = {"scopes": list(key.scopes), "origins": list(key.origins)}
    return {**row, **lists, "rights": dataclasses.asdict(key.rights)}


def _secret(row: Any) -> dict[str, Any]:
    return {column.name: row[f"secret_{column.name}"] for column in secrets_table.columns}
