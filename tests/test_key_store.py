"""The store of API keys, the same on SQLite and PostgreSQL: what is changed is so for whoever looks again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from dataclasses import asdict, replace

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from broker.auth.api_keys import ApiKey, ApiKeys, KeyRulesError
from broker.auth.key_rows import MAX_SECRETS
from broker.auth.last_use import LastUse
from broker.auth.rights import KeyLimits, Rights
from broker.errors import (
    ExpiredCredential,
    InvalidCredential,
    KeyRevoked,
    NotFound,
    Refusal,
    StoreUnavailable,
)
from broker.state.database import Database, api_key_secrets, api_keys
from broker.state.generation import AlwaysAsk
from tests.support.clock import Clock

PEPPER = b"pepper"
BOUND = Rights(
    bots=("1",),
    workflows=("2",),
    content_types=("image/*",),
    max_bytes=10,
    networks=("192.0.2.0/24",),
    limits=KeyLimits(requests=1, bytes=2, window_seconds=3, inflight_uploads=4),
)


@pytest.fixture
def keys(database: Database, clock: Clock) -> ApiKeys:
    return ApiKeys(database, PEPPER, clock)


async def create(keys: ApiKeys, **asked: object) -> tuple[ApiKey, str]:
    return await keys.create(**{"name": "x", "scopes": ["files:upload"], **asked})  # type: ignore[arg-type]


async def outcome(keys: ApiKeys, secret: str) -> type[Refusal] | None:
    try:
        await keys.authenticate(secret)
    except Refusal as refusal:
        return type(refusal)
    return None


async def count(database: Database, table: sa.Table) -> int:
    async with database.engine.connect() as connection:
        found: int = (await connection.execute(sa.select(sa.func.count()).select_from(table))).scalar_one()
    return found


# --- what is kept ---------------------------------------------------------------------------------


async def test_a_key_is_kept_as_it_was_made(keys: ApiKeys) -> None:
    key, secret = await create(keys, owner="王", rights=BOUND, expires_at=5000, origins=["https://a.example"])
    assert await keys.find(key.id) == await keys.by_id(key.id) == await keys.authenticate(secret) == key
    assert (key.owner, key.rights, key.expires_at, key.created_at, key.updated_at) == (
        "王",
        BOUND,
        5000,
        1000,
        1000,
    )


async def test_no_secret_stands_in_what_is_printed_or_kept(keys: ApiKeys, database: Database) -> None:
    key, secret = await create(keys)
    async with database.engine.connect() as connection:
        rows = [
            *await connection.execute(sa.select(api_keys)),
            *await connection.execute(sa.select(api_key_secrets)),
        ]
    signing = keys.hashing.shown_signing_secret(secret)
    assert signing
    for text in (repr(key), str(key.described(0)), repr(rows)):
        assert secret[11:-4] not in text
        assert signing[7:] not in text
        assert (await keys.signing_secrets(key.id))[0].hex() not in text
    assert keys.hashing.hash(secret) not in repr(key) + str(key.described(0))


async def test_a_bound_that_this_version_does_not_know_lets_nobody_in(
    keys: ApiKeys, database: Database
) -> None:
    """A newer broker wrote it; to pass it over would give the key more than it should have."""
    key, secret = await create(keys)
    unknown = {**asdict(key.rights), "countries": ["CN"]}
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(api_keys).values(rights=unknown))
    with pytest.raises(TypeError):
        await keys.authenticate(secret)


async def test_rights_of_an_older_version_set_no_bound(keys: ApiKeys, database: Database) -> None:
    _, secret = await create(keys)
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(api_keys).values(rights={}))
    assert (await keys.authenticate(secret)).rights == Rights()


# --- change ---------------------------------------------------------------------------------------


async def test_a_change_is_checked_as_a_whole_and_else_not_made(keys: ApiKeys, clock: Clock) -> None:
    key, _ = await create(keys)
    clock.now = 1010
    changed = await keys.update(key.id, lambda old: replace(old, name="y", rights=BOUND))
    assert changed == replace(key, name="y", rights=BOUND, updated_at=1010)
    with pytest.raises(KeyRulesError):
        await keys.update(key.id, lambda old: replace(old, name="z", scopes=()))
    assert await keys.find(key.id) == changed


async def test_changes_at_once_are_made_one_after_the_other(database: Database) -> None:
    """Each sees the one before: nothing that somebody changed is lost."""
    several = [ApiKeys(database, PEPPER) for _ in range(8)]
    key, _ = await create(several[0])

    def longer(old: ApiKey) -> ApiKey:
        return replace(old, name=old.name + "x")

    await asyncio.gather(*(each.update(key.id, longer) for each in several))
    changed = await several[0].find(key.id)
    assert changed is not None
    assert changed.name == "x" * 9


@pytest.mark.parametrize("key_id", ["key_0123456789abcdef", "", "key_1\0", "key_" + "g" * 16])
async def test_a_key_that_is_not_there_is_told_from_a_revoked_one(keys: ApiKeys, key_id: str) -> None:
    assert await keys.find(key_id) is None
    assert await keys.by_id(key_id) is None
    assert await keys.signing_secrets(key_id) == []
    assert not await keys.revoke(key_id)
    with pytest.raises(NotFound):
        await keys.update(key_id, lambda old: old)
    with pytest.raises(NotFound):
        await keys.rotate(key_id, grace_seconds=0)
    key, _ = await create(keys)
    assert await keys.revoke(key.id)
    assert await keys.by_id(key.id) is None
    with pytest.raises(KeyRevoked):
        await keys.update(key.id, lambda old: old)
    with pytest.raises(KeyRevoked):
        await keys.rotate(key.id, grace_seconds=0)


# --- rotate ---------------------------------------------------------------------------------------


async def test_the_old_secret_works_through_its_grace_and_not_a_moment_longer(
    keys: ApiKeys, clock: Clock
) -> None:
    key, old = await create(keys)
    rotated, new = await keys.rotate(key.id, grace_seconds=60)
    assert rotated.id == key.id
    assert [secret.expires_at for secret in rotated.secrets] == [0, 1060]
    clock.now = 1059.9
    by_old, by_new = await keys.authenticate(old), await keys.authenticate(new)
    assert by_old == by_new == rotated
    assert (by_old.hint, by_old.secret_expires_at) == (key.hint, 1060)
    assert (by_new.hint, by_new.secret_expires_at) == (rotated.hint, 0)
    clock.now = 1060
    assert await outcome(keys, old) is ExpiredCredential
    assert await outcome(keys, new) is None


async def test_a_part_of_a_second_is_not_taken_off_the_grace(keys: ApiKeys, clock: Clock) -> None:
    key, old = await create(keys)
    clock.now = 1000.7
    await keys.rotate(key.id, grace_seconds=1)
    clock.now = 1001.6
    assert await outcome(keys, old) is None
    clock.now = 1002
    assert await outcome(keys, old) is ExpiredCredential


async def test_a_second_rotation_cuts_nobody_off_unless_it_is_told_to(keys: ApiKeys, clock: Clock) -> None:
    """An answer that got lost is asked for again, while everybody still uses the first secret."""
    key, first = await create(keys)
    _, lost = await keys.rotate(key.id, grace_seconds=60)
    clock.now = 1010
    rotated, newest = await keys.rotate(key.id, grace_seconds=600)
    assert [secret.expires_at for secret in rotated.secrets] == [0, 1610, 1060]
    clock.now = 1059
    assert [await outcome(keys, each) for each in (first, lost, newest)] == [None] * 3
    clock.now = 1060
    assert [await outcome(keys, each) for each in (first, lost, newest)] == [ExpiredCredential, None, None]
    await keys.rotate(key.id, grace_seconds=0)
    assert [await outcome(keys, each) for each in (lost, newest)] == [ExpiredCredential] * 2


async def test_secrets_that_are_over_are_forgotten_by_the_next_rotation(
    keys: ApiKeys, database: Database, clock: Clock
) -> None:
    key, old = await create(keys)
    await keys.rotate(key.id, grace_seconds=1)
    clock.now = 1002
    await keys.rotate(key.id, grace_seconds=1)
    assert await count(database, api_key_secrets) == 2
    assert await outcome(keys, old) is InvalidCredential


async def test_only_so_many_secrets_are_good_at_a_time(
    keys: ApiKeys, database: Database, clock: Clock
) -> None:
    key, secret = await create(keys)
    secrets = [secret]
    for _ in range(MAX_SECRETS + 2):
        clock.now += 1
        secrets.append((await keys.rotate(key.id, grace_seconds=1000))[1])
    assert await count(database, api_key_secrets) == MAX_SECRETS
    good = [await outcome(keys, each) is None for each in secrets]
    assert good == [False] * 3 + [True] * MAX_SECRETS


async def test_rotations_at_once_leave_one_secret_that_never_ends(database: Database) -> None:
    several = [ApiKeys(database, PEPPER) for _ in range(4)]
    key, old = await create(several[0])
    made = await asyncio.gather(*(each.rotate(key.id, grace_seconds=60) for each in several))
    found = await several[0].find(key.id)
    assert found is not None
    assert [secret.expires_at == 0 for secret in found.secrets] == [True] + [False] * 4
    for secret in (old, *(secret for _, secret in made)):
        assert await outcome(several[0], secret) is None


# --- what was just found --------------------------------------------------------------------------


class Shared:
    """The generation of two stores, as two workers have it."""

    def __init__(self) -> None:
        self.number = 0

    def current(self) -> str | None:
        return str(self.number)

    async def newest(self) -> str | None:
        return self.current()

    async def bump(self) -> None:
        self.number += 1


async def test_every_change_is_seen_at_once_by_whoever_shares_the_generation(
    database: Database, clock: Clock
) -> None:
    shared = Shared()
    here, there = (ApiKeys(database, PEPPER, clock, generation=shared) for _ in range(2))
    key, secret = await create(here)
    assert await there.authenticate(secret) == await there.by_id(key.id) == key
    changed = await here.update(key.id, lambda old: replace(old, scopes=("files:read",)))
    assert await there.authenticate(secret) == await there.by_id(key.id) == changed
    assert len(await there.signing_secrets(key.id)) == 1
    _, new = await here.rotate(key.id, grace_seconds=0)
    assert await outcome(there, secret) is ExpiredCredential
    assert len(await there.signing_secrets(key.id)) == 1
    assert await outcome(there, new) is None
    await here.revoke(key.id)
    assert await outcome(there, new) is InvalidCredential
    assert await there.by_id(key.id) is None
    assert await there.signing_secrets(key.id) == []


async def test_a_generation_that_is_known_already_is_taken_instead(database: Database) -> None:
    here, there = ApiKeys(database, PEPPER), ApiKeys(database, PEPPER)
    key, secret = await create(here)
    await there.authenticate(secret, generation=1)
    await here.revoke(key.id)
    await there.authenticate(secret, generation=1)
    with pytest.raises(InvalidCredential):
        await there.authenticate(secret, generation=2)


async def test_without_a_generation_everything_is_looked_up_anew(database: Database) -> None:
    here, there = ApiKeys(database, PEPPER), ApiKeys(database, PEPPER, generation=AlwaysAsk())
    key, secret = await create(here)
    await there.authenticate(secret)
    await there.by_id(key.id)
    await here.revoke(key.id)
    assert await outcome(there, secret) is InvalidCredential
    assert await there.by_id(key.id) is None


class Failing(Shared):
    """Redis is away."""

    async def bump(self) -> None:
        raise StoreUnavailable(log="Redis is away")


async def test_a_change_stands_though_the_others_can_not_be_told(database: Database) -> None:
    keys = ApiKeys(database, PEPPER, generation=Failing())
    key, secret = await create(keys)
    assert await keys.revoke(key.id)
    assert await outcome(keys, secret) is InvalidCredential


# --- last use -------------------------------------------------------------------------------------


async def test_a_use_is_noted_at_once_and_written_later(keys: ApiKeys, clock: Clock) -> None:
    key, secret = await create(keys)
    clock.now = 1005.9
    await keys.authenticate(secret)
    found = await keys.find(key.id)
    assert found is not None
    assert found.last_used_at is None
    await keys.last_use.flush()
    assert await keys.find(key.id) == replace(key, last_used_at=1005)


async def test_a_refused_use_is_none(keys: ApiKeys) -> None:
    key, secret = await create(keys)
    await keys.revoke(key.id)
    assert await outcome(keys, secret) is InvalidCredential
    await keys.last_use.flush()
    found = await keys.find(key.id)
    assert found is not None
    assert found.last_used_at is None


async def test_the_last_use_of_several_workers_never_moves_backwards(
    database: Database, clock: Clock
) -> None:
    early, late = LastUse(database, clock), LastUse(database, clock)
    made = [(await create(ApiKeys(database, PEPPER, clock)))[0] for _ in range(20)]
    for key in made:
        early.touch(key.id)
    clock.now = 2000
    for key in reversed(made):
        late.touch(key.id)
    await asyncio.gather(late.flush(), early.flush())
    await early.flush()
    page = await ApiKeys(database, PEPPER).list()
    assert [key.last_used_at for key in page.keys] == [2000] * 20


async def test_a_database_that_fails_loses_no_use(clock: Clock, database: Database) -> None:
    key, _ = await create(ApiKeys(database, PEPPER, clock))
    uses = LastUse(database, clock)
    uses.touch(key.id)
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE api_keys RENAME TO gone"))
    with pytest.raises(StoreUnavailable):
        await uses.flush()
    clock.now = 1500
    uses.touch("key_0123456789abcdef")
    async with database.engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE gone RENAME TO api_keys"))
    await uses.flush()
    found = await ApiKeys(database, PEPPER).find(key.id)
    assert found is not None
    assert found.last_used_at == 1000


async def test_uses_are_written_every_so_often_and_at_the_end(database: Database, clock: Clock) -> None:
    keys = ApiKeys(database, PEPPER, clock)
    key, _ = await create(keys)

    async def written() -> int | None:
        found = await keys.find(key.id)
        assert found is not None
        return found.last_used_at

    async with keys.last_use.written_behind(every_seconds=0.01):
        keys.last_use.touch(key.id)
        async with asyncio.timeout(10):
            while await written() is None:
                await asyncio.sleep(0.01)
    clock.now = 3000
    async with keys.last_use.written_behind(every_seconds=3600):
        keys.last_use.touch(key.id)
    assert await written() == 3000


# --- signing secrets ------------------------------------------------------------------------------


async def test_a_signing_secret_is_derived_as_it_is_said(keys: ApiKeys) -> None:
    """HMAC-SHA-256 of the secret's hash under a key of its own, which HKDF made of the pepper, as a text; who
    signs uses the text as it is.
    """
    key, secret = await create(keys)
    derived = HKDF(SHA256(), 32, salt=None, info=b"coze-upload-broker/request signing").derive(PEPPER)
    kept = hmac.new(PEPPER, secret.encode(), hashlib.sha256).hexdigest()
    expected = hmac.new(derived, kept.encode(), hashlib.sha256).digest()
    shown = "cub_ss_" + base64.urlsafe_b64encode(expected).decode().rstrip("=")
    assert keys.hashing.shown_signing_secret(secret) == shown
    assert await keys.signing_secrets(key.id) == [shown.encode()]


async def test_in_the_grace_both_signing_secrets_are_good(keys: ApiKeys, clock: Clock) -> None:
    key, _ = await create(keys)
    before = await keys.signing_secrets(key.id)
    await keys.rotate(key.id, grace_seconds=60)
    newest, old = await keys.signing_secrets(key.id)
    assert [old] == before
    clock.now = 1060
    assert await keys.signing_secrets(key.id) == [newest]


async def test_a_signer_is_known_by_the_secret_that_signed(keys: ApiKeys) -> None:
    key, _ = await create(keys)
    await keys.rotate(key.id, grace_seconds=60)
    newest, old = await keys.signing_secrets(key.id)
    signers = [await keys.signer(key.id, secret) for secret in (newest, old)]
    rotated = await keys.find(key.id)
    assert rotated is not None
    assert [signer and signer.hint for signer in signers] == [each.hint for each in rotated.secrets]
    assert await keys.signer(key.id, b"of another key") is None
    await keys.revoke(key.id)
    assert await keys.signer(key.id, newest) is None


async def test_who_may_not_sign_has_no_signing_secret(keys: ApiKeys, clock: Clock) -> None:
    page, page_secret = await create(
        keys, kind="publishable", scopes=["token:mint"], origins=["https://a.example"]
    )
    brief, _ = await create(keys, expires_at=1010)
    assert keys.hashing.shown_signing_secret(page_secret) is None
    assert await keys.signing_secrets(page.id) == []
    assert len(await keys.signing_secrets(brief.id)) == 1
    clock.now = 1010
    assert await keys.signing_secrets(brief.id) == []
    assert await keys.by_id(brief.id) == brief, "what was begun with it may be finished"


# --- lists ----------------------------------------------------------------------------------------


@pytest.fixture
async def seven(keys: ApiKeys, clock: Clock) -> list[ApiKey]:
    """Seven keys, some made in the same second, each with two secrets."""
    made = []
    for at in (1000, 1000, 1000, 1001, 1002, 1002, 1003):
        clock.now = at
        key, _ = await create(keys)
        made.append((await keys.rotate(key.id, grace_seconds=60))[0])
    return sorted(made, key=lambda key: (key.created_at, key.id))


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8])
async def test_pages_have_every_key_once_and_in_order(keys: ApiKeys, seven: list[ApiKey], limit: int) -> None:
    found: list[ApiKey] = []
    cursor = None
    while True:
        page = await keys.list(limit=limit, cursor=cursor)
        assert 0 < len(page.keys) <= limit
        found += page.keys
        if (cursor := page.next_cursor) is None:
            break
    assert found == seven
    assert all(len(key.secrets) == 2 for key in found)


async def test_the_newest_come_first_where_pages_are_counted(keys: ApiKeys, seven: list[ApiKey]) -> None:
    await keys.revoke(seven[6].id)
    first = await keys.newest(limit=4)
    second = await keys.newest(limit=4, offset=4)
    assert [*first.keys, *second.keys] == seven[5::-1]
    assert (first.next_cursor is None, second.next_cursor) == (False, None)
