"""The mark of keys and revocations: another one after every change, in every process, at once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from broker.errors import StoreUnavailable
from broker.state.generation import AlwaysAsk, FileGeneration, Generation, RedisGeneration, mark_of
from broker.state.limits import RedisLimits
from broker.state.redis import Redis
from tests.support.redis import RedisServer, opened, until_back

Ask = Callable[[Generation], Awaitable[str | None]]


class Two:
    """What two processes have of one generation; ``ask`` is as each request does it."""

    def __init__(self, here: Generation, there: Generation, ask: Ask) -> None:
        self.here, self.there, self.ask = here, there, ask

    async def marks(self) -> tuple[str | None, str | None]:
        return await self.ask(self.here), await self.ask(self.there)


@pytest.fixture(params=["file", "redis"])
async def two(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Two]:
    if request.param == "file":
        path = folder / "generation"

        async def look(generation: Generation) -> str | None:
            return generation.current()

        yield Two(FileGeneration(path), FileGeneration(path), look)
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    async with opened(server.url) as one, opened(server.url) as other:
        here, there = (RedisGeneration(redis) for redis in (one, other))
        stores = {id(here): one, id(there): other}

        async def call(generation: Generation) -> str | None:
            verdict = await RedisLimits(stores[id(generation)]).hit([])
            assert mark_of(verdict.shared) == generation.current()
            return mark_of(verdict.shared)

        yield Two(here, there, call)


async def test_without_a_change_the_mark_stays(two: Two) -> None:
    here, there = await two.marks()
    assert here == there
    assert await two.marks() == (here, there)
    await two.here.bump()
    changed = await two.marks()
    assert await two.marks() == changed
    assert len({*changed, here}) == 2


async def test_every_change_makes_another_mark_for_all(two: Two) -> None:
    """However fast one follows the other."""
    seen = [await two.marks()]
    for number in range(300):
        await (two.here if number % 3 else two.there).bump()
        seen.append(await two.marks())
    assert all(here == there for here, there in seen)
    assert len(set(seen)) == 301


async def test_no_change_is_lost_among_many_at_once(two: Two) -> None:
    """Each sees a mark after its own change that nobody saw before."""

    async def change(generation: Generation) -> None:
        before = await two.ask(generation)
        await generation.bump()
        assert await two.ask(generation) != before

    await asyncio.gather(*(change(generation) for generation in (two.here, two.there) * 100))


# --- the file --------------------------------------------------------------------------------------------

BUMP_OFTEN = """
import asyncio, sys
from pathlib import Path
from broker.state.generation import FileGeneration

async def main():
    generation = FileGeneration(Path(sys.argv[1]))
    for _ in range(2000):
        await generation.bump()

asyncio.run(main())
"""


async def test_processes_that_change_at_once_each_leave_a_mark(folder: Path) -> None:
    path = folder / "generation"
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", BUMP_OFTEN, str(path)) for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert path.stat().st_size == 6000


async def test_a_file_that_was_deleted_is_another_mark(folder: Path) -> None:
    path = folder / "generation"
    generation = FileGeneration(path)
    await generation.bump()
    before = generation.current()
    path.unlink()
    assert generation.current() != before


async def test_a_file_that_cannot_be_written_is_an_unavailable_store(folder: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await FileGeneration(folder / "nowhere" / "generation").bump()


async def test_a_mark_that_cannot_be_read_is_not_known(folder: Path) -> None:
    (folder / "file").write_text("")
    generation = FileGeneration(folder / "file" / "generation")
    assert (generation.current(), await generation.newest()) == (None, None)


async def test_the_file_is_its_owners_alone(folder: Path) -> None:
    await FileGeneration(folder / "generation").bump()
    assert (folder / "generation").stat().st_mode & 0o777 == 0o600


# --- without a file, and without Redis -------------------------------------------------------------------


async def test_where_nobody_tells_no_mark_is_known() -> None:
    generation = AlwaysAsk()
    await generation.bump()
    assert (generation.current(), await generation.newest()) == (None, None)


async def test_while_redis_is_down_no_mark_is_known(redis_server: RedisServer, redis: Redis) -> None:
    """And what was kept from before is not believed after it, as changes may have been missed."""
    generation = RedisGeneration(redis)
    await RedisLimits(redis).hit([])
    before = generation.current()
    assert generation.current() == before
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        await generation.bump()
    assert (generation.current(), await generation.newest()) == (None, None)
    redis_server.start()
    await until_back(redis)
    assert generation.current() not in (None, before)
    assert await generation.newest() == generation.current()


async def test_a_flush_is_a_change(redis_server: RedisServer, redis: Redis) -> None:
    """Also when afterwards as many changes were counted as before."""
    generation = RedisGeneration(redis)
    await generation.bump()
    before = generation.current()
    redis_server.command("FLUSHALL")
    await generation.bump()
    assert generation.current() != before
