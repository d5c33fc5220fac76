"""API keys: the table they live in, and what was just read of it.

Only an HMAC of a key's secret is kept. A key may have several secrets for a while: after a rotation the old
ones are good until their grace is over.
"""

from __future__ import annotations

import builtins
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.auth import key_rows, key_rules
from broker.auth.api_key import ApiKey, KeySecret
from broker.auth.key_format import KeyKind, generate, hint, is_well_formed
from broker.auth.key_hashing import KeyHashing
from broker.auth.key_rules import KeyRulesError
from broker.auth.last_use import LastUse
from broker.auth.rights import Rights
from broker.errors import ExpiredCredential, InvalidCredential
from broker.observe.events import Action
from broker.state.database import Database
from broker.state.generation import AlwaysAsk, Generation, announce
from broker.state.recent import Recent
from broker.state.uninterrupted import uninterrupted

__all__ = ["ApiKey", "ApiKeys", "KeyRulesError", "Page", "Witness"]


Witness = Callable[[AsyncConnection, Action, ApiKey], Awaitable[None]]
"""Told of each change within its transaction: what it can't write down is not done."""


@dataclass(frozen=True)
class Page:
    """Some of the keys that were asked for, and where the next ones begin; None at the end."""

    keys: tuple[ApiKey, ...]
    next_cursor: str | None


class ApiKeys:
    """The keys in the database.

    What was found is good for a second at most, and only in the same generation: whatever changes a key
    bumps it, so that every process looks again.
    """

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        now: Callable[[], float] = time.time,
        *,
        generation: Generation | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._database = database
        self._now = now
        self._generation = generation or AlwaysAsk()
        self._witness = witness
        self._by_secret = Recent(self._find_by_secret)
        self._by_id = Recent(self.find)
        self.hashing = KeyHashing(pepper)
        self.last_use = LastUse(database, now)

    # --- who is it? -----------------------------------------------------------------------------

    async def authenticate(self, secret: str, *, generation: object = None) -> ApiKey:
        """The key that ``secret`` is, with the one of its secrets that was ``used``; its last use is noted.

        ``generation`` is the current one, for whoever knows it already.
        Raises :class:`InvalidCredential` (unknown, mistyped or revoked: not told apart) or
        :class:`ExpiredCredential`: the key's time, or the grace of this secret, is over.
        """
        if not is_well_formed(secret):
            raise InvalidCredential(log="API key with a wrong checksum")
        digest = self.hashing.hash(secret)
        key = await self._by_secret.get(digest, self._current(generation))
        if key is None or key.used is None or not hmac.compare_digest(key.used.hash, digest):
            raise InvalidCredential(log="API key unknown")
        self._check_is_live(key, key.used)
        self.last_use.touch(key.id)
        return key

    async def by_id(self, key_id: str, *, generation: object = None) -> ApiKey | None:
        """The key with this id, as it was a moment ago at most; None when it is unknown or revoked.

        One that has expired is found: what was begun with it may be finished.
        """
        key = await self._by_id.get(key_id, self._current(generation))
        return None if key is None or key.revoked_at is not None else key

    async def signing_secrets(self, key_id: str, *, generation: object = None) -> builtins.list[bytes]:
        """What requests of this key may be signed with now, the newest first: 32 bytes for each live secret.

        None at all for a key that is unknown, revoked, expired, or publishable.
        """
        key, now = await self.by_id(key_id, generation=generation), self._now()
        if key is None or key.kind != "secret" or key.has_expired(now):
            return []
        return [self.hashing.signing_secret(each.hash) for each in key.secrets if each.is_live(now)]

    async def signer(self, key_id: str, signing_secret: bytes, *, generation: object = None) -> ApiKey | None:
        """The key with this id, with the one of its secrets that was ``used`` to sign.

        None when it has no such secret any more, or is unknown or revoked.
        """
        key = await self.by_id(key_id, generation=generation)
        if key is None:
            return None
        made = ((each, self.hashing.signing_secret(each.hash)) for each in key.secrets)
        used = [each for each, secret in made if hmac.compare_digest(secret, signing_secret)]
        return replace(key, used=used[0]) if used else None

    def _current(self, generation: object) -> object:
        return self._generation.current() if generation is None else generation

    def _check_is_live(self, key: ApiKey, used: KeySecret) -> None:
        now = self._now()
        if key.revoked_at is not None:
            raise InvalidCredential(log=f"API key {key.id} is revoked")
        if key.has_expired(now):
            raise ExpiredCredential(log=f"API key {key.id} has expired")
        if not used.is_live(now):
            raise ExpiredCredential(log=f"API key {key.id} was rotated: {used.hint} is over")

    # --- what is there? -------------------------------------------------------------------------

    @uninterrupted
    async def find(self, key_id: str) -> ApiKey | None:
        """The key with this id as it is, revoked ones too."""
        async with self._database.transaction() as connection:
            return await key_rows.find(connection, key_id)

    @uninterrupted
    async def list(
        self,
        *,
        limit: int = 100,
        cursor: str | None = None,
        owner: str | None = None,
        kind: KeyKind | None = None,
        active_only: bool = False,
    ) -> Page:
        """At most ``limit`` keys, the oldest first, from where an earlier page's ``next_cursor`` says.

        Raises :class:`KeyRulesError` for a cursor that is none.
        """
        active_at = self._now() if active_only else None
        wanted = key_rows.conditions(owner=owner, kind=kind, active_at=active_at, cursor=cursor)
        async with self._database.transaction() as connection:
            found = await key_rows.read(connection, *wanted, order=key_rows.OLDEST_FIRST, limit=limit + 1)
        return _page(found, limit)

    @uninterrupted
    async def newest(self, *, limit: int, offset: int = 0) -> Page:
        """At most ``limit`` keys that are not revoked, the newest first; for callers that count pages."""
        async with self._database.transaction() as connection:
            found = await key_rows.read(
                connection,
                key_rows.not_revoked(),
                order=key_rows.NEWEST_FIRST,
                limit=limit + 1,
                offset=offset,
            )
        return _page(found, limit)

    @uninterrupted
    async def _find_by_secret(self, digest: str) -> ApiKey | None:
        async with self._database.transaction() as connection:
            return await key_rows.find_by_hash(connection, digest)

    # --- changes --------------------------------------------------------------------------------

    @uninterrupted
    async def create(
        self,
        *,
        name: str,
        kind: KeyKind = "secret",
        owner: str = "",
        scopes: Iterable[str] = (),
        origins: Iterable[str] = (),
        rights: Rights | None = None,
        expires_at: int = 0,
    ) -> tuple[ApiKey, str]:
        """Make a key; the second value is the key itself, which can't be had again.

        Raises :class:`KeyRulesError` when the rules for its kind are not met.
        """
        now, secret = self._now(), generate(kind)
        key_rules.check_expiry(expires_at, now)
        key = key_rules.checked(
            ApiKey(
                id=f"key_{secrets.token_hex(8)}",
                kind=kind,
                name=name,
                owner=owner,
                scopes=tuple(scopes) or key_rules.default_scopes(kind),
                origins=tuple(origins),
                rights=rights or Rights(),
                created_at=int(now),
                updated_at=int(now),
                last_used_at=None,
                expires_at=expires_at,
                revoked_at=None,
                secrets=(self._masked(secret, now),),
            )
        )
        async with self._changing() as connection:
            await key_rows.add(connection, key)
            await self._tell(connection, "key.create", key)
        return key, secret

    @uninterrupted
    async def update(self, key_id: str, change: Callable[[ApiKey], ApiKey]) -> ApiKey:
        """Change what may be changed of a key: ``change`` makes the new one of the old one.

        Name, owner, scopes, origins, rights and ``expires_at`` count. Raises :class:`NotFound`,
        :class:`KeyRevoked`, or :class:`KeyRulesError` when the whole of it doesn't meet the rules.
        """
        now = self._now()
        async with self._changing() as connection:
            old = await key_rows.hold(connection, key_id)
            new = key_rules.checked(replace(change(old), updated_at=int(now)))
            if new.expires_at != old.expires_at:
                key_rules.check_expiry(new.expires_at, now)
            await key_rows.change(connection, new)
            await self._tell(connection, "key.update", new)
        return new

    @uninterrupted
    async def rotate(self, key_id: str, *, grace_seconds: int) -> tuple[ApiKey, str]:
        """Give a key a new secret, the second value. Every older one is good for ``grace_seconds`` at most.

        One that was in its grace already keeps its end, or gets the new one if that comes sooner: so a second
        rotation cuts nobody off whose time was promised longer, unless its own grace is shorter.
        Raises :class:`NotFound`, :class:`KeyRevoked`, or :class:`KeyRulesError` (no grace, an expired key).
        """
        key_rules.check_grace(grace_seconds)
        now = self._now()
        async with self._changing() as connection:
            old = await key_rows.hold(connection, key_id)
            if old.has_expired(now):
                raise KeyRulesError("The key has expired. Give it a later expires_at first.")
            secret = generate(old.kind)
            await key_rows.end_secrets(connection, old, now=now, grace_seconds=grace_seconds)
            await key_rows.add_secret(connection, key_id, self._masked(secret, now))
            await key_rows.change(connection, replace(old, updated_at=int(now)))
            new = await key_rows.hold(connection, key_id)
            await self._tell(connection, "key.rotate", new)
        return new, secret

    @uninterrupted
    async def revoke(self, key_id: str) -> bool:
        """Make a key useless from now on, for good. False when there is none or it was revoked before."""
        async with self._changing() as connection:
            is_revoked = await key_rows.revoke(connection, key_id, int(self._now()))
            if is_revoked:
                await self._tell(connection, "key.revoke", await key_rows.find(connection, key_id))
        return is_revoked

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction after which nobody goes by what was found before it, whatever became of it."""
        try:
            async with self._database.transaction() as connection:
                yield connection
        finally:
            self._by_secret.forget()
            self._by_id.forget()
            await announce(self._generation)  # after the change, or another process might look too early

    async def _tell(self, connection: AsyncConnection, action: Action, key: ApiKey | None) -> None:
        """The last thing in a transaction: the audit's end is locked from here to its commit."""
        if self._witness is not None and key is not None:
            await self._witness(connection, action, key)

    def _masked(self, secret: str, now: float) -> KeySecret:
        return KeySecret(hint(secret), int(now), 0, self.hashing.hash(secret))


def _page(found: builtins.list[ApiKey], limit: int) -> Page:
    """One key more was asked for, to know whether there is a next page."""
    return Page(tuple(found[:limit]), key_rows.cursor_after(found[limit - 1]) if len(found) > limit else None)
