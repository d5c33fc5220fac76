"""API keys: their form, their hash, and the table they live in.

A key reads ``cub_sk_<40 random characters><6 of checksum>`` (secret, for servers) or ``cub_pk_…``
(publishable, for pages). The prefix lets scanners find a leaked key; the checksum refuses a mistyped
one without a look-up. Only an HMAC of the key is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import string
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from broker.auth import scopes as known_scopes
from broker.errors import ExpiredCredential, InvalidCredential
from broker.settings import PUBLISHABLE_PREFIX, SECRET_PREFIX
from broker.state.database import Database
from broker.state.database import api_key_secrets as secrets_table
from broker.state.database import api_keys as table
from broker.state.recent import Recent
from broker.state.uninterrupted import uninterrupted

KeyKind = Literal["secret", "publishable"]
PREFIXES: dict[KeyKind, str] = {"secret": SECRET_PREFIX, "publishable": PUBLISHABLE_PREFIX}
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_LENGTH = 40
CHECKSUM_LENGTH = 6
MAX_NAME_LENGTH = 200
_JOINED = sa.select(table, secrets_table.c.hint).join(secrets_table, secrets_table.c.key_id == table.c.id)


@dataclass(frozen=True)
class ApiKey:
    """What is known of a key: everything but the key. Times are Unix seconds; ``expires_at`` 0 is never."""

    id: str
    kind: KeyKind
    name: str
    hint: str
    scopes: tuple[str, ...]
    origins: tuple[str, ...]
    created_at: int
    expires_at: int
    revoked_at: int | None

    def allows_origin(self, origin: str | None) -> bool:
        """Whether the key may be used from ``origin``; a key without origins may be used from any."""
        return not self.origins or origin in self.origins


class KeyRulesError(ValueError):
    """A key that was asked for can't be made; the message says why."""


class ApiKeys:
    """The keys in the database.

    What ``authenticate`` found is good for a second: so much later at most, a key that another process
    revoked is refused. Whatever changes a key here calls ``_recent.forget()``, and it shows at once.
    """

    def __init__(self, database: Database, pepper: bytes, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._pepper = pepper
        self._now = now
        self._recent = Recent(self._find)

    @uninterrupted
    async def create(
        self,
        *,
        name: str,
        kind: KeyKind = "secret",
        scopes: Iterable[str] = (),
        origins: Iterable[str] = (),
        expires_at: int = 0,
    ) -> tuple[ApiKey, str]:
        """Make a key; the second value is the key itself, which can't be had again.

        Raises :class:`KeyRulesError` when the rules for its kind are not met.
        """
        granted = tuple(dict.fromkeys(scopes)) or (known_scopes.PUBLISHABLE if kind == "publishable" else ())
        allowed_origins = tuple(dict.fromkeys(origins))
        _check_rules(name, kind, granted, allowed_origins)
        secret = generate(kind)
        key = ApiKey(
            id=f"key_{secrets.token_hex(8)}",
            kind=kind,
            name=name,
            hint=hint(secret),
            scopes=granted,
            origins=allowed_origins,
            created_at=int(self._now()),
            expires_at=expires_at,
            revoked_at=None,
        )
        row = {
            **vars(key),
            "scopes": list(granted),
            "origins": list(allowed_origins),
            "rights": {},
            "updated_at": key.created_at,
        }
        shown = {"hint": row.pop("hint"), "created_at": key.created_at}
        secret_row = {"hash": self._hash(secret), "key_id": key.id, **shown}
        async with self._database.transaction() as connection:
            await connection.execute(sa.insert(table).values(row))
            await connection.execute(sa.insert(secrets_table).values(secret_row))
        return key, secret

    @uninterrupted
    async def list(self) -> list[ApiKey]:
        """All keys, the oldest first, revoked ones too."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(_JOINED.order_by(table.c.created_at, table.c.id))
            return [_key(row._mapping) for row in rows]

    @uninterrupted
    async def revoke(self, key_id: str) -> bool:
        """Make a key useless from now on, in other processes within a second.

        False when there is no such key or it was revoked before.
        """
        statement = (
            sa.update(table)
            .where(table.c.id == key_id, table.c.revoked_at.is_(None))
            .values(revoked_at=int(self._now()))
        )
        try:
            async with self._database.transaction() as connection:
                return (await connection.execute(statement)).rowcount == 1
        finally:
            self._recent.forget()

    async def authenticate(self, secret: str) -> ApiKey:
        """The key that ``secret`` is.

        Raises :class:`InvalidCredential` (unknown, mistyped or revoked: not told apart) or
        :class:`ExpiredCredential`.
        """
        if not is_well_formed(secret):
            raise InvalidCredential(log="API key with a wrong checksum")
        key = await self._recent.get(self._hash(secret))
        if key is None or key.revoked_at is not None:
            raise InvalidCredential(log="API key unknown" if key is None else f"API key {key.id} is revoked")
        if 0 < key.expires_at <= self._now():
            raise ExpiredCredential(log=f"API key {key.id} has expired")
        return key

    @uninterrupted
    async def _find(self, digest: str) -> ApiKey | None:
        async with self._database.transaction() as connection:
            result = await connection.execute(_JOINED.where(secrets_table.c.hash == digest))
            row = result.mappings().first()
        return None if row is None else _key(row)

    def _hash(self, secret: str) -> str:
        return hmac.new(self._pepper, secret.encode(), hashlib.sha256).hexdigest()


def generate(kind: KeyKind) -> str:
    """A fresh key of 238 random bits, with its prefix and checksum."""
    body = PREFIXES[kind] + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_LENGTH))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether the text could be a key at all; costs no look-up."""
    body, check = secret[:-CHECKSUM_LENGTH], secret[-CHECKSUM_LENGTH:]
    return secret.isascii() and looks_like_key(secret) and hmac.compare_digest(_checksum(body), check)


def looks_like_key(text: str) -> bool:
    """Whether the text has a key's prefix."""
    return text.startswith(tuple(PREFIXES.values()))


def hint(secret: str) -> str:
    """Enough of a key for its owner to know it again, too little to use it."""
    return f"{secret[:11]}…{secret[-4:]}"


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def _check_rules(name: str, kind: KeyKind, scopes: tuple[str, ...], origins: tuple[str, ...]) -> None:
    may_have = known_scopes.PUBLISHABLE if kind == "publishable" else known_scopes.ALL
    refused = [scope for scope in scopes if scope not in may_have]
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise KeyRulesError(f"A name has 1 to {MAX_NAME_LENGTH} characters that can be shown.")
    if refused:
        raise KeyRulesError(
            f"A {kind} key can't have {', '.join(refused)}. It may have: {', '.join(may_have)}."
        )
    if not scopes:
        raise KeyRulesError(f"A key without a scope can do nothing. Choose from: {', '.join(may_have)}.")
    if kind == "publishable" and not origins:
        raise KeyRulesError("A publishable key needs the origins of the pages that it stands in.")


def _key(row: Any) -> ApiKey:
    return ApiKey(
        **{
            name: row[name]
            for name in ("id", "kind", "name", "hint", "created_at", "expires_at", "revoked_at")
        },
        scopes=tuple(row["scopes"]),
        origins=tuple(row["origins"]),
    )
