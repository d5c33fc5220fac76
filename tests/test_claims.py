"""What may be had once is had once: by one of hundreds, in all processes, whatever the store forgets."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from broker.errors import ExpiredCredential, StoreUnavailable
from broker.state.claims import Claims, DatabaseClaims, RedisClaims
from broker.state.database import Database
from broker.state.redis import Redis
from tests.support.databases import new_database
from tests.support.redis import RedisServer, opened, running_redis, until_back


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def store_url(request: pytest.FixtureRequest, folder: Path) -> str:
    """Where an empty store is."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        return server.url
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{folder / 'data' / 'broker.db'}"
    return new_database(request.getfixturevalue("postgresql"))


@pytest.fixture
async def claims(store_url: str) -> AsyncIterator[Claims]:
    if store_url.startswith("redis:"):
        async with opened(store_url) as redis:
            yield RedisClaims(redis)
        return
    database = Database(store_url)
    await database.migrate()
    yield DatabaseClaims(database)
    await database.close()


async def test_of_hundreds_who_claim_a_name_at_once_one_gets_it(claims: Claims) -> None:
    for name in ("one", "two"):
        won = await asyncio.gather(*(claims.claim(name, ttl_seconds=60) for _ in range(300)))
        assert sum(won) == 1
    assert not await claims.claim("one", ttl_seconds=60)


@pytest.mark.parametrize("uses", [2, 7, 100])
async def test_a_name_has_as_many_uses_as_it_is_claimed_for(claims: Claims, uses: int) -> None:
    won = await asyncio.gather(*(claims.claim("name", ttl_seconds=60, uses=uses) for _ in range(300)))
    assert sum(won) == uses
    assert not await claims.claim("name", ttl_seconds=60, uses=uses)
    assert await claims.claim("another", ttl_seconds=60, uses=uses)


async def test_a_name_belongs_to_whoever_holds_it_first(claims: Claims) -> None:
    assert await claims.hold("file", "one", ttl_seconds=60)
    assert await claims.hold("file", "one", ttl_seconds=60)
    assert not await claims.hold("file", "two", ttl_seconds=60)
    assert await claims.hold("another", "two", ttl_seconds=60)
    assert not await claims.hold("file", "", ttl_seconds=60)


async def test_of_hundreds_who_hold_a_name_at_once_one_gets_it(claims: Claims) -> None:
    won = await asyncio.gather(
        *(claims.hold("file", f"holder {number % 100}", ttl_seconds=60) for number in range(300))
    )
    winners = {number % 100 for number, has_won in enumerate(won) if has_won}
    assert len(winners) == 1
    assert sum(won) == 3, "each comes three times"


async def test_a_claimed_name_is_not_held(claims: Claims) -> None:
    """A name is used in one way; the two ways never meet in one that is good for nothing."""
    assert await claims.claim("claimed", ttl_seconds=60)
    assert await claims.hold("held", "holder", ttl_seconds=60)
    assert not await claims.claim("claimed", ttl_seconds=60)
    assert await claims.hold("held", "holder", ttl_seconds=60)


async def test_a_claim_under_the_stores_epoch_is_as_good_as_one_that_names_none(claims: Claims) -> None:
    epoch = await claims.epoch()
    assert epoch == await claims.epoch()
    assert await claims.claim("one", ttl_seconds=60, epoch=epoch)
    assert not await claims.claim("one", ttl_seconds=60)
    assert await claims.claim("two", ttl_seconds=60)
    assert not await claims.claim("two", ttl_seconds=60, epoch=epoch)


async def test_a_claim_under_another_epoch_is_refused_and_uses_nothing(claims: Claims) -> None:
    with pytest.raises(ExpiredCredential) as refused:
        await claims.claim("name", ttl_seconds=60, epoch="another")
    assert "fresh" in refused.value.detail
    assert await claims.claim("name", ttl_seconds=60, epoch=await claims.epoch())


CLAIM_IN_TURN = """
import asyncio, sys
from broker.state.claims import DatabaseClaims, RedisClaims
from broker.state.database import Database
from broker.state.redis import Redis

async def main():
    url, names = sys.argv[1], int(sys.argv[2])
    if url.startswith("redis:"):
        store = Redis(url)
        await store.open()
        claims = RedisClaims(store)
    else:
        store = Database(url)
        claims = DatabaseClaims(store)
    await store.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    for first in range(0, names, 25):
        together = [n for n in range(first, min(first + 25, names)) for _ in "ab"]
        won = await asyncio.gather(*(claims.claim(f"token {n}", ttl_seconds=60) for n in together))
        print(*(n for n, has_won in zip(together, won) if has_won), flush=True)
    await store.close()

asyncio.run(main())
"""


async def test_a_token_that_comes_to_two_processes_at_once_is_won_by_one(
    store_url: str, claims: Claims
) -> None:
    """A thousand times over, twice in each; in a database, where it is slower, a hundred times."""
    names = 1000 if store_url.startswith("redis:") else 100

    async def start() -> asyncio.subprocess.Process:
        pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLAIM_IN_TURN, store_url, str(names), **pipes
        )

    processes = [await start(), await start()]
    for process in processes:
        assert process.stdout
        assert await process.stdout.readline() == b"ready\n"
    told = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    won = [[int(word) for word in out.split()] for out, _ in told]
    assert sorted(won[0] + won[1]) == list(range(names))


async def test_an_unreachable_store_lets_nobody_in() -> None:
    pytest.importorskip("asyncpg")
    database = Database("postgresql+asyncpg://user:password@127.0.0.1:1/db")
    async with opened("redis://user:password@127.0.0.1:1") as redis:
        for claims in (DatabaseClaims(database), RedisClaims(redis)):
            for call in (claims.claim("name", ttl_seconds=60), claims.hold("name", "holder", ttl_seconds=60)):
                with pytest.raises(StoreUnavailable) as refused:
                    await call
                assert "password" not in f"{refused.value}{refused.value.log}"
    await database.close()


# --- time ------------------------------------------------------------------------------------------------


async def test_a_row_is_forgotten_when_its_time_is_over(database: Database) -> None:
    now = [1000.0]
    timed = DatabaseClaims(database, lambda: now[0], lambda: now[0])
    assert await timed.claim("a", ttl_seconds=100)
    now[0] = 1100
    assert not await timed.claim("a", ttl_seconds=100)
    now[0] = 1200
    assert await timed.claim("a", ttl_seconds=100)


async def test_a_row_is_held_for_as_long_as_its_holder_comes_again(database: Database) -> None:
    """And for as long as it was told at first, though it comes again for less."""
    now = [1000.0]
    timed = DatabaseClaims(database, lambda: now[0], lambda: now[0])
    assert await timed.hold("a", "one", ttl_seconds=100)
    assert await timed.hold("a", "one", ttl_seconds=1)
    now[0] = 1090
    assert await timed.hold("a", "one", ttl_seconds=100)
    now[0] = 1180
    assert not await timed.hold("a", "two", ttl_seconds=100)
    now[0] = 1300
    assert await timed.hold("a", "two", ttl_seconds=100)


async def test_redis_forgets_a_name_when_its_time_is_over(redis: Redis) -> None:
    claims = RedisClaims(redis, margin_seconds=0)
    assert await claims.claim("brief", ttl_seconds=1)
    assert await claims.hold("brief", "one", ttl_seconds=1)
    assert await claims.claim("longer", ttl_seconds=60, uses=2)
    assert await claims.claim("longer", ttl_seconds=1, uses=2), "the second use does not shorten it"
    give_up = time.monotonic() + 10
    while not await claims.claim("brief", ttl_seconds=60):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)
    assert await claims.hold("brief", "two", ttl_seconds=60)
    assert not await claims.claim("longer", ttl_seconds=60, uses=2)


# --- what Redis forgets ----------------------------------------------------------------------------------


def flush(server: RedisServer) -> None:
    server.command("FLUSHALL")


def lose_some(server: RedisServer) -> None:
    """It comes back with what it had saved before the last claims."""
    server.kill()
    server.start("--dbfilename", "dump.rdb")


def hand_over(server: RedisServer) -> None:
    """Another server takes the place of the first, with a copy that is behind."""
    server.kill()
    (server.folder / "dump.rdb").rename(server.folder / "copy.rdb")
    server.start("--dbfilename", "copy.rdb")


LOSSES: list[Callable[[RedisServer], None]] = [flush, RedisServer.restart, lose_some, hand_over]


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_used_token_is_not_good_again_when_redis_forgot(lose: Callable[[RedisServer], None]) -> None:
    with running_redis() as server:
        async with opened(server.url) as redis:
            claims = RedisClaims(redis)
            epoch = await claims.epoch()
            server.command("SAVE")
            assert await claims.claim("token", ttl_seconds=60, epoch=epoch)
            lose(server)
            await asyncio.sleep(0)
            await until_back(redis)
            for _ in range(3):
                with pytest.raises(ExpiredCredential):
                    await claims.claim("token", ttl_seconds=60, epoch=epoch)
            fresh = await claims.epoch()
            assert fresh != epoch
            assert await claims.claim("another token", ttl_seconds=60, epoch=fresh)


async def test_no_flush_in_the_midst_of_many_makes_a_token_good_twice(
    redis_server: RedisServer, redis: Redis
) -> None:
    claims = RedisClaims(redis)
    epoch = await claims.epoch()
    won = []

    async def try_often() -> None:
        for _ in range(200):
            with suppress(ExpiredCredential, StoreUnavailable):
                won.append(await claims.claim("token", ttl_seconds=60, epoch=epoch))

    def flush_often() -> None:
        for _ in range(20):
            flush(redis_server)

    await asyncio.gather(asyncio.to_thread(flush_often), *(try_often() for _ in range(20)))
    assert sum(won) <= 1


async def test_tokens_of_a_database_are_not_good_in_redis_nor_the_other_way(
    database: Database, redis: Redis
) -> None:
    """Whoever is given a ``REDIS_URL``, or loses it, starts with claims that know nothing of the others."""
    here, there = DatabaseClaims(database), RedisClaims(redis)
    for claims, epoch in ((here, await there.epoch()), (there, await here.epoch())):
        with pytest.raises(ExpiredCredential):
            await claims.claim("token", ttl_seconds=60, epoch=epoch)
